"""Rows C10 and C11: a balance that comes by itself, and a statement that adds up."""

import contextlib
import csv
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from grid_rig import grids_of_a_test, gristmill, until

from gristmill.cli.grid import Grid
from gristmill.client import Client
from gristmill.client.errors import GridError
from gristmill.wire.client import BalanceAnswer
from gristmill.wire.payments import price_of

PUSHED_S = 2.0  #: of row C10: from the mint to the one who watches


@pytest.fixture
def make() -> Iterator[Callable[..., Grid]]:
    yield from grids_of_a_test()


def watch(address: str, seen: list[tuple[float, BalanceAnswer]]) -> None:
    """Notes each balance with the time it came, until the grid ends."""
    with Client(address) as client, contextlib.suppress(GridError):
        for answer in client.watch_balance():
            seen.append((time.monotonic(), answer))


def test_c10_a_mint_is_pushed_with_the_ledgers_sequence(
    make: Callable[..., Grid], tmp_path: pathlib.Path
) -> None:
    config = tmp_path / "payments.toml"
    config.write_text("[manual]\n")
    grid = make(workers=1, payments=str(config), fund="")
    seen: list[tuple[float, BalanceAnswer]] = []
    threading.Thread(target=watch, args=(grid.address, seen), daemon=True).start()
    until("the first balance", lambda: seen)
    assert seen[0][1].accounts[0].posted_ucredits == 0
    waits = []
    with Client(grid.address) as client:
        for number in range(1, 4):
            (offer,) = until("offers", lambda: client.offers().offers)
            price = price_of(offer, 2_000_000)
            view = client.buy("manual", 2_000_000, price, f"key-{number}")
            until("its reference", lambda view=view: client.intents(view.intent)[0].reference)
            client.change_purchase("confirm", view.intent, received=view.due, ref=f"r{number}")
            minted = time.monotonic()  # the answer comes after the commit
            until("it is pushed", lambda number=number: len(seen) > number)
            waits.append(seen[-1][0] - minted)
            told = seen[-1][1]
            assert told.accounts[0].posted_ucredits == number * 2_000_000
            assert told.transfers > seen[-2][1].transfers
        assert max(waits) < PUSHED_S, waits
        # A job moves them, too; what was told is what the entries up to its transfer make.
        assert list(client.map(lambda x: x, range(30), tier="batch", cap=1)) == list(range(30))
        until("all of it is pushed", lambda: seen[-1][1].tag == client.balance().tag)
        rows = list(client.statement())
    assert rows[-1].what == "released" and len(seen) > 4
    for _, told in seen:
        (account,) = told.accounts
        upto = [row for row in rows if row.number <= told.transfers]
        assert account.posted_ucredits == sum(row.amount_ucredits for row in upto)
        assert account.held_ucredits == sum(row.held_ucredits for row in upto)
    numbers = [told.transfers for _, told in seen]
    assert numbers == sorted(set(numbers))


