"""Every payment backend passes the suite: ``lnd`` over two real Lightning nodes, ``btcpay``
against its protocol on loopback (no live server of either was used), ``manual`` as it is."""

import hashlib
import hmac
import json
import pathlib
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import payment_suite as suite
import pytest
from btcpay_rig import CHAIN, LIGHTNING, BtcpayServer
from lightning_rig import LightningRig, lightning_rig

from gristmill.ledger.payments.btcpay import BtcpayBackend, bitcoin_of, sats_of
from gristmill.ledger.payments.http import Server, read_secret
from gristmill.ledger.payments.interface import BackendDownError, BackendRefusedError
from gristmill.ledger.payments.lnd import LndBackend
from gristmill.ledger.payments.manual import Confirmations, ManualBackend
from gristmill.wire.errors import RemoteError
from gristmill.wire.payments import Paid

SECRET = b"callback secret"


def nobody() -> str:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def own_signature(invoice: str) -> tuple[dict[str, str], bytes]:
    body = json.dumps({"invoice": invoice}).encode()
    digest = hmac.new(SECRET, body, hashlib.sha256).hexdigest()
    return {"gristmill-sig": f"sha256={digest}"}, body


def server_of(lightning: LightningRig, macaroon: str = "") -> Server:
    headers = {"Grpc-Metadata-macaroon": macaroon or lightning.macaroon}
    return Server(lightning.url, headers, 30.0)


# ---------------------------------------------------------------- lnd


