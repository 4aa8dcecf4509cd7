"""Bitcoin, on chain and by Lightning, by BTCPay Server's Greenfield API v1.

https://docs.btcpayserver.org/API/Greenfield/v1/: invoices, webhooks.

An invoice of ours has the intent's id as ``metadata.orderId`` and is looked for by it before it is
made. Amounts are satoshis here and decimal texts of bitcoin there, never floats; a Lightning
payment of a fraction of a satoshi counts rounded down. Payments count when BTCPay says
``Settled``: how many blocks that takes is the store's speed policy. An invoice that expired may
still be paid on chain; BTCPay then says ``InvoiceExpired`` first and ``InvoicePaymentSettled``
later.
"""

import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gristmill.ledger.payments.http import Server
from gristmill.ledger.payments.interface import (
    MEMO_CHARS_MAX,
    BackendDownError,
    BackendRefusedError,
    Invoice,
    Payment,
    check_signature,
    field_of,
)
from gristmill.wire.payments import Paid

SIGNATURE_HEADER = "btcpay-sig"
_SATS = 100_000_000
_MONITOR_MINUTES = 30 * 24 * 60  #: after its expiry BTCPay looks for payments so long
_DECIMAL = re.compile(r"(-?)(\d{1,12})(?:\.(\d{1,18}))?")
_OPEN, _CLOSED = ("New", "Processing"), ("Settled", "Expired", "Invalid")


