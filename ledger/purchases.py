"""What the ledger's process says about purchases: offers, intents with their signed references.

What is sold is the treasury's to say, and kept in memory: a ledger without a treasury sells
nothing, and answers about what was bought.
"""

import time
from collections.abc import Callable

import msgspec
from nacl.signing import SigningKey

from gristmill.ledger import intent_rows
from gristmill.ledger.book import Book
from gristmill.ledger.core.intent_records import AnswerIntent, Intent, WakeTreasury
from gristmill.wire import payments as wire
from gristmill.wire.errors import RemoteError
from gristmill.wire.ledger import LedgerAnswer, LedgerRefused
from gristmill.wire.limits import NAME_CHARS_MAX

OFFERS_MAX = 20  #: backends of all treasuries together
SIGNED_MAX = 1_000  #: references of one answer that are signed; more do not fit it

Send = Callable[[bytes, msgspec.Struct], None]
Question = wire.Sell | wire.AskOffers | wire.AskIntents


class Purchases:
    """See the module's text.

    Args:
        book: its ``offers`` are kept here.
        key: signs references.
        send: to a peer; what cannot be sent is lost.
    """

    def __init__(self, book: Book, key: SigningKey, send: Send) -> None:
        self._book = book
        self._key = key
        self._public = key.verify_key.encode().hex()
        self._send = send
        self._sellers: dict[str, bytes] = {}  # backend -> the connection of its treasury

    def answer(self, peer: bytes, question: Question) -> msgspec.Struct | list[wire.IntentView]:
        """The body of an answer.

        Raises:
            RemoteError: the question makes no sense.
        """
        match question:
            case wire.Sell():
                self._sell(peer, question.offers)
                return wire.OffersAnswer(question.offers, self._public)
            case wire.AskOffers():
                return wire.OffersAnswer(list(self._book.offers.values()), self._public)
            case wire.AskIntents():
                now_ms = time.time_ns() // 1_000_000
                found = intent_rows.views(self._book.db, question, now_ms)
                if question.intent and not found:
                    message = f"there is no intent {question.intent!r:.40}"
                    raise RemoteError("UNKNOWN_INTENT", message)
                return [self._signed(view) for view in found]

    def _sell(self, peer: bytes, offers: list[wire.Offer]) -> None:
        wrong = []
        for offer in offers:
            if not 0 < len(offer.backend) <= NAME_CHARS_MAX or offer.unit not in wire.UNITS:
                wrong.append(f"{offer.backend!r:.40} in {offer.unit!r:.40}")
            elif min(offer.ucredits_per_unit, offer.amount_min_ucredits, offer.expiry_ms) < 1:
                wrong.append(f"{offer.backend} has a rate, a least amount or an expiry below 1")
            elif not 0 <= offer.fee_ppm <= 1_000_000:
                wrong.append(f"{offer.backend} has a fee of {offer.fee_ppm} millionths")
        kept = {name: of for name, of in self._book.offers.items() if self._sellers[name] != peer}
        if len(kept) + len(offers) > OFFERS_MAX:
            wrong.append(f"{len(kept) + len(offers)} backends; the limit is {OFFERS_MAX}")
        if wrong:
            raise RemoteError("INVALID_SPEC", "; ".join(wrong))
        self._book.offers = kept | {offer.backend: offer for offer in offers}
        self._sellers |= {offer.backend: peer for offer in offers}

    def _signed(self, view: wire.IntentView) -> wire.IntentView:
        if not view.reference:
            return view
        signature = wire.sign_reference(self._key, wire.statement_of_view(view))
        return msgspec.structs.replace(view, signature=signature, ledger_key=self._public)

    def report(self, peer: bytes, request: int, effect: AnswerIntent | WakeTreasury) -> None:
        """Say what became of a message, after its commit."""
        if isinstance(effect, WakeTreasury):
            self._wake(effect.intent)
        elif effect.code or effect.intent is None:
            self._send(peer, LedgerRefused(request, effect.code, effect.message))
        else:
            view = self._signed(intent_rows.view_by_id(self._book.db, effect.intent.id))
            body = msgspec.Raw(msgspec.msgpack.encode(view))
            self._send(peer, LedgerAnswer(request, body))

    def _wake(self, intent: Intent) -> None:
        seller = self._sellers.get(intent.backend)
        if seller is not None:
            self._send(seller, wire.IntentChanged(intent.id, intent.backend))


def wrong_text(message: msgspec.Struct) -> str:
    """Which text of a message no database keeps; empty for none."""
    for name in message.__struct_fields__:
        value = getattr(message, name)
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str) and "\0" in one:
                return f"{name} has a character that is no text, U+0000"
            if isinstance(one, msgspec.Struct) and (told := wrong_text(one)):
                return told
    return ""