@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
def test_lnd(
    check: Callable[[Any], None], lightning: LightningRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = check.__name__.encode()  # other preimages for each check: one pair of nodes serves all
    backend = LndBackend(server_of(lightning), secret, SECRET)
    dead = LndBackend(Server(nobody(), {}, 1.0), secret, SECRET)
    if "expired" in check.__name__:  # real time passes: it is LND's
        monkeypatch.setattr(suite, "EXPIRY_MS", 1_000)

    def pay(invoice: str, msat: int) -> None:
        bolt11 = lightning.ask("GET", f"/v1/invoice/{invoice}")["payment_request"]
        preimage = lightning.pay(bolt11, msat)
        if preimage:
            assert hashlib.sha256(bytes.fromhex(preimage)).hexdigest() == invoice

    def expire(invoice: str) -> None:
        made = lightning.ask("GET", f"/v1/invoice/{invoice}")
        end_s = int(made["creation_date"]) + int(made["expiry"]) + 1
        threading.Event().wait(max(0.0, end_s - time.time()))

    check(suite.Bench(backend, lambda *_: None, pay, own_signature, expire, dead, False))


def test_a_lightning_payment_brings_its_proof(lightning: LightningRig) -> None:
    backend = LndBackend(server_of(lightning), b"proof", SECRET)
    invoice = backend.create("pi1", 2_000_000, "500 credits", 60_000)
    assert invoice.reference.startswith("lnbcrt20u1")
    preimage = lightning.pay(invoice.reference)
    (paid,) = backend.look_up(invoice.backend_id).paid
    assert paid == Paid(invoice.backend_id, 2_000_000, bytes.fromhex(preimage))
    assert lightning.pay(invoice.reference) == "", "an invoice of LND is paid once"


def test_lnd_tells_of_payments_as_they_come(lightning: LightningRig) -> None:
    backend = LndBackend(server_of(lightning), b"hints", SECRET)
    hints = backend.hints(lambda: False)
    told: list[str] = []
    listener = threading.Thread(target=lambda: told.append(next(hints)))
    listener.start()
    paid = []
    while listener.is_alive():  # until it listens: without an index LND tells of new ones only
        invoice = backend.create(f"pi{len(paid)}", 10_000, "credits", 60_000)
        assert lightning.pay(invoice.reference) and len(paid) < 100
        paid.append(invoice.backend_id)
        listener.join(0.1)
    assert told[0] in paid
    hints.close()
    later = backend.create("pi-later", 10_000, "credits", 60_000)
    lightning.pay(later.reference)  # while nobody listens: the index finds it
    assert later.backend_id in backend.hints(lambda: False)


def test_a_wrong_macaroon_is_a_refusal(lightning: LightningRig) -> None:
    backend = LndBackend(server_of(lightning, "ab" * 16), b"x", SECRET)
    with pytest.raises(BackendRefusedError, match="signature mismatch"):
        backend.create("pi1", 1_000, "credits", 60_000)


def test_the_nodes_end_with_their_rig() -> None:
    with lightning_rig() as rig:
        pid = rig.pid
        assert rig.ask("GET", "/v1/getinfo")["num_active_channels"] == 1
    found = subprocess.run(["ps", "-p", str(pid)], capture_output=True, check=False)
    assert found.returncode != 0


# ---------------------------------------------------------------- btcpay


def backend_of(server: BtcpayServer, **more: Any) -> BtcpayBackend:
    headers = {"Authorization": f"token {more.get('key', server.api_key)}"}
    api = Server(more.get("url", server.url), headers, more.get("timeout_s", 30.0))
    return BtcpayBackend(api, server.store, (CHAIN, LIGHTNING), server.webhook_secret.encode())


@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
def test_btcpay(check: Callable[[Any], None], btcpay: BtcpayServer) -> None:
    def signed(invoice: str) -> tuple[dict[str, str], bytes]:
        event = {"type": "InvoiceSettled", "storeId": btcpay.store, "invoiceId": invoice}
        body, headers = btcpay.signed(event)
        return {name.lower(): value for name, value in headers.items()}, body

    check(
        suite.Bench(
            backend_of(btcpay),
            lambda *_: None,
            lambda invoice, sats: btcpay.pay(invoice, sats, CHAIN) and None,
            signed,
            lambda _: btcpay.pass_time(suite.EXPIRY_MS / 1000 + 1),
            backend_of(btcpay, url=nobody(), timeout_s=1.0),
            True,
        )
    )


def test_btcpay_offers_both_ways(btcpay: BtcpayServer) -> None:
    backend = backend_of(btcpay)
    invoice = backend.create("pi1", 123_456, "credits", 900_000)
    lines = dict(line.split(" ", 1) for line in invoice.reference.splitlines())
    assert set(lines) == {CHAIN, LIGHTNING, "checkout"}
    assert lines[CHAIN].endswith("?amount=0.00123456")
    btcpay.pay(invoice.backend_id, 123_456)
    assert backend.look_up(invoice.backend_id).received == 123_456


def test_a_payment_without_its_blocks_is_not_final(btcpay: BtcpayServer) -> None:
    backend = backend_of(btcpay)
    invoice = backend.create("pi1", 500, "credits", 900_000)
    payment = btcpay.pay(invoice.backend_id, 500, CHAIN, is_final=False)
    btcpay.pass_time(901)
    seen = backend.look_up(invoice.backend_id)
    assert (seen.state, seen.paid) == ("processing", [])
    btcpay.confirm(invoice.backend_id, payment)
    seen = backend.look_up(invoice.backend_id)
    assert (seen.state, seen.paid) == ("closed", [Paid(payment, 500)])


def test_money_after_the_expiry_is_seen(btcpay: BtcpayServer) -> None:
    backend = backend_of(btcpay)
    invoice = backend.create("pi1", 500, "credits", 900_000)
    btcpay.pass_time(901)
    assert backend.look_up(invoice.backend_id).state == "closed"
    btcpay.pay(invoice.backend_id, 400, CHAIN)
    assert backend.look_up(invoice.backend_id).received == 400
    kinds = [one.event["type"] for one in btcpay.deliveries]
    assert kinds == [
        "InvoiceCreated", "InvoiceExpired", "InvoiceReceivedPayment", "InvoicePaymentSettled",
    ]  # fmt: skip
    assert btcpay.deliveries[-1].event["afterExpiration"] is True


def test_a_wrong_key_and_another_store_are_refusals(btcpay: BtcpayServer) -> None:
    with pytest.raises(BackendRefusedError, match="401"):
        backend_of(btcpay, key="wrong").create("pi1", 500, "credits", 900_000)
    backend = backend_of(btcpay)
    event = {"type": "InvoiceSettled", "storeId": "another", "invoiceId": "x"}
    body, headers = btcpay.signed(event)
    lower = {name.lower(): value for name, value in headers.items()}
    assert backend.verify_callback(lower, body) == ""


@pytest.mark.parametrize("text", ["-1", "1e-5", "", "NaN", "0.1.2", None, 1.5e-9, "1" * 13])
def test_what_is_no_amount_is_refused(text: Any) -> None:
    with pytest.raises(BackendRefusedError):
        sats_of(text, "value")


def test_amounts_survive() -> None:
    for sats in (1, 99_999_999, 100_000_000, 2_099_999_997_690_000):
        assert sats_of(bitcoin_of(sats), "value") == sats


# ---------------------------------------------------------------- manual


@pytest.mark.parametrize("check", suite.CHECKS, ids=lambda check: check.__name__)
def test_manual(check: Callable[[Any], None]) -> None:
    intents: dict[str, Confirmations] = {}
    now = [1_800_000_000_000]

    def intend(intent: str, amount: int) -> None:
        intents.setdefault(intent, Confirmations(amount, now[0] + suite.EXPIRY_MS, []))

    def pay(intent: str, amount: int) -> None:
        intents[intent].paid.append(Paid(f"{intent}/{len(intents[intent].paid)}", amount))

    def expire(_: str) -> None:
        now[0] += suite.EXPIRY_MS

    text = "Transfer {amount} {unit}, with the words {intent}."
    backend = ManualBackend("cents", text, intents.get, lambda: now[0], SECRET)
    check(suite.Bench(backend, intend, pay, own_signature, expire, None, True))


# ---------------------------------------------------------------- what all of them stand on


def test_a_server_that_drips_is_cut_off() -> None:
    """A byte at a time would keep a socket's own time-out from ever passing."""
    listener = socket.create_server(("127.0.0.1", 0))
    is_over = threading.Event()

    def drip() -> None:
        peer, _ = listener.accept()
        with peer:
            peer.recv(65_536)
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            while not is_over.wait(0.05):
                try:
                    peer.sendall(b" ")
                except OSError:
                    return

    thread = threading.Thread(target=drip)
    thread.start()
    server = Server(f"http://127.0.0.1:{listener.getsockname()[1]}", {}, 0.5)
    began = time.monotonic()
    with pytest.raises(BackendDownError, match="timed out"):
        server.ask("GET", "/")
    assert time.monotonic() - began < 5
    is_over.set()
    thread.join()
    listener.close()


def test_a_credential_never_travels_in_clear() -> None:
    with pytest.raises(RemoteError, match="loopback only") as caught:
        Server("http://btcpay.example.org", {}, 1.0)
    assert caught.value.code == "NOT_LOOPBACK"
    with pytest.raises(RemoteError):
        Server("ftp://127.0.0.1", {}, 1.0)


def test_a_secret_that_others_can_read_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "macaroon"
    path.write_bytes(b"\x02secret")
    path.chmod(0o640)
    with pytest.raises(RemoteError, match="mode 0640"):
        read_secret(path, "macaroon")
    path.chmod(0o600)
    assert read_secret(path, "macaroon") == b"\x02secret"
    with pytest.raises(RemoteError, match="cannot be read"):
        read_secret(tmp_path / "none", "macaroon")
