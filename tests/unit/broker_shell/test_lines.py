"""Lines of running attempts: the fence, the limits, and what questions get of them."""

import pathlib
import time
from collections.abc import Iterator
from typing import Any

import apsw
import pytest

from gristmill.broker import bodies, past_logs, records, schema
from gristmill.broker import lines as lines_module
from gristmill.broker.core.effects import KeepResult
from gristmill.broker.core.events import HoldAnswered, JobSubmitted, ParcelArrived, WorkerJoined
from gristmill.broker.core.state import Config, State
from gristmill.broker.core.step import step
from gristmill.broker.journal import Journal
from gristmill.broker.lines import LineKeeper, find_kept
from gristmill.broker.metrics import Metrics
from gristmill.wire import limits
from gristmill.wire.client import LogRow, Results
from gristmill.wire.errors import RemoteError
from gristmill.wire.failure import LogEntry, pack_logs
from gristmill.wire.frames import encode
from gristmill.wire.spec import JobSpec, Tariff
from gristmill.wire.worker import Lines, Piece, ResultHead

JOB = 1


class Desk:
    """A state with one job whose subtask 0 a worker holds, its journal, and the keeper."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.metrics = Metrics()
        self.journal = Journal(folder, lambda: None, self.metrics)
        self.state = State.new(Config(), 1)
        spec = JobSpec("function", function="0" * 64, count=2)
        for event in (
            JobSubmitted(1, 1, "t", b"s", spec, {"standard": Tariff()}, 0, False),
            HoldAnswered(JOB, "", ""),
            ParcelArrived(1, "t", JOB, 0, 2, "m", 10),
            WorkerJoined(
                1, "w", "node", 1, 1_000, 1 << 34, {}, ["job"], ["3.11"], "cgroup", [], []
            ),
        ):
            step(self.state, event, 1_000)
        self.journal.record("open_jobs", schema.ADD_OPEN, (JOB,), 16)
        (self.lease, *_) = self.state.workers[1].leases.values()
        self.keeper = LineKeeper(self.state, self.journal, self.metrics, 1 << 30)

    def say(self, offset: int, body: bytes, worker: int = 1, **piece: int) -> None:
        fields = {"lease_id": self.lease.number, "index": 0, "stream": 0, **piece}
        self.keeper.take(worker, Lines(b"", [Piece(offset=offset, **fields)]), [body])

    def committed(self) -> apsw.Connection:
        deadline = time.monotonic() + 10
        while not self.journal.is_idle:
            self.journal.pump()
            assert time.monotonic() < deadline
            time.sleep(0.001)
        db = apsw.Connection(str(self.journal.path), flags=apsw.SQLITE_OPEN_READONLY)
        bodies.register(db, self.journal.path.parent)
        return db

    def rows(self, is_out: bool = True) -> list[LogRow]:
        current = frozenset([self.lease.number] if is_out else [])
        return past_logs.logs(self.committed(), JOB, 0, 100, current)

    def result(self, ref: int = 1, entry: LogEntry | None = None) -> None:
        """The attempt's result with this log is recorded, and told to the keeper."""
        lease = self.lease.number
        head = ResultHead(ref, lease, JOB, 0, 1, "m", 1, 1, 1, "cgroup")
        frames = [b"", b"", b"", pack_logs([entry] if entry else [])]
        message = Results(JOB, 1, head, 1, "node")
        row = records.result_row(encode(message), message, frames, (1, 1, 0), 0)
        self.journal.record("results", schema.ADD_RESULT, row, 0)
        if JOB in self.keeper.jobs:
            effect = KeepResult(JOB, 1, ref, 0, 1, 1, lease, "node", 0, "", [])
            self.keeper.settle(effect, frames[3])


