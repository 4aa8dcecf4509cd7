"""Where vouchers come in: one message, one answer (docs/rfc/0006).

The folder of the socket is the door, as at the ledger's: whoever is in it may bring vouchers, and a
voucher is worth only what its client signed.
"""

from collections.abc import Callable

import msgspec
import zmq

from gristmill.ledger.settlement.core.vouchers import Voucher
from gristmill.wire.errors import RemoteError
from gristmill.wire.frames import Integer

FRAME_BYTES_MAX = 4_096
AT_ONCE_MAX = 1_000  #: messages that are answered before the next turn


class BringVoucher(msgspec.Struct, array_like=True, frozen=True, tag_field="type", tag=1):
    """``request``: comes back in the answer. Safe to say again."""

    request: Integer
    voucher: Voucher


class VoucherTaken(msgspec.Struct, array_like=True, frozen=True, tag_field="type", tag=64):
    """It is on disk."""

    request: int


class VoucherRefused(msgspec.Struct, array_like=True, frozen=True, tag_field="type", tag=65):
    """``code``: of wire/errors.py."""

    request: int
    code: str
    message: str
    hint: str


_decode = msgspec.msgpack.Decoder(BringVoucher).decode
_encode = msgspec.msgpack.Encoder().encode


class Door:
    """One ROUTER socket, used by one thread.

    Args:
        address: ``ipc:///path``; empty: nobody comes in.
        take: raises ``RemoteError`` for a voucher that it refuses.
    """

    def __init__(self, address: str, take: Callable[[Voucher], None]) -> None:
        self._take = take
        self._context = zmq.Context()
        self.socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX)
        if address:
            self.socket.bind(address)

    def serve(self) -> int:
        """Answer what has come; how many."""
        for number in range(AT_ONCE_MAX):
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return number
            try:
                asked = _decode(frames[-1])
            except (msgspec.DecodeError, ValueError):
                continue  # nothing that can be answered
            try:
                self._take(asked.voucher)
                answer: VoucherTaken | VoucherRefused = VoucherTaken(asked.request)
            except RemoteError as error:
                answer = VoucherRefused(asked.request, error.code, error.message, error.hint)
            self.socket.send_multipart([*frames[:-1], _encode(answer)])
        return AT_ONCE_MAX

    def close(self) -> None:
        """Nobody is answered any more."""
        self.socket.close(0)
        self._context.term()
