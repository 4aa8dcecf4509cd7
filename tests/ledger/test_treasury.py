"""The real ledger and the real treasury: purchases by every backend, races, kills, late money."""

import hashlib
import hmac
import http.client
import json
import os
import pathlib
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from btcpay_rig import CHAIN, BtcpayServer
from grid_rig import until
from lightning_rig import LightningRig

from gristmill.wire import payments as wire
from gristmill.wire.errors import RemoteError
from gristmill.wire.ledger import LedgerAnswer, LedgerRefused

SECRET = b"a secret of hooks"


class Shop:
    """A ledger, its treasury, and a customer."""

    def __init__(self, ledger: Any, folder: pathlib.Path) -> None:
        self.ledger = ledger
        self.folder = folder
        self.process: subprocess.Popen[str] | None = None
        self.config: dict[str, dict[str, Any]] = {"manual": {"instructions": "pay {amount} {unit}"}}
        self.listen = "http://127.0.0.1:0"
        self.port = 0
        self._request = 100

    def secret(self, name: str, content: bytes) -> str:
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_bytes(content)
        return str(path)

    def start(self, *more: str) -> "Shop":
        self.config["manual"]["callback_secret_file"] = self.secret("hooks", SECRET)
        lines = []
        for table, values in self.config.items():
            lines.append(f"[{table}]")
            lines += [f"{name} = {json.dumps(value)}" for name, value in values.items()]
        config = self.folder / "treasury.toml"
        config.write_text("\n".join(lines))
        readable, writable = os.pipe()
        command = [sys.executable, "-P", "-m", "gristmill.ledger.payments"]
        command += ["--state", str(self.folder / "treasury"), "--ledger", self.ledger.address]
        command += ["--config", str(config), "--listen", self.listen]
        command += ["--reconcile-s", "0.2", "--ready-fd", str(writable), *more]
        self.process = subprocess.Popen(
            command, pass_fds=[writable], stderr=subprocess.PIPE, text=True
        )
        os.close(writable)
        said = os.read(readable, 64)
        os.close(readable)
        assert said == b"READY\n", self.process.communicate(timeout=10)
        assert self.process.stderr is not None
        line = next(line for line in self.process.stderr if line.startswith("ready "))
        address = line.split()[-1]
        self.port = int(address.rpartition(":")[2]) if "http" in address else 0
        self.drain = threading.Thread(target=self.process.stderr.read)
        self.drain.start()
        return self

    def stop(self, kill: bool = False) -> int:
        assert self.process is not None
        self.process.kill() if kill else self.process.terminate()
        code = self.process.wait(20)
        self.drain.join()
        self.process.stderr.close()  # type: ignore[union-attr]
        self.process = None
        return code

    def ask(self, message: Any, kind: Any = wire.IntentView) -> Any:
        self._request += 1
        answer = self.ledger.ask(msgspec.structs.replace(message, request=self._request))
        while isinstance(answer, LedgerAnswer | LedgerRefused) and answer.request != self._request:
            answer = self.ledger.receive()
        if isinstance(answer, LedgerRefused):
            raise RemoteError(answer.code, answer.message)
        return msgspec.msgpack.decode(answer.body, type=kind)

    def offer(self, backend: str) -> wire.Offer:
        offers: list[wire.Offer] = self.ask(wire.AskOffers(0), wire.OffersAnswer).offers
        return next(offer for offer in offers if offer.backend == backend)

    def buy(self, backend: str, amount: int = 10_000_000, key: str = "k") -> wire.IntentView:
        """An intent with its reference."""
        price = wire.price_of(self.offer(backend), amount)
        made: wire.IntentView = self.ask(
            wire.CreateIntent(0, "ann", key, backend, amount, price.price, price.fee)
        )
        return self.await_(made.intent, lambda view: view.reference)

    def view(self, intent: str) -> wire.IntentView:
        found: list[wire.IntentView] = self.ask(
            wire.AskIntents(0, "", intent), list[wire.IntentView]
        )
        return found[0]

    def await_(self, intent: str, condition: Callable[[Any], Any]) -> wire.IntentView:
        def look() -> Any:
            view = self.view(intent)
            return view if condition(view) else None

        found: wire.IntentView = until(f"{intent}", look)
        return found

    def settled(self, intent: str) -> wire.IntentView:
        return self.await_(intent, lambda view: view.state == "settled")

    def balance(self, name: str = "tenant:ann") -> int:
        posted: int = self.ledger.accounts().get(name, (0, 0))[0]
        return posted

    def post(self, path: str, body: bytes, headers: dict[str, str]) -> int:
        """A callback; its status."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", path, body, headers)
            return connection.getresponse().status
        finally:
            connection.close()


def signed(invoice: str, **more: Any) -> tuple[bytes, dict[str, str]]:
    body = json.dumps({"invoice": invoice, **more}).encode()
    digest = hmac.new(SECRET, body, hashlib.sha256).hexdigest()
    return body, {"Gristmill-Sig": f"sha256={digest}"}


@pytest.fixture
def shop(ledger: Any, tmp_path: pathlib.Path) -> Iterator[Shop]:
    ledger.start()
    made = Shop(ledger, tmp_path)
    yield made
    if made.process is not None:
        made.stop(kill=True)


def with_lightning(shop: Shop, lightning: LightningRig, **more: Any) -> Shop:
    macaroon = shop.secret("macaroon", bytes.fromhex(lightning.macaroon))
    hooks = shop.secret("hooks", SECRET)
    shop.config["lnd"] = {
        "url": lightning.url, "macaroon_file": macaroon, "callback_secret_file": hooks, **more,
    }  # fmt: skip
    return shop


def with_btcpay(shop: Shop, btcpay: BtcpayServer, **more: Any) -> Shop:
    shop.config["btcpay"] = {
        "url": btcpay.url,
        "store": btcpay.store,
        "key_file": shop.secret("btcpay-key", btcpay.api_key.encode()),
        "webhook_secret_file": shop.secret("btcpay-hook", btcpay.webhook_secret.encode()),
        "ucredits_per_unit": 1_000,
        **more,
    }
    return shop


# ---------------------------------------------------------------- a purchase


def test_a_lightning_purchase(shop: Shop, lightning: LightningRig) -> None:
    with_lightning(shop, lightning, fee_ppm=10_000).start()
    view = shop.buy("lnd", 10_000_000)
    assert (view.state, view.price, view.fee, view.unit) == ("created", 10_000, 100, "msat")
    wire.check_reference(view, view.ledger_key)
    for change in ({"amount_ucredits": 1}, {"expires_ms": 5}, {"tenant": "bob"}, {"price": 1}):
        forged = msgspec.structs.replace(view, **change)
        with pytest.raises(RemoteError, match="not signed"):
            wire.check_reference(forged, view.ledger_key)
    preimage = lightning.pay(view.reference)
    done = shop.settled(view.intent)
    (payment,) = done.payments
    assert payment.id == hashlib.sha256(bytes.fromhex(preimage)).hexdigest() == view.backend_id
    assert (payment.amount, done.credited_ucredits) == (10_100, 10_000_000)
    assert shop.balance() == 10_000_000 == -shop.balance("world")
    assert shop.stop() == 0


def test_an_on_chain_purchase_by_webhook(shop: Shop, btcpay: BtcpayServer) -> None:
    with_btcpay(shop, btcpay).start("--reconcile-s", "3000")
    btcpay.webhook_url = f"http://127.0.0.1:{shop.port}/callbacks/btcpay"
    view = shop.buy("btcpay")
    assert "bitcoin:" in view.reference and "lightning:" in view.reference
    payment = btcpay.pay(view.backend_id, view.due, CHAIN, is_final=False)
    event = btcpay.delivered("InvoiceReceivedPayment")
    assert event["invoiceId"] == view.backend_id and shop.view(view.intent).received == 0
    btcpay.confirm(view.backend_id, payment)
    assert shop.settled(view.intent).payments[0].id == payment
    assert shop.balance() == 10_000_000


def test_an_operator_confirms(shop: Shop) -> None:
    shop.start()
    view = shop.buy("manual", 50_000_000)
    assert (view.reference, view.due) == ("pay 5000 cents", 5_000)
    confirm = wire.ConfirmIntent(0, view.intent, 2_000, "transfer 77")
    assert (shop.ask(confirm).state, shop.balance("review")) == ("created", 20_000_000)
    shop.ask(confirm)
    assert shop.balance("review") == 20_000_000, "one ref is one payment"
    with pytest.raises(RemoteError, match="is now told as 2001"):
        shop.ask(msgspec.structs.replace(confirm, received=2_001))
    done = shop.ask(wire.ConfirmIntent(0, view.intent, 3_000, "transfer 78"))
    assert (done.state, shop.balance(), shop.balance("review")) == ("settled", 50_000_000, 0)
    with pytest.raises(RemoteError, match="there is no intent"):
        shop.ask(msgspec.structs.replace(confirm, intent="pi0"))


def test_nobody_confirms_what_a_look_up_tells(shop: Shop, btcpay: BtcpayServer) -> None:
    with_btcpay(shop, btcpay).start()
    view = shop.buy("btcpay")
    with pytest.raises(RemoteError, match="nobody's word") as caught:
        shop.ask(wire.ConfirmIntent(0, view.intent, view.due, "trust me"))
    assert caught.value.code == "FORBIDDEN" and shop.balance() == 0


# ---------------------------------------------------------------- callbacks


def test_200_racing_deliveries_are_one_mint(
    shop: Shop, btcpay: BtcpayServer, figures: Callable[..., None]
) -> None:
    """One settlement, 7 delivery ids, with and without a transaction's id, 16 threads."""
    with_btcpay(shop, btcpay).start("--reconcile-s", "0.05")
    view = shop.buy("btcpay")
    btcpay.pay(view.backend_id, view.due, CHAIN)
    base = {"type": "InvoiceSettled", "storeId": btcpay.store, "invoiceId": view.backend_id}

    def deliver(number: int) -> int:
        event: dict[str, Any] = {**base, "deliveryId": f"d{number % 7}"}
        if number % 2:
            event["payment"] = {"id": "some transaction"}
        body, headers = btcpay.signed(event)
        return shop.post("/callbacks/btcpay", body, headers)

    with ThreadPoolExecutor(16) as pool:
        statuses = Counter(pool.map(deliver, range(200)))
    assert statuses == {200: 200}
    done = shop.view(view.intent)
    assert (done.state, len(done.payments)) == ("settled", 1)
    assert shop.balance() == 10_000_000 == -shop.balance("world")
    assert len(shop.ask(wire.AskIntents(0, "ann"), list[wire.IntentView])) == 1
    figures(deliveries=200, mints=len(done.payments))


