"""Parts of the slot side that need no process."""

import copy
import doctest
import importlib
import itertools
import os
import socket
import threading
import time
from typing import Any

import pytest

from gristmill.wire.failure import Failure, unpack_failures
from gristmill.wire.limits import RESULT_VALUES_BYTES_MAX
from gristmill.wire.meter import unpack_meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.shared import use_source
from gristmill.worker.runners import loop, protocol
from gristmill.worker.runners.commands import parts_of, substitute
from gristmill.worker.runners.encode import CannotTravelError, decode, encode
from gristmill.worker.runners.failures import describe, note_of
from gristmill.worker.runners.loop import Looper
from gristmill.worker.runners.outbox import Outbox, Range
from gristmill.worker.runners.zygote import Zygote

#: of a function in tier ``batch``
SETTING = protocol.Setting(1, "function", "loop", False, False, 0, 0, 0, 0, "/", "")


@pytest.mark.parametrize(
    "name", ["gristmill.worker.core.runs", "gristmill.worker.runners.commands"]
)
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)) == doctest.TestResults(
        0, doctest.testmod(importlib.import_module(name)).attempted
    )


@pytest.fixture
def pipe() -> Any:
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
    yield ours, Outbox(theirs)
    ours.close()
    theirs.close()


def frames_of(sock: socket.socket) -> list[tuple[Any, bytes]]:
    frames, found = protocol.Frames(), []
    sock.setblocking(False)
    while True:
        try:
            frames.push(sock.recv(1 << 20))
        except BlockingIOError:
            break
        found += [(protocol.decode_from_slot(header), body) for header, body in frames]
    return found


def test_frames_come_whole_however_the_stream_is_cut() -> None:
    feed = protocol.Feed(7, 1, [(0, 3)], [(0, 3, "q", 5)])
    stream = protocol.pack_frame(feed, b"abc", b"de") + protocol.pack_frame(feed, b"")
    for size, asked_each in itertools.product((1, 2, 7, 30, len(stream)), (1, 2, 5, 1_000)):
        frames, found = protocol.Frames(), []
        cuts = range(0, len(stream), size)
        for number, at in enumerate(cuts, 1):
            frames.push(memoryview(stream)[at : at + size])
            if number % asked_each == 0 or number == len(cuts):
                found += list(frames)
        assert [(protocol.decode_to_slot(head), body) for head, body in found] == [
            (feed, b"abcde"),
            (feed, b""),
        ]


def test_a_large_frame_is_whole_however_little_the_socket_takes(pipe: Any) -> None:
    ours, outbox = pipe
    outbox._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
    body = os.urandom(300_000), b"", os.urandom(7), os.urandom(70_000)
    frames, found = protocol.Frames(), []
    sender = threading.Thread(target=outbox.send, args=(protocol.Ended(1), *body), daemon=True)
    sender.start()
    while not found:
        frames.push(ours.recv(1 << 20))
        found += [whole for _, whole in frames]
    sender.join(10)
    assert found == [b"".join(body)]


def test_a_frame_beyond_its_limit_is_refused_before_it_is_kept() -> None:
    frames = protocol.Frames(body_bytes_max=100)
    frames.push(protocol.HEAD.pack(3, 101))
    with pytest.raises(ValueError, match="101"):
        list(frames)


def test_the_page_tells_what_runs_and_what_is_stopped(page: protocol.Page) -> None:
    assert page.started() == (0, -1)
    page.words[protocol.LEASE], page.words[protocol.STARTED] = 9, 5
    assert page.started() == (9, 4)
    before = page.words[protocol.STOP]
    page.write_stops([3, 9])
    assert page.words[protocol.STOP] == before + 2
    assert page.is_stopped(9) and not page.is_stopped(4)
    page.write_stops([])
    assert not page.is_stopped(9)


def test_a_look_at_a_list_that_is_being_written_waits_for_its_end(page: protocol.Page) -> None:
    words = page.words
    page.write_stops([9])
    words[protocol.STOP] += 1
    words[protocol.LISTED] = 0

    def write() -> None:
        words[protocol.LISTED] = 1
        words[protocol.STOP] += 1

    writer = threading.Timer(0.05, write)
    writer.start()
    assert page.is_stopped(9), "it was stopped before, and is stopped after"
    writer.join()


