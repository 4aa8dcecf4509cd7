"""A hand-made ZMTP peer: what libzmq's own sockets would never send."""

import socket
import struct
import threading

GREETING = b"\xff" + bytes(8) + b"\x7f" + bytes([3, 0]) + b"NULL".ljust(20, b"\0") + bytes(32)
MORE, LONG, COMMAND = 1, 2, 4


def open_stream(address: str, timeout_s: float = 10.0) -> socket.socket:
    """A plain connection to where a ZeroMQ socket listens."""
    if address.startswith("ipc://"):
        stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        stream.settimeout(timeout_s)
        stream.connect(address.removeprefix("ipc://"))
        return stream
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout_s)


def greet(address: str) -> socket.socket:
    """A connection whose handshake as a DEALER is done."""
    stream = open_stream(address)
    stream.sendall(GREETING)
    got = b""
    while len(got) < len(GREETING):
        part = stream.recv(len(GREETING) - len(got))
        assert part, "the peer closed during the greeting"
        got += part
    ready = b"\x05READY" + _property(b"Socket-Type", b"DEALER") + _property(b"Identity", b"")
    stream.sendall(bytes([COMMAND, len(ready)]) + ready)
    return stream


def _property(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + struct.pack(">I", len(value)) + value


def frame(body: bytes, flags: int = 0) -> bytes:
    """One frame on the wire."""
    return bytes([flags | LONG]) + struct.pack(">Q", len(body)) + body


class Bomb:
    """A message without an end, from its own thread: frames with MORE set, for ever.

    ``sent_bytes``: how much the process took before it was gone.
    """

    FRAME = frame(b"x" * 400_000, MORE)

    def __init__(self, address: str) -> None:
        self.sent_bytes = 0
        self._stop = threading.Event()
        self._stream = greet(address)
        self._stream.settimeout(1.0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._stream.sendall(self.FRAME)
                self.sent_bytes += len(self.FRAME)
            except OSError:
                break
        self._stream.close()

    def wait(self, seconds: float) -> bool:
        """Until the process is gone; False when it still takes more."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def close(self) -> None:
        """Ends it."""
        self._stop.set()
        self._thread.join(10)
