"""The floor: raw ZeroMQ and msgspec with the same values and a state byte per item, no more.

client DEALER -> ROUTER broker ROUTER -> two worker processes (decode, call a no-op per item,
encode) and back, 1,000 items a message. No journal, no jails, no bill, no retries: nothing can
be faster in Python that keeps a state per item.
"""

import array
import multiprocessing
import os
import socket
import tempfile
import time
from typing import Any

import msgspec
import zmq

ITEMS = 1_000
CREDIT = 3
WINDOW = 64
FRAME_BYTES = 256 << 10  #: of values that share a frame; with 384, as ours, it is as fast


def _decoder(kind: str) -> Any:
    if kind == "tuples":
        return msgspec.msgpack.Decoder(list[tuple[int, str]]).decode

    def column(frame: bytes) -> Any:
        values = array.array("q")
        values.frombytes(frame)
        return values

    return column


def _encode(kind: str, values: Any) -> bytes:
    return (
        msgspec.msgpack.encode(values) if kind == "tuples" else array.array("q", values).tobytes()
    )


def _broker(front_address: str, back_address: str, count: int, each: int = ITEMS) -> None:
    context = zmq.Context()
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.ROUTER)
    front.bind(front_address)
    back.bind(back_address)
    state, client = bytearray(count), b""
    todo: list[tuple[bytes, bytes]] = []
    idle: list[bytes] = []
    poller = zmq.Poller()
    poller.register(front, zmq.POLLIN)
    poller.register(back, zmq.POLLIN)
    while True:
        ready = dict(poller.poll())
        if front in ready:
            client, first, body = front.recv_multipart()
            if not first:
                for worker in set(idle):
                    back.send_multipart([worker, b"", b""])
                break
            todo.append((first, body))
        if back in ready:
            message = back.recv_multipart()
            if len(message) == 2:
                idle += [message[0]] * CREDIT
            else:
                at = int.from_bytes(message[1], "little")
                state[at : at + each] = b"\2" * min(each, count - at)
                front.send_multipart([client, message[1], message[2]])
                idle.append(message[0])
        while todo and idle:
            first, body = todo.pop()
            at = int.from_bytes(first, "little")
            state[at : at + each] = b"\1" * min(each, count - at)
            back.send_multipart([idle.pop(0), first, body])
    assert state == b"\2" * count
    time.sleep(0.2)  # the two farewells leave before the context does


def no_op(value: Any) -> Any:
    """The subtask of every throughput scenario."""
    return value


def _worker(address: str, kind: str) -> None:
    socket = zmq.Context().socket(zmq.DEALER)
    socket.connect(address)
    socket.send_multipart([b"ready"])
    decode = _decoder(kind)
    while True:
        first, body = socket.recv_multipart()
        if not first:
            return
        out = [no_op(value) for value in decode(body)]
        socket.send_multipart([first, _encode(kind, out)])


