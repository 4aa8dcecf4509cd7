"""Rows of payments and credits: one grid with a treasury, money by every backend, and kills."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import apsw
import msgspec
import pytest
from btcpay_rig import CHAIN, BtcpayServer
from grid_rig import grids_of_a_test, gristmill, until
from lightning_rig import LightningRig

from gristmill.cli.grid import Grid
from gristmill.client import Client
from gristmill.client.errors import GridError
from gristmill.ledger.payments.settings import read_settings
from gristmill.ledger.settlement.settings import read_settings as settlement_settings
from gristmill.ledger.sqlite import SqliteBook
from gristmill.wire import payments as wire
from gristmill.wire.errors import RemoteError


def double(x: int) -> int:
    return 2 * x


def secret(path: pathlib.Path, content: bytes) -> str:
    path.touch(mode=0o600)
    path.write_bytes(content)
    return str(path)


def write_config(folder: pathlib.Path, **tables: dict[str, Any]) -> str:
    lines = []
    for table, values in tables.items():
        lines += [
            f"[{table}]",
            *(f"{name} = {json.dumps(value)}" for name, value in values.items()),
        ]
    path = folder / "payments.toml"
    path.write_text("\n".join(lines))
    return str(path)


@pytest.fixture
def make() -> Iterator[Callable[..., Grid]]:
    yield from grids_of_a_test()


@pytest.fixture(scope="module")
def shop(
    lightning: LightningRig, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Grid, LightningRig]]:
    """A grid that sells by Lightning and by hand, for rows that break nothing."""
    folder = tmp_path_factory.mktemp("payments")
    macaroon = secret(folder / "macaroon", bytes.fromhex(lightning.macaroon))
    lnd = {"url": lightning.url, "macaroon_file": macaroon, "fee_ppm": 10_000, "amount_max": "50"}
    config = write_config(folder, lnd=lnd, manual={})
    options = {"treasury": ["--reconcile-s", "0.5"]}
    with Grid.temporary(workers=1, slots=1, payments=config, options=options, fund="") as grid:
        yield grid, lightning


def bought(client: Client, backend: str, ucredits: int, key: str) -> wire.IntentView:
    """An intent with what is to be paid."""
    offer = next(one for one in client.offers().offers if one.backend == backend)
    view = client.buy(backend, ucredits, wire.price_of(offer, ucredits), key)
    return until("a reference", lambda: _with_reference(client, view.intent))  # type: ignore[no-any-return]


def _with_reference(client: Client, intent: str) -> wire.IntentView | None:
    (view,) = client.intents(intent)
    return view if view.reference else None


def settled(client: Client, intent: str) -> wire.IntentView:
    def look() -> wire.IntentView | None:
        (view,) = client.intents(intent)
        return view if view.state == "settled" else None

    return until(f"{intent} is settled", look)  # type: ignore[no-any-return]


def posted(client: Client, name: str) -> int:
    balance = client.balance(everyone=True)
    assert balance.sum_ucredits == 0
    return next((row.posted_ucredits for row in balance.accounts if row.name == name), 0)


# ---------------------------------------------------------------- buying


def test_c01_a_dead_adapter_leaves_intents_pending_and_work_goes_on(
    make: Callable[..., Grid], btcpay: BtcpayServer, tmp_path: pathlib.Path
) -> None:
    tables = {
        "btcpay": {
            "url": btcpay.url, "store": btcpay.store, "timeout": "300ms",
            "key_file": secret(tmp_path / "key", btcpay.api_key.encode()),
            "webhook_secret_file": secret(tmp_path / "hook", btcpay.webhook_secret.encode()),
        },
        "manual": {},
    }  # fmt: skip
    grid = make(payments=write_config(tmp_path, **tables))
    btcpay._server.shutdown()
    with Client(grid.address) as client:
        offer = next(one for one in client.offers().offers if one.backend == "btcpay")
        view = client.buy("btcpay", 5_000_000, wire.price_of(offer, 5_000_000), "k")
        assert list(client.map(double, range(50), tier="batch")) == [2 * x for x in range(50)]
        (view,) = client.intents(view.intent)
        assert (view.state, view.reference) == ("created", "")


def test_c02_price_fee_credits_and_expiry_are_shown_before_anything_is_bought(
    shop: tuple[Grid, LightningRig],
) -> None:
    grid, _ = shop
    before = len(json.loads(gristmill(grid, "credits", "list", "--json").stdout)["intents"])
    done = gristmill(grid, "credits", "buy", "2.5", "--with", "lnd")
    told = "2.5 credits by lnd: 2,500 msat and a fee of 25, together 2,525 msat; to be paid within"
    assert told in done.stderr and "nobody is here to agree" in done.stderr
    assert done.returncode != 0
    for amount in ("51", "0.5"):
        done = gristmill(grid, "credits", "buy", amount, "--with", "lnd", "--yes")
        assert "it sells 1 to 50 at once" in done.stderr and done.returncode == 2
    for amount in ("1e3", "-5", "1.0000001", "NaN"):
        done = gristmill(grid, "credits", "buy", amount, "--with", "lnd", "--yes")
        assert done.returncode == 2 and "Traceback" not in done.stderr
    after = len(json.loads(gristmill(grid, "credits", "list", "--json").stdout)["intents"])
    assert after == before


def test_c03_one_key_is_one_intent_however_often_it_is_asked(
    shop: tuple[Grid, LightningRig],
) -> None:
    grid, _ = shop
    with Client(grid.address) as client:
        offer = next(one for one in client.offers().offers if one.backend == "manual")
        price = wire.price_of(offer, 3_000_000)
        with ThreadPoolExecutor(8) as pool:
            views = pool.map(lambda _: client.buy("manual", 3_000_000, price, "c03"), range(40))
            assert len({view.intent for view in views}) == 1
        assert [view.key for view in client.intents()].count("c03") == 1
        other = wire.price_of(offer, 4_000_000)
        with pytest.raises(GridError, match="was used to buy 3 credits by manual") as caught:
            client.buy("manual", 4_000_000, other, "c03")
        assert caught.value.code == "LEDGER_CONFLICT"
        (view,) = [view for view in client.intents() if view.key == "c03"]
        assert view.amount_ucredits == 3_000_000


def test_c04_an_intent_is_on_disk_before_a_reference_and_ends_once(
    make: Callable[..., Grid],
) -> None:
    grid = make(payments="", fund="")
    grid.signal("treasury", signal.SIGSTOP)
    with Client(grid.address) as client:
        offer = client.offers().offers[0]
        view = client.buy("manual", 2_000_000, wire.price_of(offer, 2_000_000), "k")
        grid.kill("ledger")
        grid.restart("ledger")
        (again,) = until("the ledger is back", lambda: _asked(client, view.intent))
        assert (again.state, again.reference) == ("created", "")
        grid.signal("treasury", signal.SIGCONT)
        made = until("a reference", lambda: _with_reference(client, view.intent))
        client.change_purchase("confirm", made.intent, received=made.due, ref="cash")
        with pytest.raises(GridError, match="is settled already"):
            client.change_purchase("cancel", made.intent)
    path = grid.state / "ledger" / "ledger.db"
    grid.signal("ledger", signal.SIGTERM)
    until("the ledger ended", grid.dead)
    db = apsw.Connection(str(path))
    for state in ("created", "expired", "cancelled", "refunded", "paid"):
        with pytest.raises(apsw.ConstraintError):
            db.execute("UPDATE intent SET state = ?, ended_ms = 0", (state,))
    db.close()


def _asked(client: Client, intent: str) -> list[wire.IntentView]:
    try:
        return client.intents(intent)
    except GridError:
        return []


def test_c05_a_reference_is_bound_to_amount_account_and_expiry(
    shop: tuple[Grid, LightningRig],
) -> None:
    grid, _ = shop
    with Client(grid.address) as client:
        key = client.offers().ledger_key
        one, two = (bought(client, "lnd", 2_000_000, name) for name in ("c05a", "c05b"))
        assert one.reference != two.reference
        for view in (one, two):
            wire.check_reference(view, key)
        for change in (
            {"amount_ucredits": 2_000_001}, {"tenant": "eve"}, {"fee": 0}, {"price": 1},
            {"expires_ms": one.expires_ms + 1}, {"reference": two.reference},
            {"intent": two.intent}, {"signature": two.signature},
        ):  # fmt: skip
            with pytest.raises(RemoteError, match="is not signed by the ledger"):
                wire.check_reference(msgspec.structs.replace(one, **change), key)  # type: ignore[arg-type]


# ---------------------------------------------------------------- money


def test_c06_less_more_late_and_double_each_have_their_end(
    make: Callable[..., Grid], btcpay: BtcpayServer, tmp_path: pathlib.Path
) -> None:
    tables = {
        "btcpay": {
            "url": btcpay.url, "store": btcpay.store, "ucredits_per_unit": 1_000,
            "key_file": secret(tmp_path / "key", btcpay.api_key.encode()),
            "webhook_secret_file": secret(tmp_path / "hook", btcpay.webhook_secret.encode()),
        },
    }  # fmt: skip
    options = {"treasury": ["--reconcile-s", "0.2", "--sweep-s", "0.2"]}
    grid = make(payments=write_config(tmp_path, **tables), options=options, fund="")
    with Client(grid.address) as client:
        views = {
            name: bought(client, "btcpay", 1_000_000, name)
            for name in ("less", "more", "late", "double")
        }
        for name, sats in (("less", 400), ("more", 1_500), ("double", 1_000)):
            btcpay.pay(views[name].backend_id, sats, CHAIN)
        until("first", lambda: posted(client, "tenant:local") == 2_500_000)
        until("review", lambda: posted(client, "review") == 400_000)
        btcpay.pass_time(3_700)
        client.change_purchase("cancel", views["late"].intent)
        until("over", lambda: client.intents(views["late"].intent)[0].state == "cancelled")
        btcpay.pay(views["late"].backend_id, 1_000, CHAIN)
        btcpay.pay(views["double"].backend_id, 1_000, CHAIN)
        until("late and double", lambda: posted(client, "tenant:local") == 4_500_000)
        assert client.intents(views["less"].intent)[0].state == "created", "it is not lost"
        client.change_purchase("refund", views["less"].intent, ref="sent back")
        every = client.intents()
        follows = {view.follows: view.state for view in every if view.follows}
        assert follows == {views["late"].intent: "settled", views["double"].intent: "settled"}
        states = {view.key: view.state for view in every if not view.follows}
        assert states == {
            "less": "refunded", "more": "settled", "late": "cancelled", "double": "settled",
        }  # fmt: skip
        assert (posted(client, "review"), posted(client, "world")) == (0, -4_500_000)


def test_c07_callbacks_are_signed_kept_raw_and_mint_once(
    make: Callable[..., Grid], btcpay: BtcpayServer, tmp_path: pathlib.Path
) -> None:
    import http.client

    tables = {
        "btcpay": {
            "url": btcpay.url, "store": btcpay.store, "ucredits_per_unit": 1_000,
            "key_file": secret(tmp_path / "key", btcpay.api_key.encode()),
            "webhook_secret_file": secret(tmp_path / "hook", btcpay.webhook_secret.encode()),
        },
    }  # fmt: skip
    hooks = ["--listen", "http://127.0.0.1:0", "--reconcile-s", "3000"]
    grid = make(payments=write_config(tmp_path, **tables), options={"treasury": hooks}, fund="")
    port = int(re.findall(r"ready treasury .*:(\d+)", grid.log("treasury").read_text())[-1])

    def post(body: bytes, headers: dict[str, str]) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/callbacks/btcpay", body, headers)
        status = connection.getresponse().status
        connection.close()
        return status

    with Client(grid.address) as client:
        view = bought(client, "btcpay", 1_000_000, "k")
        payment = btcpay.pay(view.backend_id, view.due, CHAIN)
        event = {"type": "InvoiceSettled", "storeId": btcpay.store, "invoiceId": view.backend_id}
        plain, named = btcpay.signed(event), btcpay.signed({**event, "payment": {"id": payment}})
        with ThreadPoolExecutor(16) as pool:
            statuses = list(pool.map(lambda n: post(*(plain, named)[n % 2]), range(50)))
        assert statuses == [200] * 50
        assert settled(client, view.intent).payments[0].id == payment
        assert posted(client, "tenant:local") == 1_000_000 == -posted(client, "world")
        assert post(plain[0], {}) == 401
        unknown = btcpay.signed({**event, "invoiceId": "of-nobody"})
        assert post(*unknown) == 200
    until("the ledger ended", lambda: grid.signal("ledger", signal.SIGTERM) or grid.dead())
    db = apsw.Connection(str(grid.state / "ledger" / "ledger.db"))
    kept = dict(db.execute("SELECT raw, verdict FROM observation WHERE source = 'callback'"))
    db.close()
    assert set(kept) == {plain[0], named[0], unknown[0]}, "as they came, each once"
    assert kept[unknown[0]] == "unknown reference"


KILLED = """
import os, signal, sys
from gristmill.ledger.sqlite import SqliteBook
from gristmill.wire.payments import *
import pathlib
book = SqliteBook(pathlib.Path(sys.argv[1]))
book.load()
left = int(sys.argv[2])
def trace(cursor, sql, bindings):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return True
book.db.exec_trace = trace
book.apply([Observe(1, "lnd", HASH, "closed", [Paid(HASH, 500, bytes(32))], "t", b"{}")], 5)
print("statements", int(sys.argv[2]) - left)
"""


def test_c08_kill_9_between_any_two_statements_leaves_no_half_state(
    tmp_path: pathlib.Path, figures: Callable[..., None]
) -> None:
    """The mint, the payment, the intent and the observation are there together, or none is."""
    import hashlib

    hash_ = hashlib.sha256(bytes(32)).hexdigest()
    script = tmp_path / "script.py"
    script.write_text(f"HASH = {hash_!r}\n{KILLED}")
    at = settled_after = 0
    while True:
        at += 1
        state = tmp_path / f"state-{at}"
        book = SqliteBook(state)
        book.load()
        book.offers = {"lnd": wire.Offer("lnd", "msat", 1_000, 0, 1, 10**12, 60_000)}
        made = wire.intent_id("ann", "k")
        book.apply([wire.CreateIntent(1, "ann", "k", "lnd", 500_000, 500, 0)], 1)
        book.apply([wire.ReportInvoice(1, made, hash_, "lnbc1", 60_000)], 1)
        book.close()
        done = subprocess.run(
            [sys.executable, "-P", str(script), str(state), str(at)],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        book = SqliteBook(state)
        assert book.faults() == []
        book.load()
        rows = [
            book.db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # type: ignore[index]
            for table in ("transfer", "payment", "observation")
        ]
        (intent,) = book.db.execute("SELECT state FROM intent").fetchone()  # type: ignore[misc]
        assert (intent, rows) in (("created", [0, 0, 0]), ("settled", [1, 1, 1])), at
        settled_after += intent == "settled"
        book.close()
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert at > 8 and settled_after >= 1
    figures(kills=at - 1, statements=at - 1)


def test_c09_bought_credits_are_what_a_job_may_hold(shop: tuple[Grid, LightningRig]) -> None:
    grid, lightning = shop
    with Client(grid.address) as client:
        had = posted(client, "tenant:local")
        view = bought(client, "lnd", 10_000_000, "c09")
        assert lightning.pay(view.reference)
        settled(client, view.intent)
        assert posted(client, "tenant:local") == had + 10_000_000
        assert list(client.map(double, range(20), tier="batch", cap=5)) == [
            2 * x for x in range(20)
        ]
        assert 0 < posted(client, "tenant:local") <= had + 10_000_000


def test_c15_an_unknown_outcome_is_never_shown_as_success(make: Callable[..., Grid]) -> None:
    grid = make(payments="", fund="")
    done = gristmill(grid, "credits", "buy", "5", "--with", "manual", "--yes", "--key", "k")
    (intent,) = set(re.findall(r"pi[0-9a-f]{18}", done.stdout))
    confirmed = gristmill(
        grid, "credits", "confirm", intent, "--received", "500", "--ref", "transfer 77"
    )
    assert "state     settled" in confirmed.stdout
    assert f"{intent}/transfer 77: 500 cents, 5 credits" in confirmed.stdout
    shown = json.loads(gristmill(grid, "credits", "status", intent, "--json").stdout)
    assert (shown["outcome"], shown["intent"]["fee"]) == ("settled", 0)
    grid.signal("ledger", signal.SIGSTOP)
    try:
        lost = gristmill(grid, "credits", "status", intent)
        assert lost.returncode == 3 and "UNKNOWN" in lost.stderr and "settled" not in lost.stdout
    finally:
        grid.signal("ledger", signal.SIGCONT)


def test_c17_a_slow_adapter_blocks_no_status_and_a_timeout_is_a_question(
    make: Callable[..., Grid], tmp_path: pathlib.Path, lightning: LightningRig
) -> None:
    """LND made the invoice and its answer was lost: it is found, not made again."""
    import http.server

    class Slow(http.server.BaseHTTPRequestHandler):
        posts = 0

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            Slow.posts += 1
            lightning.ask("POST", self.path, json.loads(body))
            time.sleep(1.0)  # past the treasury's patience

        def do_GET(self) -> None:
            try:
                body, status = json.dumps(lightning.ask("GET", self.path)).encode(), 200
            except AssertionError:
                body, status = b'{"code": 5, "message": "unable to locate invoice"}', 404
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    slow = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    thread = threading.Thread(target=slow.serve_forever, args=(0.05,))
    thread.start()
    macaroon = secret(tmp_path / "macaroon", bytes.fromhex(lightning.macaroon))
    url = f"http://127.0.0.1:{slow.server_port}"
    lnd = {"url": url, "macaroon_file": macaroon, "timeout": "400ms"}
    grid = make(payments=write_config(tmp_path, lnd=lnd), fund="")
    try:
        with Client(grid.address) as client:
            offer = client.offers().offers[0]
            view = client.buy("lnd", 7_000_000, wire.price_of(offer, 7_000_000), "k")
            began = time.monotonic()
            client.jobs()
            assert time.monotonic() - began < 5
            assert until("found", lambda: _with_reference(client, view.intent))
            assert Slow.posts == 1
    finally:
        slow.shutdown()
        slow.server_close()
        thread.join()


def test_c18_an_unsupported_chain_is_refused_when_the_settings_are_read(
    tmp_path: pathlib.Path,
) -> None:
    config = write_config(tmp_path, ethereum={"rpc": "http://127.0.0.1:8545"})
    given = ["--state", str(tmp_path), "--ledger", "ipc:///x", "--config", config]
    with pytest.raises(RemoteError, match="no payment backend 'ethereum'; there are btcpay, lnd"):
        read_settings(given, {})
    config = write_config(
        tmp_path,
        btcpay={
            "url": "https://x", "store": "s", "key_file": "k", "webhook_secret_file": "w",
            "methods": ["BTC-CHAIN", "SOL-CHAIN"],
        },
    )  # fmt: skip
    with pytest.raises(RemoteError, match="SOL-CHAIN: only payment methods of BTC"):
        read_settings(given, {})
    (tmp_path / "settlement.toml").write_text('chain = "sol"\nrpcs = ["http://127.0.0.1:1"]\n')
    given = [*given[:4], "--config", str(tmp_path / "settlement.toml")]
    with pytest.raises(RemoteError, match="'sol' is no chain that this release settles on"):
        settlement_settings(given, {})
    assert os.path.exists(config)