def test_the_loop_stops_where_the_page_says(page: protocol.Page, pipe: Any) -> None:
    sock, outbox = pipe

    def work(x: int) -> int:
        if x == 3:
            page.write_stops([8])
        return x * 2

    looper, feed = Looper(SETTING, outbox, page), protocol.Feed(8, 1, [], [])
    assert looper.run_inputs(work, [1, 2, 3, 4, 5], feed, 10) == 3
    looper.flush()
    ((done, body),) = frames_of(sock)
    assert (done.first, done.count, done.codec) == (10, 3, "q")
    assert len(body) == sum(done.sizes)
    assert looper.run_inputs(work, [1], feed, 13) == 0
    looper.flush()
    assert frames_of(sock) == []


class Aside:
    """What a slot writes to, where it is set aside just before it writes one thing.

    Meanwhile the agent stops its lease, and a turn later looks at what has started.
    """

    def __init__(self, view: Any, at: int, value: int, agent: protocol.Page) -> None:
        self.view, self.at, self.value, self.agent = view, at, value, agent
        self.looked: list[int] = []

    def __getitem__(self, at: int) -> int:
        return self.view[at]

    def __setitem__(self, at: int, value: int) -> None:
        if at == self.at and self.value in (value, -1) and not self.looked:
            self.agent.write_stops([8])
            self.looked.append(self.agent.started()[1])
        self.view[at] = value

    def release(self) -> None:
        self.view.release()


@pytest.mark.parametrize(
    ("what", "at", "value", "looked", "ran"),
    [
        # parts are 10, then 11 to 14, then 15
        ("words", protocol.STARTED, 4 << protocol.PART_SHIFT | 12, -1, [10]),
        ("stamps", 0, -1, 10, []),
        ("stamps", 2, -1, 12, [10, 11, 12]),
        ("stamps", 4, -1, 14, [10, 11, 12, 13, 14]),
    ],
)
def test_nothing_runs_that_was_given_back_while_the_slot_was_set_aside(
    page: protocol.Page, pipe: Any, what: str, at: int, value: int, looked: int, ran: list[int]
) -> None:
    _, outbox = pipe
    found: list[int] = []
    looper, feed = Looper(SETTING, outbox, page), protocol.Feed(8, 1, [], [])
    page.words[protocol.LEASE] = 8
    agent = copy.copy(page)
    aside = Aside(getattr(page, what), at, value, agent)
    setattr(page, what, aside)
    assert looper.run_inputs(found.append, list(range(10, 16)), feed, 10) == len(ran)
    assert aside.looked == [looked] and found == ran, "what comes after it may run elsewhere"
    assert agent.started() == (8, -1)
    looper.flush()