@pytest.fixture
def desk(tmp_path: pathlib.Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.journal.close()


def test_lines_are_joined_by_offset_and_told_apart_by_state(desk: Desk) -> None:
    desk.say(0, b"one\n")
    desk.say(0, b"one\ntwo\n")  # again, and longer
    desk.say(0, b"one\n")  # an old one once more
    desk.say(8, b"three\n")
    desk.say(0, b"oops\n", stream=1)
    (row,) = desk.rows()
    assert (row.index, row.attempt, row.state) == (0, 1, "running")
    assert (row.stdout, row.stderr) == (b"one\ntwo\nthree\n", b"oops\n")
    assert (row.stdout_bytes, row.stderr_bytes, row.is_cut) == (14, 5, False)
    (row,) = desk.rows(is_out=False)
    assert row.state == "lost"


def test_a_gap_is_named(desk: Desk) -> None:
    desk.say(0, b"one\n")
    desk.say(100, b"two\n")
    (row,) = desk.rows()
    assert row.stdout == b"one\n\n[gristmill: 96 bytes are missing here]\ntwo\n"
    assert row.is_cut and row.stdout_bytes == 104


@pytest.mark.parametrize("piece", [{"worker": 2}, {"lease_id": 99}, {"index": 1}, {"index": -1}])
def test_only_the_holder_of_a_lease_is_heard_and_only_about_it(
    desk: Desk, piece: dict[str, int]
) -> None:
    desk.say(0, b"mine\n")
    desk.say(0, b"somebody else's", **piece)
    (row,) = desk.rows()
    assert row.stdout == b"mine\n" and desk.metrics.lines_refused == 1


@pytest.mark.parametrize(
    ("offset", "body", "piece"),
    [
        (-1, b"x", {}),
        (0, b"", {}),
        (0, b"x", {"stream": 2}),
        (1 << 60, b"x", {}),
        (0, b"x" * (limits.LINES_PIECE_BYTES_MAX + 1), {}),
    ],
)
def test_what_makes_no_sense_is_refused_whole(
    desk: Desk, offset: int, body: bytes, piece: dict[str, int]
) -> None:
    with pytest.raises(RemoteError, match="a piece of output"):
        desk.say(offset, body, **piece)
    with pytest.raises(RemoteError, match="2 body frames for 0"):
        desk.keeper.take(1, Lines(b"", []), [b"", b""])
    assert not desk.rows()


def test_a_long_stream_keeps_its_head_and_its_tail(desk: Desk) -> None:
    size = limits.LINES_PIECE_BYTES_MAX
    for at in range(0, 4 << 20, size):
        desk.say(at, b"%07d\n" % at * (size // 8))
    (row,) = desk.rows()
    assert row.stdout_bytes == 4 << 20 and row.is_cut
    kept = limits.LINES_HEAD_BYTES + limits.LINES_TAIL_BYTES
    assert kept <= len(row.stdout) <= kept + 2 * size
    assert row.stdout.startswith(b"%07d\n" % 0) and row.stdout.endswith(b"%07d\n" % (at))
    assert b"bytes are missing here" in row.stdout


def test_a_job_has_a_limit_and_what_is_beyond_is_marked(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines_module.limits, "LINES_JOB_BYTES_MAX", 1_000)
    desk.say(0, b"a" * 400)
    desk.say(400, b"b" * 400)
    desk.say(800, b"c" * 100)
    (row,) = desk.rows()
    assert row.stdout == b"a" * 400 + b"\n[gristmill: 500 bytes are missing here]\n"
    assert row.stdout_bytes == 900 and desk.metrics.lines_dropped == 2


def test_lines_do_not_add_to_a_disk_that_is_behind(desk: Desk) -> None:
    desk.keeper = LineKeeper(desk.state, desk.journal, desk.metrics, -1)
    desk.say(0, b"one\n")
    (row,) = desk.rows()
    assert row.stdout == b"\n[gristmill: 4 bytes are missing here]\n" and row.is_cut


def test_a_whole_result_takes_the_place_of_lines(desk: Desk) -> None:
    desk.say(0, b"one\n")
    desk.result(entry=LogEntry(0, b"one\ntwo\n", stdout_bytes=8))
    (row,) = desk.rows()
    assert (row.state, row.stdout, row.is_cut) == ("ended", b"one\ntwo\n", False)
    assert find_kept(desk.committed()) == []


def test_the_last_bytes_of_a_killed_process_follow_its_lines(desk: Desk) -> None:
    desk.say(0, b"one\ntwo\n")
    desk.result(entry=LogEntry(0, b"wo\nthree\n", stdout_bytes=14, is_cut=True, stdout_at=5))
    (row,) = desk.rows()
    assert (row.state, row.stdout, row.is_cut) == ("ended", b"one\ntwo\nthree\n", False)


def test_a_result_without_a_log_leaves_the_lines(desk: Desk) -> None:
    desk.say(0, b"one\n")
    desk.result()
    (row,) = desk.rows()
    assert (row.state, row.stdout) == ("ended", b"one\n")


def test_a_restart_knows_what_was_kept_and_settles_it(desk: Desk) -> None:
    desk.say(0, b"one\n")
    found = find_kept(desk.committed())
    again = LineKeeper(desk.state, desk.journal, desk.metrics, 1 << 30)
    again.note(found)
    (mine,), (known,) = again.jobs[JOB].items(), desk.keeper.jobs[JOB].items()
    assert (mine[0], mine[1].ends) == (known[0], known[1].ends)
    desk.keeper = again
    desk.result(entry=LogEntry(0, b"one\n", stdout_bytes=4))
    assert find_kept(desk.committed()) == []


def test_lines_go_with_the_results_of_their_job(desk: Desk) -> None:
    desk.say(0, b"one\n")
    desk.committed()
    desk.keeper.forget(JOB)
    deadline = time.monotonic() + 10
    while find_kept(desk.committed()):  # a chore runs between two groups, or behind the last
        assert time.monotonic() < deadline


def test_a_damaged_piece_is_a_gap_not_an_answer(desk: Desk) -> None:
    desk.say(0, b"one\n")
    desk.say(4, b"two\n")
    db = apsw.Connection(str(desk.journal.path))
    desk.committed()
    db.execute("UPDATE lines SET body = ? WHERE at = 0", (b"ONE\n",))
    (row,) = desk.rows()
    assert row.stdout == b"\n[gristmill: 4 bytes are missing here]\ntwo\n"


def test_all_attempts_of_the_last_index_come_along(desk: Desk) -> None:
    rows: list[Any] = []
    for sequence, (first, attempt) in enumerate([(0, 1), (3, 1), (3, 2), (4, 1)], 1):
        head = ResultHead(sequence, 7, JOB, first, 1, "m", 1, 1, 1, "cgroup")
        message = Results(JOB, sequence, head, attempt, "node")
        frames = [b"", b"", b"", pack_logs([LogEntry(0, b"%d" % attempt, stdout_bytes=1)])]
        row = records.result_row(encode(message), message, frames, (1, 1, 0), 0)
        desk.journal.record("results", schema.ADD_RESULT, row, 0)
    for first, limit in ((0, 1), (0, 2), (3, 1), (4, 1)):
        found = past_logs.logs(desk.committed(), JOB, first, limit, frozenset())
        rows.append([(row.index, row.attempt) for row in found])
    assert rows == [[(0, 1)], [(0, 1), (3, 1), (3, 2)], [(3, 1), (3, 2)], [(4, 1)]]