def test_c10_whoever_watches_sees_as_of_when_and_survives_a_restart(
    make: Callable[..., Grid],
) -> None:
    grid = make(workers=0)
    command = [sys.executable, "-P", "-m", "gristmill.cli.main", "balance", "--watch", "--json"]
    watching = subprocess.Popen(
        command,
        env={**os.environ, "GRISTMILL_ADDRESS": grid.address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert watching.stdout and watching.stderr
        first = json.loads(watching.stdout.readline())
        grid.kill("ledger")
        assert f"as of transfer {first['transfers']}" in watching.stderr.readline()
        grid.restart("ledger")
        ledger = f"ipc://{grid.run}/ledger"
        done = gristmill(grid, "ledger", "fund", "local", "5", "--ref", "x", "--ledger", ledger)
        assert done.returncode == 0, done.stderr
        second = json.loads(watching.stdout.readline())
        assert second["transfers"] == first["transfers"] + 1
        gained = second["accounts"][0]["posted_ucredits"] - first["accounts"][0]["posted_ucredits"]
        assert gained == 5_000_000
    finally:
        watching.kill()
        watching.communicate()


def exported(path: pathlib.Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_c11_every_entry_has_its_receipt_and_the_export_adds_up(
    make: Callable[..., Grid], tmp_path: pathlib.Path
) -> None:
    grid = make(workers=2, options={"ledger": ["--epoch-s", "1"]})
    with Client(grid.address) as client:
        assert list(client.map(lambda x: x, range(60), chunk=5, tier="batch")) == list(range(60))
        slow = gristmill(grid, "submit", "--cap", "3", "--json", "--", "sleep", "60")
        job = json.loads(slow.stdout)["job"]
        until("it is held", lambda: client.balance().accounts[0].held_ucredits)
        (account,) = client.balance().accounts
    file = tmp_path / "statement.csv"
    done = gristmill(grid, "statement", "--csv", str(file))
    assert done.returncode == 0, done.stderr
    rows = exported(file)
    amounts = [int(row["amount_ucredits"]) for row in rows]
    held = sum(int(row["held_ucredits"]) for row in rows)
    assert sum(amounts) == account.posted_ucredits == int(rows[-1]["posted_ucredits"])
    assert held == account.held_ucredits == 3_000_000
    told = json.loads(gristmill(grid, "statement", "--json").stdout)
    assert told["came_ucredits"] == sum(amount for amount in amounts if amount > 0)
    assert told["went_ucredits"] == -sum(amount for amount in amounts if amount < 0)
    assert told["held_ucredits"] == held
    assert told["available_ucredits"] == account.available_ucredits and not told["incident"]
    paid = [row for row in rows if row["what"] == "paid"]
    assert paid and [row for row in rows if row["receipt"]] == paid
    usage = json.loads(gristmill(grid, "usage", "j1", "--json").stdout)["rows"]
    assert sum(row["amount_ucredits"] for row in usage) == -sum(
        int(row["amount_ucredits"]) for row in paid
    )
    for row in (paid[0], paid[-1]):  # the receipt of an entry, proven, is of its amount
        found = gristmill(grid, "receipt", row["receipt"], "--wait", "-o", str(tmp_path / "one"))
        assert found.returncode == 0, found.stderr
        (receipt,) = json.loads((tmp_path / "one").read_text())["receipts"]
        assert receipt["broker"]["amount_ucredits"] == -int(row["amount_ucredits"])
        assert receipt["broker"]["toll_ucredits"] == int(row["toll_ucredits"])
        assert gristmill(grid, "verify", str(tmp_path / "one")).returncode == 0
    shown = gristmill(grid, "statement", "--last", "2").stdout
    assert f"j{job} " in shown and "+3 " in shown and "reserved   3\n" in shown
    assert "as of transfer" in shown


def test_c11_a_mismatch_is_a_banner_and_an_incident_in_the_ledgers_log(
    make: Callable[..., Grid],
) -> None:
    import apsw

    grid = make(workers=1)
    with Client(grid.address) as client:
        assert list(client.map(lambda x: x, range(5), tier="batch")) == list(range(5))
        until("all is posted", lambda: not client.balance().accounts[0].held_ucredits)
    assert gristmill(grid, "statement").returncode == 0
    books = apsw.Connection(str(grid.state / "ledger" / "ledger.db"))
    books.set_busy_timeout(5_000)
    books.execute("DROP TRIGGER transfer_immutable")  # somebody who has the file
    books.execute("UPDATE transfer SET amount = amount + 7 WHERE number = 1")
    books.close()
    done = gristmill(grid, "statement")
    assert done.returncode == 1
    banner = next(line for line in done.stderr.splitlines() if "DOES NOT ADD UP" in line)
    incident = banner.split()[-1]
    assert incident.startswith("incident-")
    assert f"ALARM {incident}: the entries of tenant:local" in grid.log("ledger").read_text()
    assert incident in json.loads(gristmill(grid, "statement", "--json").stdout)["incident"]
    job = json.loads(gristmill(grid, "submit", "--json", "--", "true").stdout)["job"]
    until("it waits", lambda: "LEDGER_DOWN" in gristmill(grid, "why", f"j{job}").stdout)
