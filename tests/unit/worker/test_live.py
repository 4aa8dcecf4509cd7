"""Output of running subtasks on its way to the broker: pieces, gaps, fair shares."""

from typing import Any

import pytest

from gristmill.wire.limits import LINES_BYTES_MAX, LINES_PIECE_BYTES_MAX, LINES_PIECES_MAX
from gristmill.worker.live import BACKLOG_BYTES_MAX, CHUNK_BYTES, LiveLogs, LiveStream
from gristmill.worker.runners import protocol

LEASE = 1 << 40


def sent(stream: LiveStream) -> list[tuple[int, bytes]]:
    pieces = list(stream.pieces())
    for offset, part in pieces:
        stream.note_sent(offset, len(part))
    return pieces


def take(logs: LiveLogs) -> list[list[tuple[int, int, int, int]]]:
    """(index, stream, offset, bytes) of each piece of each message."""
    return [
        [(piece.index, piece.stream, piece.offset, len(part)) for piece, part in batch]
        for batch in logs.batches()
    ]


def said(index: int, offset: int, stream: int = 0, lease: int = LEASE) -> protocol.Output:
    return protocol.Output(lease, index, stream, offset)


def test_a_trickle_comes_again_and_longer_until_it_is_a_chunk():
    stream = LiveStream()
    stream.add(0, b"one\n")
    assert sent(stream) == [(0, b"one\n")]
    assert not stream.has_news and sent(stream) == [], "nothing new"
    stream.add(4, b"two\n")
    assert sent(stream) == [(0, b"one\ntwo\n")]
    stream.add(8, b"x" * CHUNK_BYTES)
    assert sent(stream) == [(0, b"one\ntwo\n" + b"x" * CHUNK_BYTES)]
    stream.add(8 + CHUNK_BYTES, b"more")
    assert sent(stream) == [(8 + CHUNK_BYTES, b"more")]


def test_what_was_not_sent_comes_again():
    stream = LiveStream()
    stream.add(0, b"one\n")
    assert list(stream.pieces()) == list(stream.pieces()) == [(0, b"one\n")]
    assert stream.has_news


def test_a_gap_shows_by_its_offset():
    stream = LiveStream()
    stream.add(0, b"one\n")
    stream.add(100, b"later")
    assert sent(stream) == [(100, b"later")]


def test_a_backlog_gives_up_its_oldest():
    stream = LiveStream()
    stream.add(0, b"a" * 10)
    stream.add(10, b"b" * BACKLOG_BYTES_MAX)
    pieces = sent(stream)
    assert pieces[0][0] == 10 and sum(len(part) for _, part in pieces) == BACKLOG_BYTES_MAX


def test_messages_are_bounded_and_each_slot_has_its_share():
    logs = LiveLogs()
    for jail in range(4):
        for at in range(0, 1 << 20, LINES_PIECE_BYTES_MAX):
            logs.hear(jail, said(jail, at), b"x" * LINES_PIECE_BYTES_MAX)
    batches = take(logs)
    for batch in batches:
        assert len(batch) <= LINES_PIECES_MAX and sum(row[3] for row in batch) <= LINES_BYTES_MAX
    share = LINES_BYTES_MAX // 4
    for jail in range(4):
        assert sum(row[3] for batch in batches for row in batch if row[0] == jail) == share
    assert logs.has_news
    rounds = 1
    while logs.has_news:
        take(logs)
        rounds += 1
    assert rounds == 4 and take(logs) == []
    many = LiveLogs()
    for jail in range(100):
        many.hear(jail, said(jail, 0), b"x")
    assert [len(batch) for batch in take(many)] == [LINES_PIECES_MAX, 100 - LINES_PIECES_MAX]


def test_a_result_settles_its_lines_and_a_jail_s_end_makes_them_urgent():
    logs = LiveLogs()
    logs.hear(1, said(7, 0), b"in its result")
    logs.settle(1, LEASE, 7, 1)
    assert take(logs) == []
    logs.hear(1, said(8, 0), b"last words")
    logs.settle(1, LEASE + 1, 8, 1)  # another lease's
    logs.end(1)
    assert logs.is_urgent and take(logs) == [[(8, 0, 0, 10)]]
    assert not logs.is_urgent and not logs.has_news
    logs.hear(2, said(9, 0), b"sent")
    take(logs)
    logs.end(2)
    assert not logs.is_urgent, "nothing was left to say"


def test_the_next_subtask_of_a_jail_begins_anew():
    logs = LiveLogs()
    logs.hear(1, said(7, 0), b"seven")
    logs.hear(1, said(8, 0, stream=1), b"eight")
    assert take(logs) == [[(8, 1, 0, 5)]]


@pytest.mark.parametrize(
    ("stream", "offset", "size"), [(2, 0, 1), (-1, 0, 1), (0, -1, 1), (0, 0, 1 << 20)]
)
def test_nonsense_of_a_slot_is_a_lie(stream: int, offset: int, size: int):
    with pytest.raises(ValueError, match="output"):
        LiveLogs().hear(1, said(1, offset, stream), b"x" * size)


class Process:
    """What ``overhear`` looks at: the output that no result has taken."""

    jail = 1
    taken_bytes = (40, 0)

    def __init__(self) -> None:
        self.output = (bytearray(), bytearray())


def test_a_shared_process_is_overheard_from_its_last_result_on():
    logs, process = LiveLogs(), Process()
    port: Any = process
    logs.overhear(port, (LEASE, 3))
    assert not logs.has_news
    process.output[0].extend(b"one\n")
    logs.overhear(port, (LEASE, 3))
    assert take(logs) == [[(3, 0, 0, 4)]]
    process.output[1].extend(b"err")
    logs.overhear(port, (LEASE, 3))
    assert take(logs) == [[(3, 1, 0, 3)]]
    process.taken_bytes = (44, 0)  # a result of those before came late: its text went with it
    del process.output[0][:]
    process.output[0].extend(b"two, longer")
    logs.overhear(port, (LEASE, 3))
    assert not logs.has_news, "its offsets would lie"