def test_callbacks_that_lie_are_refused(shop: Shop) -> None:
    shop.start()
    view = shop.buy("manual")
    body, headers = signed(view.intent)
    path = "/callbacks/manual"
    assert shop.post(path, body, headers) == 200
    assert shop.post(path, body, {}) == 401
    assert shop.post(path, body, {"Gristmill-Sig": "sha256=" + "0" * 64}) == 401
    assert shop.post(path, body.replace(b"pi", b"qi"), headers) == 401
    assert shop.post(path, body + b" ", headers) == 401
    assert shop.post("/callbacks/eth", body, headers) == 404
    assert shop.post("/", body, headers) == 404
    assert shop.post(path, b"x" * 20_000, headers) == 413
    assert shop.view(view.intent).state == "created" and shop.balance() == 0


def test_an_unknown_reference_is_kept_for_reconcile(shop: Shop) -> None:
    shop.start()
    for invoice in ("pi-of-nobody", ""):
        body, headers = signed(invoice, note="kept as it came")
        assert shop.post("/callbacks/manual", body, headers) == 200
    shop.stop()
    shop.ledger.end()
    import apsw

    db = apsw.Connection(str(shop.ledger.state / "ledger.db"))
    kept = list(db.execute("SELECT raw, verdict FROM observation WHERE source = 'callback'"))
    assert [verdict for _, verdict in kept] == ["unknown reference"] * 2
    assert all(b"kept as it came" in raw for raw, _ in kept)


