"""What running subtasks write, on its way to the broker before there is a result.

Only of subtasks that run for longer than ``SHOW_MS``: short ones cost nothing here. Nothing is
acknowledged: what gets lost is a gap, which offsets show, and the result has it all the same.
"""

from collections.abc import Iterator

from gristmill.wire.limits import (
    LINES_BYTES_MAX,
    LINES_PIECE_BYTES_MAX,
    LINES_PIECES_MAX,
    OUTPUT_BYTES,
)
from gristmill.wire.worker import Piece
from gristmill.worker.port import Port
from gristmill.worker.runners import protocol

SHOW_MS = 250  #: a subtask that runs for this long shows its output
CHUNK_BYTES = 4 << 10  #: a last piece below this comes again and longer: fewer rows at the broker
ENDED_MAX = 16  #: logs of jails that are gone, while there is no connection
BACKLOG_BYTES_MAX = OUTPUT_BYTES  #: of one stream, not sent; past it the oldest is dropped


class LiveStream:
    """One stream of one running subtask: bytes that were not sent, or may be sent again."""

    def __init__(self) -> None:
        self._start = 0
        self._sent = 0
        self._bytes = bytearray()

    @property
    def end(self) -> int:
        """How much of the stream is known."""
        return self._start + len(self._bytes)

    @property
    def has_news(self) -> bool:
        """Something was never sent."""
        return self.end > self._sent

    def add(self, offset: int, part: bytes | bytearray) -> None:
        """What stands there in the stream; after a gap, what was before is given up."""
        if offset != self.end:
            self._bytes.clear()
            self._start = self._sent = offset
        self._bytes += part
        excess = len(self._bytes) - BACKLOG_BYTES_MAX
        if excess > 0:
            del self._bytes[:excess]
            self._start += excess
            self._sent = max(self._sent, self._start)

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) in order, the last one perhaps as part of a longer one later."""
        if self.has_news:
            for at in range(0, len(self._bytes), LINES_PIECE_BYTES_MAX):
                yield self._start + at, bytes(self._bytes[at : at + LINES_PIECE_BYTES_MAX])

    def note_sent(self, offset: int, size: int) -> None:
        """This piece, the first of ``pieces``, has left."""
        end = offset + size
        self._sent = max(self._sent, end)
        if end < self.end or size >= CHUNK_BYTES:
            del self._bytes[: end - self._start]
            self._start = end


class LiveLog:
    """Both streams of what runs in one slot.

    ``base``: where they began in the output of a process that subtasks share.
    """

    def __init__(self, lease_id: int, index: int, base: tuple[int, int] = (0, 0)) -> None:
        self.lease_id, self.index, self.base = lease_id, index, base
        self.streams = (LiveStream(), LiveStream())

    @property
    def has_news(self) -> bool:
        """Something was never sent."""
        return self.streams[0].has_news or self.streams[1].has_news


class LiveLogs:
    """The live logs of a worker, by jail, and those of jails that ended with something unsent.

    Attributes:
        has_news: something may be to be sent.
        is_urgent: of a jail that is gone: it must leave before the result does.
    """

    def __init__(self) -> None:
        self._logs: dict[int, LiveLog] = {}
        self._ended: list[LiveLog] = []
        self.has_news = False

    @property
    def is_urgent(self) -> bool:
        """See the class."""
        return bool(self._ended)

    def hear(self, jail: int, said: protocol.Output, body: bytes) -> None:
        """A slot tells what a subtask of its own process has written.

        Raises:
            ValueError: no slot of ours sends this.
        """
        if said.stream not in (0, 1) or said.offset < 0 or len(body) > LINES_PIECE_BYTES_MAX:
            raise ValueError("output that no subtask has")
        log = self._logs.get(jail)
        if log is None or (log.lease_id, log.index) != (said.lease_id, said.index):
            log = self._logs[jail] = LiveLog(said.lease_id, said.index)
        log.streams[said.stream].add(said.offset, body)
        self.has_news = True

    def overhear(self, port: Port, run: tuple[int, int]) -> None:
        """Look at what came out of a process in which subtasks run one after another."""
        log = self._logs.get(port.jail)
        if log is None or (log.lease_id, log.index) != run:
            if not any(port.output):
                return
            log = self._logs[port.jail] = LiveLog(*run, base=port.taken_bytes)
        if log.base != port.taken_bytes:
            return  # a late result has moved its beginning: offsets would lie
        for stream, kept in zip(log.streams, port.output, strict=True):
            if len(kept) > stream.end:
                stream.add(stream.end, kept[stream.end :])
                self.has_news = True

    def settle(self, jail: int, lease_id: int, first: int, count: int) -> None:
        """A result has come, which has it all."""
        log = self._logs.get(jail)
        if log is not None and log.lease_id == lease_id and first <= log.index < first + count:
            del self._logs[jail]

    def end(self, jail: int) -> None:
        """The jail is gone; what it wrote last may be nowhere else."""
        log = self._logs.pop(jail, None)
        if log is not None and log.has_news:
            self._ended.append(log)
            del self._ended[:-ENDED_MAX]

    def batches(self) -> Iterator[list[tuple[Piece, bytes]]]:
        """What is to be sent now, message by message; a fair share of the room for each log.

        Each is noted as sent when the next one is asked for.
        """
        queue = [*self._ended, *(log for log in self._logs.values() if log.has_news)]
        share = max(LINES_PIECE_BYTES_MAX, LINES_BYTES_MAX // max(1, len(queue)))
        batch: list[tuple[Piece, bytes]] = []
        taken: list[tuple[LiveStream, int, int]] = []
        size = room = 0
        for log in queue:
            room = share
            for number, stream in enumerate(log.streams):
                for offset, part in stream.pieces():
                    if len(part) > room:
                        break
                    is_full = len(batch) == LINES_PIECES_MAX or size + len(part) > LINES_BYTES_MAX
                    if is_full:
                        yield batch
                        _note_sent(taken)
                        batch, taken, size = [], [], 0
                    batch.append((Piece(log.lease_id, log.index, number, offset), part))
                    taken.append((stream, offset, len(part)))
                    room -= len(part)
                    size += len(part)
        if batch:
            yield batch
            _note_sent(taken)
        self._ended = [log for log in self._ended if log.has_news]
        self.has_news = bool(self._ended) or any(log.has_news for log in self._logs.values())


def _note_sent(taken: list[tuple[LiveStream, int, int]]) -> None:
    for stream, offset, size in taken:
        stream.note_sent(offset, size)
