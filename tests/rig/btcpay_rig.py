"""A server on loopback that speaks BTCPay's Greenfield API v1, as far as the ledger uses it.

After BTCPay's own OpenAPI documents (swagger.template.invoices.json and .webhooks.json of
btcpayserver/btcpayserver). It is no BTCPay: addresses and Lightning invoices are made-up words and
nothing is paid on any chain; what it is faithful to is the protocol: paths, fields, decimals as
text, states, webhooks with ``BTCPay-Sig``, redelivery, and a late payment as ``InvoiceExpired``
first and ``InvoicePaymentSettled`` later.
"""

import contextlib
import dataclasses
import hashlib
import hmac
import http.server
import json
import re
import secrets
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

from grid_rig import until

SATS = Decimal(100_000_000)
CHAIN, LIGHTNING = "BTC-CHAIN", "BTC-LN"
REDELIVERY_S = (0.05, 0.2, 0.5, 0.5, 0.5, 0.5)  #: BTCPay: 10 s, 1 min, then up to 6 times 10 min


@dataclasses.dataclass
class PaymentMade:
    """One payment of an invoice."""

    id: str
    method: str
    sats: int
    status: str
    at: int
    is_late: bool


@dataclasses.dataclass
class InvoiceMade:
    """One invoice."""

    id: str
    sats: int
    order: str
    created: int
    expires: int
    methods: list[str]
    status: str = "New"
    additional: str = "None"
    payments: list[PaymentMade] = dataclasses.field(default_factory=list)

    def paid(self, *statuses: str) -> int:
        return sum(each.sats for each in self.payments if each.status in statuses)


@dataclasses.dataclass
class Delivery:
    """One event on its way to the webhook."""

    id: str
    event: dict[str, Any]
    http_code: int = 0


def text_of(sats: int) -> str:
    """As Greenfield writes an amount."""
    return str((Decimal(sats) / SATS).normalize())