def test_a_callback_is_not_the_truth(shop: Shop, btcpay: BtcpayServer) -> None:
    """Well signed, and it says another amount: the look-up counts."""
    with_btcpay(shop, btcpay).start()
    view = shop.buy("btcpay")
    event = {
        "type": "InvoiceSettled", "storeId": btcpay.store, "invoiceId": view.backend_id,
        "payment": {"id": "x", "value": "21.0", "status": "Settled"},
    }  # fmt: skip
    body, headers = btcpay.signed(event)
    assert shop.post("/callbacks/btcpay", body, headers) == 200
    assert (shop.view(view.intent).received, shop.balance()) == (0, 0)


def test_no_200_before_the_ledger_has_it(shop: Shop) -> None:
    shop.start("--look-up-s", "1")
    view = shop.buy("manual")
    body, headers = signed(view.intent)
    shop.ledger.kill()
    assert shop.post("/callbacks/manual", body, headers) == 503
    shop.ledger.start()
    assert until("again", lambda: shop.post("/callbacks/manual", body, headers) == 200)


# ---------------------------------------------------------------- time, kills


def test_late_money_is_credited(shop: Shop, btcpay: BtcpayServer) -> None:
    """Expired for the ledger, then ``InvoiceExpired`` and ``InvoicePaymentSettled``."""
    with_btcpay(shop, btcpay, expiry="60s").start("--sweep-s", "0.2")
    view = shop.buy("btcpay")
    cancel = wire.CancelIntent(0, "ann", view.intent)
    assert shop.ask(cancel).is_cancelling
    shop.await_(view.intent, lambda view: view.state == "cancelled")
    btcpay.pay(view.backend_id, view.due // 2, CHAIN)
    until("credited", lambda: shop.balance() == 5_000_000)
    late, first = shop.ask(wire.AskIntents(0, "ann"), list[wire.IntentView])
    assert (late.follows, late.state) == (first.intent, "settled")
    assert first.state == "cancelled"


def test_an_expiry_is_a_closed_invoice(shop: Shop, lightning: LightningRig) -> None:
    with_lightning(shop, lightning, expiry="1s").start()
    view = shop.buy("lnd")
    shop.await_(view.intent, lambda view: view.state == "expired")
    assert lightning.pay(view.reference) == "", "nothing can be paid for it any more"
    assert shop.balance() == 0


def test_a_purchase_survives_the_end_of_its_treasury(shop: Shop, lightning: LightningRig) -> None:
    """Killed while intents wait: paid behind its back, it finds it when it is back."""
    with_lightning(shop, lightning).start()
    view = shop.buy("lnd")
    shop.stop(kill=True)
    lightning.pay(view.reference)
    price = wire.price_of(shop.offer("lnd"), 5_000_000)
    waiting = shop.ask(wire.CreateIntent(0, "ann", "k2", "lnd", 5_000_000, price.price, price.fee))
    assert waiting.state == "created" and not waiting.reference
    shop.ledger.kill()
    shop.ledger.start()
    shop.start()
    assert shop.settled(view.intent).credited_ucredits == 10_000_000
    again = shop.await_(waiting.intent, lambda view: view.reference)
    assert again.reference.startswith("lnbcrt")


def test_a_dead_backend_blocks_nothing_else(shop: Shop, btcpay: BtcpayServer) -> None:
    with_btcpay(shop, btcpay, timeout="300ms").start()
    btcpay._server.shutdown()  # it takes connections and never answers
    price = wire.price_of(shop.offer("btcpay"), 10_000_000)
    stuck = shop.ask(
        wire.CreateIntent(0, "ann", "k9", "btcpay", 10_000_000, price.price, price.fee)
    )
    view = shop.buy("manual")
    shop.ask(wire.ConfirmIntent(0, view.intent, view.due, "cash"))
    assert shop.balance() == 10_000_000
    assert shop.view(stuck.intent).state == "created"
    assert not shop.view(stuck.intent).reference


def test_without_a_treasury_nothing_is_sold(shop: Shop) -> None:
    with pytest.raises(RemoteError, match="nobody sells credits by 'lnd'") as caught:
        shop.ask(wire.CreateIntent(0, "ann", "k", "lnd", 5_000_000, 5_000, 0))
    assert caught.value.code == "PAYMENTS_DOWN"


def test_an_operator_gives_an_underpayment_back(shop: Shop) -> None:
    shop.start()
    view = shop.buy("manual")
    shop.ask(wire.ConfirmIntent(0, view.intent, 1, "a cent"))
    with pytest.raises(RemoteError, match="pay the rest"):
        shop.ask(wire.CancelIntent(0, "ann", view.intent))
    done = shop.ask(wire.DecideIntent(0, view.intent, "refund", "sent back by post"))
    assert (done.state, done.decision) == ("refunded", "refund sent back by post")
    assert (shop.balance("review"), shop.balance("world")) == (0, 0)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ("[eth]\nrpc = 'x'", "no payment backend 'eth'; there are btcpay, lnd, manual"),
        ("[manual]\nunit = 'wei'", "manual.unit"),
        ("[manual]\namount_max = 0.5", "a float is not exact"),
        ("[manual]\nfee_ppm = -1\nexpiry = '0s'", "manual.fee_ppm"),
        ("[lnd]\nurl = 'https://x'", "lnd.macaroon_file"),
        ("[lnd]\nurl = 'http://example.org'\nmacaroon_file = '/dev/null'", "/dev/null"),
        ("not toml", "see docs/payments.md"),
    ],
)
def test_a_wrong_config_names_what_is_wrong(tmp_path: pathlib.Path, config: str, told: str) -> None:
    path = tmp_path / "treasury.toml"
    path.write_text(config)
    command = [sys.executable, "-P", "-m", "gristmill.ledger.payments", "--state", str(tmp_path)]
    command += ["--ledger", f"ipc://{tmp_path}/none", "--config", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode not in (0, 1) and told in done.stderr and "Traceback" not in done.stderr
