"""What a payment backend must do. tests/conformance/payment_suite.py is what each must pass.

A backend is used by one thread at a time, apart from ``verify_callback``, which any thread calls,
and ``hints``, which has a thread of its own.
Every call ends within its time-out: it returns, or raises one of the two errors here.
"""

import hashlib
import hmac
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import msgspec

from gristmill.wire.payments import InvoiceState, Paid

#: of callbacks that a backend without webhooks of its own takes: ``sha256=`` and hex, over the body
SIGNATURE_HEADER = "gristmill-sig"
MEMO_CHARS_MAX = 100


class BackendDownError(Exception):
    """No answer, or none that tells the outcome: nothing is known; look it up before a retry."""


class BackendRefusedError(Exception):
    """The backend answered, and said no: a wrong key, an invoice of another amount, a bad answer.

    People must look; trying again is allowed and useless.
    """


class CallbackRefusedError(Exception):
    """A callback without a good signature: answered with 401, nothing of it is kept."""


class Invoice(msgspec.Struct, frozen=True):
    """What a backend wants to be paid. ``reference``: BOLT11, addresses or instructions."""

    backend_id: str
    reference: str
    expires_ms: int


class Payment(msgspec.Struct, frozen=True):
    """What a backend says of an invoice: the truth, as far as there is one.

    ``paid``: every payment that is final, whatever came before. ``raw``: its answer as it came.
    """

    state: InvoiceState
    paid: list[Paid]
    raw: bytes = b""

    @property
    def received(self) -> int:
        """The sum of the payments, in the backend's minor unit."""
        return sum(one.amount for one in self.paid)


class PaymentBackend(Protocol):
    """One way to be paid.

    Attributes:
        name: what a person types after ``--with``.
        unit: its minor unit, of ``wire.payments.UNITS``: every amount here is a number of these.
        has_hints: it tells of payments by a stream.
    """

    name: str
    unit: str
    has_hints: bool

    def create(self, intent: str, amount: int, memo: str, expiry_ms: int) -> Invoice:
        """An invoice for an intent; the one that it made before, if it did.

        Raises:
            BackendRefusedError: also when that one is of another amount.
        """

    def find(self, intent: str) -> Invoice | None:
        """The invoice of an intent, if there is one."""

    def look_up(self, backend_id: str) -> Payment:
        """What became of an invoice.

        Raises:
            BackendRefusedError: it knows no such invoice.
        """

    def cancel(self, backend_id: str) -> None:
        """Take no more money for an invoice, as far as that can be; one that is paid stays paid."""

    def verify_callback(self, headers: Mapping[str, str], body: bytes) -> str:
        """The invoice that a callback is about; empty for one about something else.

        Args:
            headers: names in lower case.
            body: as it came: the signature is over these bytes.

        Raises:
            CallbackRefusedError: no signature, or a wrong one.
        """

    def hints(self, is_stopping: Callable[[], bool]) -> Iterator[str]:
        """Invoices as they are paid, as a stream; ends with the connection, at once for none."""


def check_signature(secret: bytes, given: str, body: bytes) -> None:
    """Return if ``given`` is ``sha256=`` and the HMAC of the body; in constant time.

    Raises:
        CallbackRefusedError: it is not.
    """
    wanted = "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()
    if not hmac.compare_digest(wanted.encode(), given.encode(errors="replace")):
        raise CallbackRefusedError("the callback has no good signature over its body")


def invoice_in(secret: bytes, headers: Mapping[str, str], body: bytes) -> str:
    """The invoice in ``{"invoice": "..."}``, signed as ``SIGNATURE_HEADER`` says."""
    check_signature(secret, headers.get(SIGNATURE_HEADER, ""), body)
    return field_of(body, "invoice")


def field_of(body: bytes, name: str) -> str:
    """A text of a JSON object; empty when there is none."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    value = found.get(name) if isinstance(found, dict) else None
    return value if isinstance(value, str) else ""