def test_a_stop_just_after_the_list_was_read_is_heard(
    page: protocol.Page, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, outbox = pipe
    looper, ran = Looper(SETTING, outbox, page), list[int]()
    read = page.is_stopped

    def read_then_stop(lease: int) -> bool:
        is_stopped = read(lease)
        page.write_stops([lease])
        return is_stopped

    monkeypatch.setattr(page, "is_stopped", read_then_stop)
    assert looper.run_inputs(ran.append, [1, 2], protocol.Feed(8, 1, [], []), 10) == 0
    assert not ran


def test_the_page_tells_what_runs_of_a_part(page: protocol.Page) -> None:
    page.words[protocol.LEASE] = 9
    for count in (1, 3, protocol.PART_MAX):
        page.begin_part(70, count)
        for number in range(count):
            assert page.started() == (9, 70 + number)
            assert page.permits[number] == number + 1
            page.stamps[number + 1] = 1 << 40 if number % 2 else 5
        assert page.started() == (9, -1), "all have ended"
        page.end_part()
        assert page.started() == (9, -1)
    page.words[protocol.STARTED] = (1 << 64) - 1  # whatever a slot writes
    assert page.started()[0] == 9
    page.write_stops([])
    assert not any(page.permits), "who walks over them looks at the list"


def test_a_part_that_takes_long_gives_way_to_a_flush(page: protocol.Page, pipe: Any) -> None:
    """Output was printed, so nothing is sent early: only the end of the part lets results go."""
    sock, outbox = pipe
    looper, feed = Looper(SETTING, outbox, page), protocol.Feed(8, 1, [], [])
    looper.run_inputs(abs, list(range(3_000)), feed, 0)
    looper.flush()
    frames_of(sock)
    assert looper._part_max > 100
    parts: list[int] = []

    def work(x: int) -> int:
        parts.append(page.words[protocol.STARTED])
        if x == 5:  # such as nobody could foresee
            until = time.monotonic() + 30
            while any(page.permits) and time.monotonic() < until:
                time.sleep(0.005)
        return x

    assert looper.run_inputs(work, list(range(50)), feed, 3_000) == 50
    looper.flush()
    assert len(set(parts[:6])) == 1 and parts[6] != parts[5], "a part ended behind the long one"
    told = [(done.first, done.count) for done, _ in frames_of(sock)]
    assert sum(count for _, count in told) == 50 and len(told) >= 2


def test_the_loop_gathers_what_follows_and_fits(
    page: protocol.Page, pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "FLUSH_NS", 10**12)
    sock, outbox = pipe
    looper = Looper(SETTING, outbox, page)
    one, other = protocol.Feed(8, 1, [], []), protocol.Feed(9, 1, [], [])
    looper.run_inputs(abs, [1, 2, 3], one, 10)
    looper.run_inputs(abs, [3], one, 13)  # how large its values are is not known yet
    looper.run_inputs(abs, [4, 5], one, 14)
    looper.run_inputs(abs, [6], one, 16)
    looper.run_inputs(abs, [7], one, 20)
    looper.run_inputs(abs, [8], other, 21)
    looper.flush()
    looper.flush()
    sent = [(done.lease_id, done.first, done.count) for done, _ in frames_of(sock)]
    assert sent == [(8, 10, 3), (8, 13, 4), (8, 20, 1), (9, 21, 1)]
    large = ["x" * (RESULT_VALUES_BYTES_MAX * 15 // 32)] * 2
    for first in range(0, 8, 2):
        looper.run_inputs(lambda text: text, large, one, 100 + first)
    looper.flush()
    sizes = [done.sizes[0] for done, _ in frames_of(sock)]
    assert len(sizes) == 4 and max(sizes) <= RESULT_VALUES_BYTES_MAX


def wait_for_frames(sock: socket.socket, count: int) -> list[tuple[Any, bytes]]:
    found: list[tuple[Any, bytes]] = []
    deadline = time.monotonic() + 60
    while len(found) < count and time.monotonic() < deadline:
        found += frames_of(sock)
        time.sleep(0.005)
    return found


def test_a_long_subtask_does_not_hold_back_the_results_before_it(
    page: protocol.Page, pipe: Any
) -> None:
    sock, outbox = pipe
    looper, feed = Looper(SETTING, outbox, page), protocol.Feed(8, 1, [], [])
    may_end = {4: threading.Event(), 6: threading.Event()}

    def work(x: int) -> int:
        if x == 2:
            raise ValueError("two")
        if x in may_end:
            assert may_end[x].wait(60)
        return -x

    ran: list[int] = []
    slot = threading.Thread(
        target=lambda: ran.append(looper.run_inputs(work, list(range(8)), feed, 100))
    )
    slot.start()
    ((early, body),) = wait_for_frames(sock, 1)
    assert (early.first, early.count) == (100, 4), "results wait for the end of subtask 104"
    assert len(body) == sum(early.sizes) and early.sizes[2]
    may_end[4].set()
    after = wait_for_frames(sock, 1)
    may_end[6].set()
    slot.join(60)
    looper.flush()
    after += frames_of(sock)
    assert ran == [8]
    assert sum(done.count for done, _ in after) == 4
    assert after[0][0].first == 104
    values = [value for done, body in [(early, body), *after] for value in _ints(done, body)]
    assert values == [0, -1, -3, -4, -5, -6, -7]


def _ints(done: Any, body: bytes) -> list[Any]:
    return decode(done.codec, memoryview(body)[: done.sizes[0]], done.sizes[0] // 8)


def test_what_was_printed_stays_with_its_subtask(page: protocol.Page, pipe: Any) -> None:
    sock, outbox = pipe
    (out, into), (err, into_err) = os.pipe(), os.pipe()
    outbox.outputs = (into, into_err)
    looper, feed = Looper(SETTING, outbox, page), protocol.Feed(8, 1, [], [])
    may_end, has_begun = threading.Event(), threading.Event()

    def work(x: int) -> int:
        os.write(into, b"x")
        if x == 3:
            has_begun.set()
            assert may_end.wait(60)
        return x

    slot = threading.Thread(target=lambda: looper.run_inputs(work, list(range(5)), feed, 0))
    slot.start()
    assert has_begun.wait(60)
    looks = [looper._page.written(outbox.outputs) for _ in range(2)]
    time.sleep(4 * loop.LOOK_S)  # nothing can be waited for: nothing is to happen
    assert frames_of(sock) == [] and looks == [(4, 0)] * 2
    may_end.set()
    slot.join(60)
    looper.flush()
    first, _ = frames_of(sock)[0]
    assert (first.first, first.count, first.written) == (0, 4, (4, 0))
    for fd in (out, into, err, into_err):
        os.close(fd)


def test_every_exception_is_the_subtasks_own(page: protocol.Page, pipe: Any) -> None:
    sock, outbox = pipe

    def work(x: int) -> int:
        raise {1: KeyboardInterrupt, 2: SystemExit, 3: RecursionError}[x]("told")

    looper = Looper(SETTING, outbox, page)
    assert looper.run_inputs(work, [1, 2, 3], protocol.Feed(1, 1, [], []), 0) == 3
    looper.flush()
    ((done, body),) = frames_of(sock)
    meter = unpack_meter(body[: done.sizes[1]], 3)
    assert {meter.outcome_at(at) for at in range(3)} == {Outcome.ERROR}
    failures = unpack_failures(body[done.sizes[1] : done.sizes[1] + done.sizes[2]])
    assert [failure.kind for _, failure in failures] == [
        "KeyboardInterrupt", "SystemExit", "RecursionError",
    ]  # fmt: skip


def test_a_range_is_halved_until_it_fits_and_nothing_is_lost(pipe: Any) -> None:
    sock, outbox = pipe
    count = 64
    troubles = [
        (100 + at, int(Outcome.ERROR), Failure("f" * 3_000), protocol.Note(0, at, "OSError"))
        for at in range(0, count, 2)
    ]
    values = [b"v" * 5_000 for _ in range(count // 2)]
    outbox.send_range(Range(1, 100, [1_000] * count, values, troubles))
    seen = []
    notes = []
    for done, body in frames_of(sock):
        assert done.sizes[0] + sum(done.sizes[2:]) <= RESULT_VALUES_BYTES_MAX
        meter = unpack_meter(body[done.sizes[0] :][: done.sizes[1]], done.count)
        seen += [(done.first + at, meter.outcome_at(at)) for at in range(done.count)]
        notes += [(done.first + note.offset, note.number) for note in done.notes]
    assert seen == [(100 + at, Outcome.OK if at % 2 else Outcome.ERROR) for at in range(count)]
    assert notes == [(100 + at, at) for at in range(0, count, 2)]


@pytest.mark.parametrize("size", [10, 100_000])
def test_held_frames_leave_together_and_in_order(pipe: Any, size: int) -> None:
    sock, outbox = pipe
    outbox.hold()
    outbox.send(protocol.Ended(1))
    assert not frames_of(sock)
    outbox.send_range(Range(2, 0, [1_000], [b"v" * size], []))
    outbox.send(protocol.Ended(2))
    outbox.release()
    outbox.send(protocol.Ended(3))
    assert [frame.lease_id for frame, _ in frames_of(sock)] == [1, 2, 2, 3]


def test_frames_of_two_threads_are_whole() -> None:
    """A slot's second thread sends early results while the first asks for a blob, say."""
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # so that a frame takes many sends
    outbox, count = Outbox(theirs), 40
    body = bytes(300_000)

    def send(lease_id: int) -> None:
        for index in range(count):
            outbox.send(protocol.FilePart(lease_id, index, "x"), body)

    threads = [threading.Thread(target=send, args=(lease_id,)) for lease_id in (1, 2)]
    for thread in threads:
        thread.start()
    frames, found = protocol.Frames(), []
    ours.settimeout(60)
    while len(found) < 2 * count:
        frames.push(ours.recv(1 << 20))
        found += [(protocol.decode_from_slot(header), len(body)) for header, body in frames]
    for thread in threads:
        thread.join(60)
    assert {size for _, size in found} == {len(body)}
    for lease_id in (1, 2):
        sent = [part.index for part, _ in found if part.lease_id == lease_id]
        assert sent == list(range(count))
    ours.close()
    theirs.close()


def test_only_the_value_that_cannot_travel_fails(pipe: Any) -> None:
    sock, outbox = pipe
    outbox.send_range(Range(1, 0, [1] * 3, [1, socket.socket, (x for x in ())], []))
    outcomes = {}
    for done, body in frames_of(sock):
        meter = unpack_meter(body[done.sizes[0] :][: done.sizes[1]], done.count)
        outcomes.update({done.first + at: meter.outcome_at(at) for at in range(done.count)})
    assert outcomes == {0: Outcome.OK, 1: Outcome.OK, 2: Outcome.ENCODING}


def test_substitution_leaves_other_braces_alone() -> None:
    assert substitute("{}-{1}-{index}-{name}-{{}}", ["a", "b"], 3) == "a b-b-3-{name}-{a b}"
    with pytest.raises(CannotTravelError, match=r"\{2\}"):
        substitute("{2}", ["a"], 0)


@pytest.mark.parametrize("value", [None, {"a": 1}, [["x"]], "a\0b"])
def test_what_cannot_be_an_argument_is_refused(value: Any) -> None:
    with pytest.raises(CannotTravelError):
        parts_of(value)


def test_a_failure_keeps_notes_and_drops_our_frames() -> None:
    class OddError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    try:
        raise ValueError("bad \ud800")
    except ValueError as error:
        error.add_note("look here")
        failure = describe(error)
    assert failure.kind == "ValueError" and failure.pickled
    assert "look here" in failure.traceback
    failure.message.encode()
    assert "__str__ raised RuntimeError" in describe(OddError()).message
    assert describe(OddError(), is_pickled=False).pickled == b""


def test_notes_are_of_os_errors_and_memory() -> None:
    assert note_of(PermissionError(13, "no")) == protocol.Note(0, 13, "PermissionError")
    assert note_of(OSError("no number")) == protocol.Note(0, 0, "OSError")
    assert note_of(MemoryError()) == protocol.Note(0, 12, "MemoryError")
    assert note_of(ValueError()) is None


def test_values_that_do_not_decode_are_told() -> None:
    with pytest.raises(CannotTravelError, match="unpickled"):
        decode("p", b"\x80\x05cnowhere\nx\n.", 1)
    with pytest.raises(CannotTravelError, match="holds 3 values, not 2"):
        decode("q", b"\0" * 24, 2)
    assert encode([{"a": 1}], True)[0] == "m"
    with pytest.raises(CannotTravelError, match="safe"):
        encode([{1}], True)


def test_a_feed_that_comes_with_the_answer_to_a_want_is_not_left_lying(page: protocol.Page) -> None:
    ours, theirs = socket.socketpair()
    zygote = Zygote(theirs, page)
    try:
        feed = protocol.Feed(7, 1, [(0, 1)], [])
        frames = protocol.pack_frame(feed), protocol.pack_frame(protocol.Given())
        readable, writable = os.pipe()
        ours.sendall(frames[0])
        socket.send_fds(ours, [frames[1] + frames[0]], [readable])
        got = zygote._want("ab" * 32, 10)
        assert isinstance(got, int) and os.fstat(got).st_ino == os.fstat(readable).st_ino
        assert [protocol.decode_to_slot(head) for head, _ in zygote._waiting] == [feed, feed]
        ours.sendall(protocol.pack_frame(protocol.Given("no such blob")))
        assert zygote._want("ab" * 32, 10) == "no such blob"
        for fd in (got, readable, writable):
            os.close(fd)
    finally:
        use_source(None)
        ours.close()
        theirs.close()