def echo(kind: str, values: list[Any]) -> float:
    """Seconds to send all values through two no-op workers and have them back, compared."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        front, back = f"ipc://{folder}/front", f"ipc://{folder}/back"
        processes = [
            context.Process(target=_broker, args=(front, back, len(values))),
            *(context.Process(target=_worker, args=(back, kind)) for _ in range(2)),
        ]
        for process in processes:
            process.start()
        socket = zmq.Context().socket(zmq.DEALER)
        socket.connect(front)
        time.sleep(0.5)
        decode = _decoder(kind)
        got: dict[int, Any] = {}
        sent = received = 0
        began = time.perf_counter()
        while received < len(values):
            while sent < len(values) and sent - received < WINDOW * ITEMS:
                body = _encode(kind, values[sent : sent + ITEMS])
                socket.send_multipart([sent.to_bytes(8, "little"), body])
                sent += ITEMS
            first, body = socket.recv_multipart()
            got[int.from_bytes(first, "little")] = decode(body)
            received += ITEMS
        seconds = time.perf_counter() - began
        assert [value for at in sorted(got) for value in got[at]] == values
        socket.send_multipart([b"", b""])
        for process in processes:
            process.join(5)
            assert process.exitcode == 0
    return seconds


def _carrier(address: str, out_bytes: int) -> None:
    """A worker of ``carry``: each frame is a list of values, or one large one."""
    socket = zmq.Context().socket(zmq.DEALER)
    socket.connect(address)
    socket.send_multipart([b"ready"])
    decode, encode = msgspec.msgpack.Decoder(list[bytes]).decode, msgspec.msgpack.Encoder().encode
    while True:
        first, frame = socket.recv_multipart(copy=False)
        if not first.bytes:
            return
        body = frame.buffer
        if len(body) > FRAME_BYTES:
            out: Any = frame if out_bytes < 0 else bytes(out_bytes)
        elif out_bytes > FRAME_BYTES:
            out = bytes(out_bytes)
        else:
            values = decode(body)
            out = encode(values if out_bytes < 0 else [bytes(out_bytes)] * len(values))
        socket.send_multipart([first, out], copy=False)


def carry(values: list[bytes], out_bytes: int = -1) -> float:
    """Seconds to send values through two workers and have answers back, in frames like ours.

    Values share frames of up to 256 KiB; a larger one has its own. ``out_bytes``: the size of each
    answer; negative sends the value itself back, compared.
    """
    size = max(1, len(values[0]), out_bytes)
    each = max(1, min(2_000, FRAME_BYTES // (size + 5)))
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        front, back = f"ipc://{folder}/front", f"ipc://{folder}/back"
        processes = [
            context.Process(target=_broker, args=(front, back, len(values), each)),
            *(context.Process(target=_carrier, args=(back, out_bytes)) for _ in range(2)),
        ]
        for process in processes:
            process.start()
        socket = zmq.Context().socket(zmq.DEALER)
        socket.connect(front)
        time.sleep(0.5)
        window = max(2, min(WINDOW * each, (256 << 20) // size))
        got: dict[int, bytes] = {}
        sent = received = 0
        began = time.perf_counter()
        while received < len(values):
            while sent < len(values) and sent - received < window:
                some = values[sent : sent + each]
                is_alone = len(some[0]) > FRAME_BYTES
                frame = some[0] if is_alone else msgspec.msgpack.encode(some)
                socket.send_multipart([sent.to_bytes(8, "little"), frame], copy=False)
                sent += each
            first, frame = socket.recv_multipart()
            got[int.from_bytes(first, "little")] = frame
            received += each
        seconds = time.perf_counter() - began
        is_one = size > FRAME_BYTES
        answers = [
            value
            for at in sorted(got)
            for value in ([got[at]] if is_one else msgspec.msgpack.decode(got[at]))
        ]
        assert answers == (values if out_bytes < 0 else [bytes(out_bytes)] * len(values))
        socket.send_multipart([b"", b""])
        for process in processes:
            process.join(5)
            assert process.exitcode == 0
    return seconds


def _agent(address: str, _: str) -> None:
    """A worker of two processes: each message goes to the other over a socket, and back."""
    ours, slots = socket.socketpair()
    slot = multiprocessing.get_context("fork").Process(target=_slot, args=(slots, ours))
    slot.start()
    slots.close()
    dealer = zmq.Context().socket(zmq.DEALER)
    dealer.connect(address)
    dealer.send_multipart([b"ready"])
    poller = zmq.Poller()
    poller.register(dealer, zmq.POLLIN)
    poller.register(ours, zmq.POLLIN)
    first = b""
    while True:
        ready = dict(poller.poll())
        if dealer in ready:
            first, body = dealer.recv_multipart()
            if not first:
                break
            ours.sendall(body)
        if ours.fileno() in ready:
            dealer.send_multipart([first, ours.recv(4096)])
    ours.close()
    slot.join()


def _slot(wire: socket.socket, other: socket.socket) -> None:
    other.close()  # else there would be no end to read
    decode = _decoder("tuples")
    while body := wire.recv(4096):
        wire.sendall(_encode("tuples", [no_op(value) for value in decode(body)]))


def serial_echo(count: int, is_chain: bool = False) -> list[float]:
    """Round trips in seconds, one at a time, through the same broker and one worker, sorted.

    ``is_chain``: the worker is two processes, as an agent and its slot are.
    """
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        front, back = f"ipc://{folder}/front", f"ipc://{folder}/back"
        processes = [
            context.Process(target=_broker, args=(front, back, count * ITEMS)),
            context.Process(target=_agent if is_chain else _worker, args=(back, "tuples")),
        ]
        for process in processes:
            process.start()
        dealer = zmq.Context().socket(zmq.DEALER)
        dealer.connect(front)
        time.sleep(0.5)
        body, times = msgspec.msgpack.encode([(1, "a")]), []
        for index in range(count):
            began = time.perf_counter()
            dealer.send_multipart([(index * ITEMS).to_bytes(8, "little"), body])
            dealer.recv_multipart()
            times.append(time.perf_counter() - began)
        dealer.send_multipart([b"", b""])
        for process in processes:
            process.join(5)
    return sorted(times)


def fsync_times(count: int) -> list[float]:
    """Seconds of a write and fdatasync of 4 KiB where the journal would be, sorted."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/x", "wb", buffering=0) as file:
            for _ in range(count):
                began = time.perf_counter()
                file.write(b"x" * 4096)
                os.fdatasync(file.fileno())
                times.append(time.perf_counter() - began)
    return sorted(times)
