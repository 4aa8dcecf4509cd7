"""What the ledger's process does about the chain: questions, and vouchers on to the settlement.

A voucher is the settlement's to judge and to keep: the ledger knows whose rental it is, and brings
the answer back. Nothing of it is kept here: who hears nothing says it again.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import msgspec

from gristmill.ledger import chain_rows
from gristmill.ledger.book import Book
from gristmill.ledger.core.chain_records import AnswerChain, PayoutRow
from gristmill.wire import chain
from gristmill.wire.errors import CODES, RemoteError
from gristmill.wire.ledger import LedgerAnswer, LedgerRefused

WAITING_MAX = 1_000  #: vouchers on their way; of the oldest the answer is lost

OfChain = chain.Question | chain.ShowVoucher | chain.VoucherRuling  #: moves nothing in the books
Send = Callable[[bytes, msgspec.Struct], None]
#: what only a settlement says: whoever said one last is it
_OF_SETTLEMENT = (chain.StateRental, chain.CommitPayouts, chain.StateRoot, chain.StateClaims)


class Rentals:
    """See the module's text.

    Args:
        send: to a peer; what cannot be sent is lost.
    """

    def __init__(self, book: Book, send: Send) -> None:
        self._book = book
        self._send = send
        self._settlement = b""
        self._last = 0
        self._waiting: OrderedDict[int, tuple[bytes, int]] = OrderedDict()

    def hear(self, peer: bytes, message: chain.Message) -> None:
        """Of everything about the chain, before anything else: who is the settlement."""
        if isinstance(message, _OF_SETTLEMENT):
            self._settlement = peer

    def answer(self, peer: bytes, message: OfChain) -> Any:
        """The body of an answer; None where it comes later, or there is none to this.

        Raises:
            RemoteError: ``UNKNOWN_RENTAL``, ``SETTLEMENT_DOWN``.
        """
        if isinstance(message, chain.VoucherRuling):
            self._bring(message)
        elif isinstance(message, chain.ShowVoucher):
            self._forward(peer, message)
        else:
            return chain_rows.answer(self._book.db, message)
        return None

    def _forward(self, peer: bytes, message: chain.ShowVoucher) -> None:
        tenant, is_ending = chain_rows.ending_of(self._book.db, message.rental)
        name = message.rental.hex()
        if tenant != message.tenant:
            raise RemoteError("UNKNOWN_RENTAL", f"{message.tenant} has no rental {name:.64}")
        if message.is_last and not is_ending:
            told = f"rental {name:.16}... was not ended: its jobs may still spend of it"
            raise RemoteError("RENTAL_BUSY", told)
        if not self._settlement:
            raise RemoteError("SETTLEMENT_DOWN", "no settlement has spoken to this ledger yet")
        self._last += 1
        self._waiting[self._last] = (peer, message.request)
        while len(self._waiting) > WAITING_MAX:
            self._waiting.popitem(last=False)
        spent = chain_rows.spent_of(self._book.db, message.rental)
        message = msgspec.structs.replace(message, request=self._last, spent=spent)
        self._send(self._settlement, message)

    def _bring(self, ruling: chain.VoucherRuling) -> None:
        peer, request = self._waiting.pop(ruling.request, (b"", 0))
        if ruling.code:
            code = ruling.code if ruling.code in CODES else "INTERNAL"
            self._send(peer, LedgerRefused(request, code, ruling.message))
        else:
            self._send(peer, LedgerAnswer(request, encoded(ruling.shown)))

    def report(self, peer: bytes, request: int, effect: AnswerChain) -> None:
        """Say what became of a message, after its commit."""
        if effect.code:
            self._send(peer, LedgerRefused(request, effect.code, effect.message))
            return
        body = effect.body
        told = chain_rows.payout_view(body) if isinstance(body, PayoutRow) else body
        self._send(peer, LedgerAnswer(request, encoded(told)))


def encoded(body: Any) -> msgspec.Raw:
    """A body of an answer."""
    return msgspec.Raw(msgspec.msgpack.encode(body))
