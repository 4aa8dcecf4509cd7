"""Payment that a person confirms: a bank transfer, cash. The operator's word is what came.

The ledger keeps the confirmations (``gristmill credits confirm``); this looks them up there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

from gristmill.ledger.payments.interface import (
    BackendRefusedError,
    Invoice,
    Payment,
    invoice_in,
)
from gristmill.wire.payments import Paid


class Confirmations:
    """What the ledger has of one invoice: ``create`` was told of it, these payments came."""

    def __init__(self, amount: int, expires_ms: int, paid: Sequence[Paid]) -> None:
        self.amount, self.expires_ms, self.paid = amount, expires_ms, list(paid)


class ManualBackend:
    """See the module's text.

    Args:
        instructions: what a payer reads; ``{amount}``, ``{unit}`` and ``{intent}`` are filled in.
        confirmed: what the ledger has for an intent, None when it has no such intent.
        clock: ms since the epoch.
        callback_secret: of hints that a system of yours may send.
    """

    name = "manual"
    has_hints = False

    def __init__(
        self,
        unit: str,
        instructions: str,
        confirmed: Callable[[str], Confirmations | None],
        clock: Callable[[], int],
        callback_secret: bytes,
    ) -> None:
        self.unit = unit
        self._instructions = instructions
        self._confirmed = confirmed
        self._clock = clock
        self._callback_secret = callback_secret
        self._cancelled: set[str] = set()

    def create(self, intent: str, amount: int, memo: str, expiry_ms: int) -> Invoice:
        """See ``PaymentBackend``; its id is the intent's."""
        found = self._confirmed(intent)
        if found is None:
            raise BackendRefusedError(f"the ledger has no intent {intent}")
        if found.amount != amount:
            told = f"the invoice of {intent} is of {found.amount} {self.unit}, not {amount}"
            raise BackendRefusedError(told)
        return self._invoice(intent, found)

    def _invoice(self, intent: str, found: Confirmations) -> Invoice:
        text = self._instructions
        for name, value in (("amount", found.amount), ("unit", self.unit), ("intent", intent)):
            text = text.replace("{" + name + "}", str(value))
        return Invoice(intent, text, found.expires_ms)

    def find(self, intent: str) -> Invoice | None:
        """See ``PaymentBackend``."""
        found = self._confirmed(intent)
        return None if found is None else self._invoice(intent, found)

    def look_up(self, backend_id: str) -> Payment:
        """See ``PaymentBackend``; after its expiry an invoice is closed, as nobody says no."""
        found = self._confirmed(backend_id)
        if found is None:
            raise BackendRefusedError(f"the ledger has no intent {backend_id}")
        is_over = backend_id in self._cancelled or self._clock() >= found.expires_ms
        received = sum(one.amount for one in found.paid)
        return Payment("closed" if is_over or received >= found.amount else "open", found.paid)

    def cancel(self, backend_id: str) -> None:
        """See ``PaymentBackend``."""
        self._cancelled.add(backend_id)

    def verify_callback(self, headers: Mapping[str, str], body: bytes) -> str:
        """See ``PaymentBackend``."""
        return invoice_in(self._callback_secret, headers, body)

    def hints(self, is_stopping: Callable[[], bool]) -> Iterator[str]:
        """See ``PaymentBackend``: there are none."""
        return iter(())
