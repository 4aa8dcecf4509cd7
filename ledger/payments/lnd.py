"""Lightning by LND's REST.

https://lightning.engineering/api-docs/api/lnd/: add-invoice, lookup-invoice, subscribe-invoices,
and cancel-invoice of the sub-server ``invoices``.

The preimage of an invoice is an HMAC of the intent's id: whoever tries again asks for the same
payment hash, and LND has an invoice of a hash once. The hash is the invoice's id here.

An invoice of LND is paid once and whole: less than its amount fails on the way, and what was
settled or cancelled takes no more. What LND calls an expired invoice is cancelled by it.
"""

import base64
import hashlib
import hmac
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gristmill.ledger.payments.http import Server
from gristmill.ledger.payments.interface import (
    MEMO_CHARS_MAX,
    BackendDownError,
    BackendRefusedError,
    Invoice,
    Payment,
    invoice_in,
)
from gristmill.wire.payments import InvoiceState, Paid

_STATES: dict[str, InvoiceState] = {
    "OPEN": "open", "ACCEPTED": "processing", "SETTLED": "closed", "CANCELED": "closed",
}  # fmt: skip
_LOOK_S = 5.0


class LndBackend:
    """See the module's text.

    Args:
        server: its credential is the header ``Grpc-Metadata-macaroon``; the macaroon needs
            ``invoices:read`` and ``invoices:write``, and no more.
        secret: preimages are made of it; whoever has it can take payments that are on their way.
        callback_secret: of the callbacks that a hook of yours may send.
    """

    name, unit = "lnd", "msat"
    has_hints = True

    def __init__(self, server: Server, secret: bytes, callback_secret: bytes) -> None:
        self._server = server
        self._secret = secret
        self._callback_secret = callback_secret
        self._settle_index = 0

    def _preimage(self, intent: str) -> bytes:
        return hmac.new(self._secret, b"preimage\0" + intent.encode(), hashlib.sha256).digest()

    def create(self, intent: str, amount: int, memo: str, expiry_ms: int) -> Invoice:
        """See ``PaymentBackend``."""
        preimage = self._preimage(intent)
        asked = {
            "memo": memo[:MEMO_CHARS_MAX],
            "r_preimage": base64.b64encode(preimage).decode(),
            "value_msat": str(amount),
            "expiry": str(max(1, -(-expiry_ms // 1000))),
        }
        try:
            status, answer, _ = self._server.ask("POST", "/v1/invoices", asked)
        except BackendDownError:
            # The outcome is a question now, not a reason to ask for the same again.
            if (found := self.find(intent)) is None:
                raise
            return self._checked(intent, found, amount)
        found = self.find(intent)
        if found is None:
            raise BackendRefusedError(f"LND made no invoice: {_told(status, answer)}")
        return self._checked(intent, found, amount)

    def _checked(self, intent: str, invoice: Invoice, amount: int) -> Invoice:
        has = _number(self._get(invoice.backend_id)[0], "value_msat")
        if has != amount:
            told = f"the invoice of {intent} is of {has} msat, not {amount}"
            raise BackendRefusedError(told)
        return invoice

    def find(self, intent: str) -> Invoice | None:
        """See ``PaymentBackend``."""
        hash_ = hashlib.sha256(self._preimage(intent)).hexdigest()
        status, answer, _ = self._server.ask("GET", f"/v1/invoice/{hash_}")
        if status == 404:
            return None
        if status != 200:
            raise _failure(status, answer)
        expires_s = _number(answer, "creation_date") + _number(answer, "expiry")
        return Invoice(hash_, str(answer.get("payment_request", "")), expires_s * 1000)

    def _get(self, backend_id: str) -> tuple[dict[str, Any], bytes]:
        if len(backend_id) != 64 or not set(backend_id) <= set("0123456789abcdef"):
            raise BackendRefusedError(f"{backend_id!r:.80} is no payment hash")
        status, answer, raw = self._server.ask("GET", f"/v1/invoice/{backend_id}")
        if status != 200:
            raise _failure(status, answer)
        if not isinstance(answer, dict) or answer.get("state") not in _STATES:
            raise BackendRefusedError(f"an invoice of LND in no known state: {raw[:200]!r}")
        return answer, raw

    def look_up(self, backend_id: str) -> Payment:
        """See ``PaymentBackend``; a payment's proof is checked, its id is its hash."""
        answer, raw = self._get(backend_id)
        state = _STATES[answer["state"]]
        if answer["state"] != "SETTLED":
            return Payment(state, [], raw)
        try:
            preimage = base64.b64decode(str(answer.get("r_preimage", "")), validate=True)
        except ValueError:
            preimage = b""
        if hashlib.sha256(preimage).hexdigest() != backend_id:
            raise BackendRefusedError(f"{backend_id} is settled without its preimage")
        return Payment(state, [Paid(backend_id, _number(answer, "amt_paid_msat"), preimage)], raw)

    def cancel(self, backend_id: str) -> None:
        """See ``PaymentBackend``."""
        asked = {"payment_hash": base64.b64encode(bytes.fromhex(backend_id)).decode()}
        status, answer, _ = self._server.ask("POST", "/v2/invoices/cancel", asked)
        if status != 200 and self.look_up(backend_id).state == "open":
            raise _failure(status, answer)

    def verify_callback(self, headers: Mapping[str, str], body: bytes) -> str:
        """See ``PaymentBackend``: LND has no webhooks, a hook of yours may have."""
        return invoice_in(self._callback_secret, headers, body)

    def hints(self, is_stopping: Callable[[], bool]) -> Iterator[str]:
        """See ``PaymentBackend``; goes on after the last settled invoice that it told of.

        An index of 0 means *new ones only* to LND: what was settled before is found by look-ups.
        """
        path = f"/v1/invoices/subscribe?settle_index={self._settle_index}"
        for line in self._server.stream(path, is_stopping, _LOOK_S):
            told = line.get("result") if isinstance(line, dict) else None
            if not isinstance(told, dict) or told.get("state") != "SETTLED":
                continue
            self._settle_index = max(self._settle_index, _number(told, "settle_index"))
            yield base64.b64decode(str(told.get("r_hash", ""))).hex()


def _number(answer: Any, name: str) -> int:
    """A number that LND writes as text."""
    text = str(answer.get(name, "")) if isinstance(answer, dict) else ""
    if not (text.isascii() and text.isdigit()):
        raise BackendRefusedError(f"LND's answer has {name} = {text!r:.40}, which is no number")
    return int(text)


def _told(status: int, answer: Any) -> str:
    message = answer.get("message") if isinstance(answer, dict) else None
    return f"{message or 'no reason'} (status {status})"


def _failure(status: int, answer: Any) -> Exception:
    """LND answers 500 to a wrong macaroon, too: a reason makes it a refusal."""
    if status >= 500 and not (isinstance(answer, dict) and answer.get("message")):
        return BackendDownError(f"LND: status {status}")
    return BackendRefusedError(f"LND: {_told(status, answer)}")