class BtcpayBackend:
    """See the module's text.

    Args:
        server: its credential is the header ``Authorization: token KEY``; the key needs
            ``btcpay.store.cancreateinvoice``, ``canviewinvoices`` and ``canmodifyinvoices``.
        store: the store's id.
        methods: payment methods that invoices offer, of bitcoin only; empty for the store's own.
        webhook_secret: of the store's webhook.
    """

    name, unit = "btcpay", "sat"
    has_hints = False

    def __init__(
        self, server: Server, store: str, methods: tuple[str, ...], webhook_secret: bytes
    ) -> None:
        self._server = server
        self._store = store
        self._methods = methods
        self._webhook_secret = webhook_secret
        self._base = f"/api/v1/stores/{urllib.parse.quote(store, safe='')}/invoices"

    def create(self, intent: str, amount: int, memo: str, expiry_ms: int) -> Invoice:
        """See ``PaymentBackend``."""
        found = self._search(intent)
        if found is None:
            checkout: dict[str, Any] = {
                "expirationMinutes": max(1, -(-expiry_ms // 60_000)),
                "monitoringMinutes": _MONITOR_MINUTES,
                "paymentTolerance": 0,
            }
            if self._methods:
                checkout["paymentMethods"] = list(self._methods)
            asked = {
                "amount": bitcoin_of(amount),
                "currency": "BTC",
                "metadata": {"orderId": intent, "itemDesc": memo[:MEMO_CHARS_MAX]},
                "checkout": checkout,
            }
            try:
                found = self._object(*self._server.ask("POST", self._base, asked)[:2])
            except BackendDownError:
                if (found := self._search(intent)) is None:
                    raise
        has = sats_of(found.get("amount"), "amount")
        if has != amount or found.get("currency") != "BTC":
            told = f"the invoice of {intent} is of {found.get('amount')} {found.get('currency')}"
            raise BackendRefusedError(f"{told}, not of {bitcoin_of(amount)} BTC")
        return self._invoice(found)

    def find(self, intent: str) -> Invoice | None:
        """See ``PaymentBackend``."""
        found = self._search(intent)
        return None if found is None else self._invoice(found)

    def _search(self, intent: str) -> dict[str, Any] | None:
        query = urllib.parse.urlencode({"orderId": intent})
        status, answer, _ = self._server.ask("GET", f"{self._base}?{query}")
        if status != 200 or not isinstance(answer, list):
            raise _failure(status, answer)
        for one in answer:
            if isinstance(one, dict) and (one.get("metadata") or {}).get("orderId") == intent:
                return one
        return None

    def _invoice(self, found: dict[str, Any]) -> Invoice:
        id_ = str(found["id"])
        lines = [
            f"{_method(one)} {one.get('paymentLink') or one.get('destination')}"
            for one in self._get(id_, "/payment-methods")[0]
            if one.get("activated", True)
        ]
        if found.get("checkoutLink"):
            lines.append(f"checkout {found['checkoutLink']}")
        expires_s = found.get("expirationTime")
        if not isinstance(expires_s, int) or not lines:
            raise BackendRefusedError(f"the invoice {id_} has no expiry, or no way to be paid")
        return Invoice(id_, "\n".join(lines), expires_s * 1000)

    def _get(self, backend_id: str, more: str = "") -> tuple[Any, bytes]:
        path = f"{self._base}/{urllib.parse.quote(backend_id, safe='')}{more}"
        status, answer, raw = self._server.ask("GET", path)
        wanted = list if more else dict
        if status != 200 or not isinstance(answer, wanted):
            raise _failure(status, answer)
        return answer, raw

    @staticmethod
    def _object(status: int, answer: Any) -> dict[str, Any]:
        if status != 200 or not isinstance(answer, dict) or "id" not in answer:
            raise _failure(status, answer)
        return answer

    def look_up(self, backend_id: str) -> Payment:
        """See ``PaymentBackend``."""
        invoice, raw = self._get(backend_id)
        if invoice.get("storeId", self._store) != self._store:
            raise BackendRefusedError(f"the invoice {backend_id} is of another store")
        status = invoice.get("status")
        if status not in _OPEN + _CLOSED:
            raise BackendRefusedError(f"the invoice {backend_id} is {status!r:.40}")
        methods, more = self._get(backend_id, "/payment-methods")
        paid = []
        is_processing = status == "Processing"
        for method in methods:
            for one in method.get("payments") or ():
                if one.get("status") == "Processing":
                    is_processing = True
                elif one.get("status") == "Settled":
                    if method.get("currency", method.get("cryptoCode", "BTC")) != "BTC":
                        told = f"a payment of {backend_id} by {_method(method)} is not bitcoin"
                        raise BackendRefusedError(told)
                    paid.append(Paid(str(one["id"]), sats_of(one.get("value"), "value")))
        state = "closed" if status in _CLOSED else "open"
        return Payment("processing" if is_processing else state, paid, raw + b"\n" + more)  # type: ignore[arg-type]

    def cancel(self, backend_id: str) -> None:
        """See ``PaymentBackend``: BTCPay calls it marking an invoice as invalid."""
        path = f"{self._base}/{urllib.parse.quote(backend_id, safe='')}/status"
        status, answer, _ = self._server.ask("POST", path, {"status": "Invalid"})
        if status != 200 and self.look_up(backend_id).state == "open":
            raise _failure(status, answer)

    def verify_callback(self, headers: Mapping[str, str], body: bytes) -> str:
        """See ``PaymentBackend``: ``BTCPay-Sig`` over the raw body."""
        check_signature(self._webhook_secret, headers.get(SIGNATURE_HEADER, ""), body)
        return field_of(body, "invoiceId") if field_of(body, "storeId") == self._store else ""

    def hints(self, is_stopping: Callable[[], bool]) -> Iterator[str]:
        """See ``PaymentBackend``: its webhook is what it has."""
        return iter(())


def bitcoin_of(sats: int) -> str:
    """Satoshis as a decimal of bitcoin.

    >>> bitcoin_of(1), bitcoin_of(250_000_000)
    ('0.00000001', '2.50000000')
    """
    return f"{sats // _SATS}.{sats % _SATS:08d}"


def sats_of(text: Any, what: str) -> int:
    """Satoshis of a decimal text, rounded down.

    Raises:
        BackendRefusedError: it is none.

    >>> sats_of("0.00001234567", "value")
    1234
    """
    match = _DECIMAL.fullmatch(str(text))
    if match is None or match[1]:
        raise BackendRefusedError(f"{what} is {text!r:.40}, which is no amount of bitcoin")
    return int(match[2]) * _SATS + int((match[3] or "").ljust(8, "0")[:8])


def _method(found: Any) -> str:
    """``paymentMethodId`` since BTCPay 2.0, ``paymentMethod`` before."""
    return str(found.get("paymentMethodId") or found.get("paymentMethod") or "?")


def _failure(status: int, answer: Any) -> Exception:
    if status >= 500:
        return BackendDownError(f"BTCPay: status {status}")
    told = answer.get("message") if isinstance(answer, dict) else None
    return BackendRefusedError(f"BTCPay: {told or 'no reason'} (status {status})")