class BtcpayServer:
    """Attributes: ``url``, ``store``, ``api_key``, ``webhook_secret``; what a payer does below."""

    def __init__(self) -> None:
        self.store, self.api_key = secrets.token_hex(16), secrets.token_hex(20)
        self.webhook_secret = secrets.token_hex(16)
        self.webhook_url = ""
        self.redelivers = True
        self.invoices: dict[str, InvoiceMade] = {}
        self.deliveries: list[Delivery] = []
        self.requests: list[str] = []
        self.skew_s = 0.0
        self._lock = threading.RLock()
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._main = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._main.start()

    def close(self) -> None:
        self._stopping.set()
        self._server.shutdown()
        self._server.server_close()
        self._main.join()
        for thread in self._threads:
            thread.join()

    def now(self) -> int:
        return int(time.time() + self.skew_s)

    # ------------------------------------------------------------ what payers and time do

    def pay(
        self, invoice: str, sats: int, method: str = LIGHTNING, *, is_final: bool = True
    ) -> str:
        """A payment; on chain it may be without its blocks yet. Its id."""
        with self._lock:
            found = self._aged(self.invoices[invoice])
            is_late = found.status in ("Expired", "Invalid", "Settled")
            if method == LIGHTNING and (is_late or sats != found.sats):
                raise ValueError("Lightning takes the exact amount, before the expiry")
            id_ = secrets.token_hex(32) + ("-0" if method == CHAIN else "")
            made = PaymentMade(id_, method, sats, "Processing", self.now(), is_late)
            found.payments.append(made)
            self._tell(found, "InvoiceReceivedPayment", made)
            if not is_late and found.paid("Processing", "Settled") >= found.sats:
                found.status = "Processing"
                self._tell(found, "InvoiceProcessing")
        if is_final:
            self.confirm(invoice, id_)
        return id_

    def confirm(self, invoice: str, payment: str) -> None:
        """The payment has its blocks."""
        with self._lock:
            found = self.invoices[invoice]
            made = next(each for each in found.payments if each.id == payment)
            made.status = "Settled"
            self._tell(found, "InvoicePaymentSettled", made)
            received = found.paid("Settled")
            if made.is_late:
                found.additional = "PaidLate" if received >= found.sats else "PaidPartial"
            elif received >= found.sats:
                found.status = "Settled"
                found.additional = "PaidOver" if received > found.sats else "None"
                self._tell(found, "InvoiceSettled", overPaid=received > found.sats)

    def pass_time(self, seconds: float) -> None:
        """The server's clock goes on; invoices expire."""
        with self._lock:
            self.skew_s += seconds
            for each in self.invoices.values():
                self._aged(each)

    def _aged(self, invoice: InvoiceMade) -> InvoiceMade:
        if invoice.status == "New" and self.now() >= invoice.expires:
            invoice.status = "Expired"
            partial = bool(invoice.paid("Settled", "Processing"))
            invoice.additional = "PaidPartial" if partial else "None"
            self._tell(invoice, "InvoiceExpired", partiallyPaid=partial)
        return invoice

    # ------------------------------------------------------------ webhooks

    def _tell(self, invoice: InvoiceMade, kind: str, made: Any = None, **more: Any) -> None:
        event = {
            "type": kind,
            "timestamp": self.now(),
            "storeId": self.store,
            "invoiceId": invoice.id,
            "metadata": {"orderId": invoice.order},
            **more,
        }
        if made is not None:
            event |= {"afterExpiration": made.is_late, "paymentMethodId": made.method}
            event["payment"] = self._payment(made)
        self._send(event, "")

    def _send(self, event: dict[str, Any], original: str) -> str:
        id_ = secrets.token_hex(11)
        head = {
            "deliveryId": id_,
            "webhookId": "wh1",
            "originalDeliveryId": original or id_,
            "isRedelivery": bool(original),
        }
        delivery = Delivery(id_, {**head, **event})
        self.deliveries.append(delivery)
        if self.webhook_url:
            thread = threading.Thread(target=self._deliver, args=(delivery,))
            self._threads.append(thread)
            thread.start()
        return id_

    def signed(self, event: dict[str, Any]) -> tuple[bytes, dict[str, str]]:
        """The body of an event and its headers."""
        body = json.dumps(event, separators=(",", ":")).encode()
        digest = hmac.new(self.webhook_secret.encode(), body, hashlib.sha256).hexdigest()
        return body, {"BTCPay-Sig": f"sha256={digest}", "Content-Type": "application/json"}

    def post(self, event: dict[str, Any]) -> int:
        """One delivery; the status that came back, 0 for none."""
        body, headers = self.signed(event)
        request = urllib.request.Request(self.webhook_url, body, headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        except OSError:
            return 0

    def _deliver(self, delivery: Delivery) -> None:
        delivery.http_code = self.post(delivery.event)
        for pause_s in REDELIVERY_S if self.redelivers else ():
            if delivery.http_code == 200 or self._stopping.wait(pause_s):
                return
            again = self.redeliver(delivery.id)
            delivery = next(each for each in self.deliveries if each.id == again)
            delivery.http_code = self.post(delivery.event)

    def redeliver(self, delivery: str) -> str:
        """As BTCPay does it: a new delivery that names the first one."""
        found = next(each for each in self.deliveries if each.id == delivery)
        id_ = secrets.token_hex(11)
        original = found.event["originalDeliveryId"]
        event = {**found.event, "deliveryId": id_, "originalDeliveryId": original}
        self.deliveries.append(Delivery(id_, {**event, "isRedelivery": True}))
        return id_

    def delivered(self, kind: str) -> dict[str, Any]:
        """The event of this kind that the webhook took; waits for it."""

        def look() -> Any:
            taken = [one.event for one in self.deliveries if one.http_code == 200]
            return next((event for event in taken if event["type"] == kind), None)

        found: dict[str, Any] = until(f"delivery of {kind}", look)
        return found

    # ------------------------------------------------------------ the API

    def answer(self, method: str, target: str, body: bytes, key: str) -> tuple[int, Any]:
        """Status and JSON."""
        parts = urllib.parse.urlsplit(target)
        self.requests.append(f"{method} {parts.path}")
        if key != f"token {self.api_key}":
            return 401, _problem("unauthenticated", "Authentication is required")
        head = f"/api/v1/stores/{self.store}/invoices"
        if not parts.path.startswith(head):
            return 403, _problem("missing-permission", "Insufficient API Permissions")
        rest = parts.path.removeprefix(head).strip("/").split("/")
        with self._lock:
            if rest == [""] and method == "POST":
                return self._create(json.loads(body))
            if rest == [""]:
                wanted = urllib.parse.parse_qs(parts.query).get("orderId", [])
                every = [i for i in self.invoices.values() if i.order in wanted or not wanted]
                return 200, [self._shown(each) for each in reversed(every)]
            invoice = self.invoices.get(rest[0])
            if invoice is None:
                return 404, _problem("invoice-not-found", "The invoice was not found")
            if rest[1:] == [] and method == "GET":
                return 200, self._shown(invoice)
            if rest[1:] == ["payment-methods"]:
                return 200, [self._method(invoice, each) for each in invoice.methods]
            if rest[1:] == ["status"] and method == "POST":
                self._aged(invoice)
                if invoice.status not in ("New", "Processing", "Expired"):
                    return 422, _problem("invalid", f"Status can't be marked: {invoice.status}")
                invoice.status, invoice.additional = "Invalid", "Marked"
                self._tell(invoice, "InvoiceInvalid", manuallyMarked=True)
                return 200, self._shown(invoice)
        return 404, _problem("not-found", "not found")

    def _create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        amount = asked.get("amount")
        if not isinstance(amount, str) or not re.fullmatch(r"\d+\.\d{1,8}", amount):
            return 422, [{"path": "amount", "message": "The amount should be a decimal text"}]
        checkout = asked.get("checkout") or {}
        methods = checkout.get("paymentMethods") or [CHAIN, LIGHTNING]
        id_ = secrets.token_urlsafe(16)[:22]
        created = self.now()
        self.invoices[id_] = made = InvoiceMade(
            id_,
            int(Decimal(amount) * SATS),
            (asked.get("metadata") or {}).get("orderId", ""),
            created,
            created + 60 * int(checkout.get("expirationMinutes", 15)),
            list(methods),
        )
        self._tell(made, "InvoiceCreated")
        return 200, self._shown(made)

    def _shown(self, invoice: InvoiceMade) -> dict[str, Any]:
        self._aged(invoice)
        return {
            "id": invoice.id,
            "storeId": self.store,
            "amount": text_of(invoice.sats),
            "paidAmount": text_of(invoice.paid("Settled", "Processing")),
            "currency": "BTC",
            "type": "Standard",
            "checkoutLink": f"{self.url}/i/{invoice.id}",
            "createdTime": invoice.created,
            "expirationTime": invoice.expires,
            "monitoringExpiration": invoice.expires + 86_400,
            "status": invoice.status,
            "additionalStatus": invoice.additional,
            "metadata": {"orderId": invoice.order},
            "archived": False,
        }

    def _method(self, invoice: InvoiceMade, method: str) -> dict[str, Any]:
        own = [each for each in invoice.payments if each.method == method]
        where = "bcrt1-not-an-address-" if method == CHAIN else "lnbcrt-not-an-invoice-"
        destination = where + hashlib.sha256(invoice.id.encode()).hexdigest()[:16]
        link = (
            f"bitcoin:{destination}?amount={text_of(invoice.sats)}"
            if method == CHAIN
            else f"lightning:{destination}"
        )
        received = invoice.paid("Settled", "Processing")
        return {
            "paymentMethodId": method,
            "currency": "BTC",
            "destination": destination,
            "paymentLink": link,
            "rate": "1.0",
            "paymentMethodPaid": text_of(sum(each.sats for each in own)),
            "totalPaid": text_of(received),
            "due": text_of(invoice.sats - received),
            "amount": text_of(invoice.sats),
            "paymentMethodFee": "0.0",
            "payments": [self._payment(each) for each in own],
            "activated": True,
            "additionalData": {},
        }

    @staticmethod
    def _payment(made: PaymentMade) -> dict[str, Any]:
        return {
            "id": made.id,
            "receivedDate": made.at,
            "value": text_of(made.sats),
            "fee": "0.0",
            "status": made.status,
            "destination": "",
        }


def _problem(code: str, message: str) -> dict[str, str]:
    return {"code": code, "message": message}


def _handler(server: BtcpayServer) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            key = self.headers.get("Authorization", "")
            status, said = server.answer(self.command, self.path, self.rfile.read(size), key)
            body = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@contextlib.contextmanager
def btcpay_server() -> Iterator[BtcpayServer]:
    """Started, and closed at the end."""
    server = BtcpayServer()
    try:
        yield server
    finally:
        server.close()
