"""The durable outbox to the ledger: one sequence of entries for ever, in the journal until acked.

Entries are recorded in the same journal group as what they stand for and may leave once that group
is on disk. The newest are in memory; when the ledger was away for long, older ones are read back.
A hold stays until its verdict came: an ack without it does not count for the hold, so a lost answer
is asked for again by sending again.
"""

import logging
import time
from collections import deque
from collections.abc import Callable

import apsw
import msgspec

from gristmill.broker import records, schema
from gristmill.broker.journal import Journal
from gristmill.broker.metrics import Metrics
from gristmill.broker.reader import Reader
from gristmill.wire import limits
from gristmill.wire.ledger import Entry, Release

log = logging.getLogger("gristmill.broker.outbox")

MEMORY_ENTRIES = 20_000
BATCH_ENTRIES = 256
BATCH_BYTES = limits.HEADER_BYTES_MAX - 4_096
#: Nobody waits for a contribution: fewer than this travel with the next tick. One commit at the
#: ledger for each lone subtask would cost more than the rest of it.
PRESSING_ENTRIES = BATCH_ENTRIES // 2

Item = tuple[int, bool, bytes]  #: (sequence, is it a hold, encoded entry)


class Outbox:
    """See the module's text. Sequences begin at 1.

    ``acked``: entries up to it are the ledger's; ``last``: the newest one.
    """

    def __init__(
        self,
        journal: Journal,
        reader: Reader,
        metrics: Metrics,
        acked: int,
        last: int,
        rows_max: int = limits.OUTBOX_ROWS_MAX,
    ) -> None:
        self._rows_max = rows_max
        self._journal = journal
        self._reader = reader
        self._metrics = metrics
        self.acked = acked
        self.last = last
        self._on_disk = last
        self._memory: deque[Item] = deque()
        self._groups: deque[tuple[int, int]] = deque()  # (group, last sequence in it)
        self._holds: deque[int] = deque()  # sent and without a verdict, in order
        self._is_reading = False
        self._sent = acked
        self._last_hold = acked  # after a restart an older one waits for a tick

    def __len__(self) -> int:
        return self.last - self.acked

    @property
    def is_full(self) -> bool:
        """Contributions spool at their cap: new jobs must wait."""
        return len(self) >= self._rows_max

    @property
    def is_waiting(self) -> bool:
        """Something was sent and is not acked."""
        return self._sent > self.acked

    @property
    def is_pressing(self) -> bool:
        """A job waits for what may leave, or there is much of it."""
        return self._last_hold > self._sent or self._on_disk - self._sent >= PRESSING_ENTRIES

    def add(self, entry: Entry) -> None:
        """Records an entry; it may leave after the commit of the open group."""
        self.last += 1
        row = records.entry_row(self.last, entry)
        # A contribution goes with its result, which may be awaited.
        self._journal.record("outbox", schema.ADD_ENTRY, row, len(row[3]) + 64, not row[1])
        self._metrics.outbox_added += 1
        if row[1]:
            self._last_hold = self.last
        memory = self._memory
        if not memory or memory[-1][0] == self.last - 1:  # else it is read back in its turn
            memory.append((self.last, bool(row[1]), row[3]))
            if len(memory) > MEMORY_ENTRIES:
                memory.popleft()
        group = self._journal.group
        if self._groups and self._groups[-1][0] == group:
            self._groups[-1] = (group, self.last)
        else:
            self._groups.append((group, self.last))

    def settle(self) -> None:
        """A group was committed: its entries may leave."""
        while self._groups and self._groups[0][0] <= self._journal.committed:
            self._on_disk = self._groups.popleft()[1]

    def is_hold(self, sequence: int) -> bool:
        """Whether this entry is a hold that was sent and has no verdict yet."""
        return sequence in self._holds

    def rewind(self) -> None:
        """The ledger fell silent, or is new: send again from the first that is not acked."""
        self._sent = self.acked
        self._holds.clear()

    def take(self, arrived: Callable[[], None]) -> tuple[int, list[bytes]] | None:
        """(first sequence, encoded entries) of the next batch; None when there is none now.

        What is not in memory is read; ``arrived`` is then called and the next ``take`` has it.
        """
        first = self._sent + 1
        if first > self._on_disk or self._is_reading:
            return None
        memory = self._memory
        if not memory or not memory[0][0] <= first <= memory[-1][0]:
            self._read(first, arrived)
            return None
        batch: list[bytes] = []
        size = 0
        start = first - memory[0][0]
        for index in range(start, min(len(memory), start + BATCH_ENTRIES)):
            sequence, is_hold, body = memory[index]
            if sequence > self._on_disk or size + len(body) > BATCH_BYTES:
                break
            assert sequence == first + len(batch)
            size += len(body)
            batch.append(body)
            if is_hold:
                self._holds.append(sequence)
        self._sent = first + len(batch) - 1
        return first, batch

    def acknowledge(self, upto: int, answered: set[int]) -> None:
        """The ledger has entries up to ``upto``; ``answered`` are those that got a verdict.

        Entries leave the journal in its next group, together with what the verdicts changed.
        """
        self._holds = deque(hold for hold in self._holds if hold not in answered)
        upto = min(upto, self._sent)
        if self._holds:
            upto = min(upto, self._holds[0] - 1)
        if upto <= self.acked:
            return
        self.acked = upto
        while self._memory and self._memory[0][0] <= upto:
            self._memory.popleft()
        self._journal.record("outbox", schema.DROP_ENTRIES, (upto,), 32, can_wait=True)
        self._journal.record("meta", schema.SET_META, ("outbox_acked", upto), 32, can_wait=True)

    def _read(self, first: int, arrived: Callable[[], None]) -> None:
        self._is_reading = True
        upto = min(self._on_disk, first + MEMORY_ENTRIES // 4)
        filler = msgspec.msgpack.encode(Release(f"{self._journal.broker}/0"))

        def read(items: list[Item]) -> None:
            self._is_reading = False
            found = {item[0]: item for item in items}
            # The sequence must have no gap: a filler stands for a damaged entry.
            for sequence in range(first, upto + 1):
                if sequence not in found:
                    self._quarantine(sequence)
            self._memory = deque(
                found.get(sequence, (sequence, False, filler))
                for sequence in range(first, upto + 1)
            )
            arrived()

        self._reader.ask(
            lambda connection: read_entries(connection, first, upto), read, lambda _: read([])
        )

    def _quarantine(self, sequence: int) -> None:
        self._metrics.rows_quarantined += 1
        log.critical(
            "journal quarantined table=outbox row=%d: it is damaged; the ledger never hears of it",
            sequence,
        )
        row = ("outbox", f"{sequence}", "damaged", time.time_ns() // 1_000_000, b"")
        self._journal.record("quarantine", schema.ADD_QUARANTINE, row, 256)


def read_entries(connection: apsw.Connection, first: int, upto: int) -> list[Item]:
    """The entries ``first .. upto`` that are whole."""
    found: list[Item] = []
    for row in connection.execute(
        f"SELECT {records.ENTRY_COLUMNS} FROM outbox WHERE sequence BETWEEN ? AND ?"
        " ORDER BY sequence",
        (first, upto),
    ):
        try:
            found.append(records.read_entry(row))
        except records.DamagedError:
            continue
    return found
