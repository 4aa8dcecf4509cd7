"""The agent's end of a slot: what waits for its socket, and what comes out of its pipes."""

import os
import socket
import threading
from typing import Any

import pytest

from gristmill.worker.port import Port
from gristmill.worker.runners import protocol


@pytest.fixture
def printing(page: protocol.Page) -> Any:
    """The agent's end of a slot (no process: none is looked at), and the slot's two pipes."""
    ours, theirs = socket.socketpair()
    pipes = [os.pipe(), os.pipe()]
    nobody: Any = None
    outputs = (pipes[0][0], pipes[1][0])
    port = Port(0, 1, nobody, ours, page, outputs, 1000, 1 << 20)
    yield port, (pipes[0][1], pipes[1][1])
    ours.close()
    theirs.close()
    for fd in (*outputs, pipes[0][1], pipes[1][1]):
        os.close(fd)


def test_what_waits_for_a_slot_goes_in_order_whatever_the_socket_takes(
    page: protocol.Page,
) -> None:
    """Large bodies are not joined; a descriptor comes with its own frame, in its turn."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(20)
    pipes = [os.pipe(), os.pipe()]
    nobody: Any = None
    port = Port(0, 1, nobody, ours, page, (pipes[0][0], pipes[1][0]), 1000, 1 << 20)
    bodies = [bytes([at]) * size for at, size in enumerate((0, 300_001, 5, 0, 399_999, 0))]
    header = protocol.Feed(7, 1, [], [])
    port.send(header, b"small")
    port.send(header, *bodies)
    port.give(os.dup(pipes[0][1]))
    for _ in range(100):  # more than one call takes
        port.send(header, b"x" * 70_000)
    assert port.is_sending
    got, frames, fds = protocol.Frames(), [], []
    while len(frames) < 103:
        port.flush()
        piece, came, *_ = socket.recv_fds(theirs, 90_001, 4)
        assert not came or len(frames) < 3, "a descriptor far from its frame"
        fds += came
        got.push(piece)
        frames += [(protocol.decode_to_slot(head), body) for head, body in got]
    assert not port.is_sending
    assert [body for _, body in frames] == [
        b"small", b"".join(bodies), b"", *[b"x" * 70_000] * 100
    ]  # fmt: skip
    assert [type(order).__name__ for order, _ in frames[:4]] == ["Feed", "Feed", "Given", "Feed"]
    assert len(fds) == 1
    ours.close()
    theirs.close()
    for fd in (*fds, *pipes[0], *pipes[1]):
        os.close(fd)


def test_a_slot_knows_what_it_has_written_whatever_was_read(
    page: protocol.Page, printing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, (out, err) = printing
    os.write(out, b"one\n")
    assert page.written((out, err)) == (4, 0)
    port.read_output()
    os.write(out, b"two\n")
    os.write(err, b"!")
    assert page.written((out, err)) == (8, 1)
    page.begin_reading()
    busy = threading.Timer(0.2, page.end_reading, (4, 0))
    busy.start()
    assert page.written((out, err)) == (8, 1), "an agent set aside by the host comes back to it"
    busy.join()
    page.begin_reading()
    monkeypatch.setattr(protocol, "LOOK_S", 0.01)
    assert page.written((out, err)) is None, "it does not come back"
    page.end_reading(4, 0)
    os.close(out_again := os.dup(out))
    assert page.written((out_again, err)) is None, "closed by somebody"


def test_a_result_takes_the_output_of_its_subtasks_only(printing: Any) -> None:
    port, (out, err) = printing
    os.write(out, b"out 1\n")
    os.write(out, b"out 3\n")  # of the next subtask, before the first one's result is looked at
    os.write(err, b"e3")
    assert port.take_output((6, 0)) == (b"out 1\n", b"", 6, 0)
    assert port.output_bytes == 8
    assert port.take_output((12, 2)) == (b"out 3\n", b"e3", 6, 2)
    assert port.take_output((-5, 1 << 70)) == (b"", b"", 0, 0)
    os.write(out, b"tail")
    assert port.take_output() == (b"tail", b"", 4, 0)


def test_output_beyond_its_limit_is_counted_and_cut(printing: Any) -> None:
    port, (out, err) = printing
    os.write(out, b"x" * 3000)
    first = port.take_output((10, 0))
    assert first == (b"x" * 10, b"", 10, 0) and not first.is_cut
    os.write(err, b"next")
    second = port.take_output((2000, 4))  # it has what was kept before the cut
    assert second == (b"x" * 990, b"", 1990, 4) and second.is_cut
    os.write(out, b"y")
    third = port.take_output((3000, 4))  # nothing of it was kept, and it says so
    assert third == (b"", b"", 1000, 0) and third.is_cut
    os.write(out, b"z")
    assert port.take_output() == (b"z", b"", 2, 0), "only what was read before the cut was over"
