"""What the options of a listening socket must not allow."""

import pathlib
import subprocess
import sys

import pytest
import zmq

LISTENER = """
import sys, zmq
from gristmill.broker.ports import bind_router
socket = bind_router(zmq.Context(), sys.argv[1])
if sys.argv[2] == "pings":
    socket.close()
    socket = zmq.Context().socket(zmq.ROUTER)
    socket.setsockopt(zmq.HEARTBEAT_IVL, 1_000)
    socket.bind(sys.argv[1])
print("bound", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("kind", ["ours", "pings"])
def test_a_peer_that_floods_and_leaves_does_not_abort_the_process(
    kind: str, tmp_path: pathlib.Path
) -> None:
    """Input at its high-water mark, the peer gone, a heartbeat of ours due: libzmq 4.3.5 asserts.

    ``pings`` is a socket with that heartbeat, so that the test is seen to find it. When a release
    of libzmq makes it pass, listening sockets may have their heartbeats back.
    """
    address = f"ipc://{tmp_path}/s"
    command = [sys.executable, "-P", "-c", LISTENER, address, kind]
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1) as process:
        assert process.stdout and process.stdin
        assert process.stdout.readline() == b"bound\n"
        context = zmq.Context()
        peer = context.socket(zmq.DEALER)
        peer.setsockopt(zmq.SNDHWM, 0)
        peer.connect(address)
        for _ in range(30_000):
            peer.send(b"x" * 100)
        peer.close(linger=200)
        context.term()
        try:
            code = process.wait(3.0)  # two heartbeats and more
        except subprocess.TimeoutExpired:
            process.stdin.close()
            code = process.wait(10)
    assert code == (0 if kind == "ours" else -6)
