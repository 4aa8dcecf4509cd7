"""A whole grid that settles on a chain, and one rental that went its way there."""

import contextlib
import json
import pathlib
import re
import threading
from collections.abc import Iterator
from typing import Any

from chain_rig import ChainRig
from contract_shop import CREDIT, Shop, contract_shop
from grid_rig import gristmill, until

from gristmill.cli.grid import Grid
from gristmill.client import Client
from gristmill.contracts.abi import show_address
from gristmill.ledger import chain_rows
from gristmill.ledger.sqlite_checks import open_for_reading
from gristmill.wire.chain import ChainBooks, pool_of

LOCKED, CAP = 5 * CREDIT, 2 * CREDIT
WINDOW_S = 60
BLOCK_S = 0.1
SETTINGS = """\
rpcs = ["{url}"]
deployment = "{folder}/deployment.json"
keystore = "{folder}/operator"
password_file = "{folder}/password"
depth = 3
poll_s = 0.1
epoch = "300ms"
redeem_min = "0.000001"
reconcile = "300ms"
"""


class ChainGrid:
    """Two workers, paid at ``payees``; a rental locked, worked for, settled and claimed.

    Attributes:
        rental, job: of the one that went its way; ``receipts``: its job's, as a file has them.
        told: what the commands said, by verb.
    """

    def __init__(self, shop: Shop, grid: Grid) -> None:
        self.shop, self.grid = shop, grid
        self.payees = [bytes([number + 1]) * 20 for number in range(2)]
        self.told: dict[str, Any] = {}

    def run(self, *words: str, key: str = "") -> Any:
        """The document that a command prints."""
        done = self.shop.run(*words, "--json", key=key, address=self.grid.address)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def worker_key(self, number: int) -> pathlib.Path:
        """Of a node, in its worker's own folder."""
        return self.grid.state / f"worker-{number}" / "worker.key"

    def claim_at(self, address: bytes, key: pathlib.Path) -> None:
        """A node says where it is paid."""
        done = gristmill(
            self.grid, "claim", "at", show_address(address), "--worker-key", str(key),
            "--deployment", str(self.shop.file),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def books(self) -> ChainBooks:
        """Of the ledger's file."""
        db = open_for_reading(self.grid.state / "ledger" / "ledger.db")
        try:
            return chain_rows.books(
                db, pool_of(self.shop.chain.chain_id, self.shop.pool.address)
            )
        finally:
            db.close()

    def go(self) -> None:
        """From the lock to a root that can be claimed from."""
        for number, payee in enumerate(self.payees):
            self.claim_at(payee, self.worker_key(number))
        self.shop.money(self.shop.client, LOCKED, self.shop.rental)
        self.told["lock"] = self.run(
            "rental", "lock", "5", "--deadline", "1h", "--provider",
            show_address(self.shop.operator.address), key="client",
        )  # fmt: skip
        self.rental = bytes.fromhex(self.told["lock"]["rental"])
        done = gristmill(
            self.grid, "submit", "--rental", self.rental.hex(), "--cap", "2", "--array", "1-20",
            "--wait", "--", "true",
        )  # fmt: skip
        found = re.search(r"\bj\d+\b", done.stdout + done.stderr)
        assert found is not None, done.stderr
        self.job = found[0]
        with Client(self.grid.address) as client:
            until("its bill", lambda: not any(a.held_ucredits for a in client.balance().accounts))
        self.told["pay"] = self.run(
            "rental", "pay", self.rental.hex(), self.job, "--last", key="client"
        )
        until("it is settled", lambda: self.shop.state(self.rental) == 3)
        call = self.shop.chain.call
        until("a root", lambda: call(self.shop.pool, "waiting")[0])
        self.shop.rig.mine(1, WINDOW_S)
        until("it is open", lambda: call(self.shop.pool, "current")[0])

    def spent(self) -> int:
        """What the rental's job cost, by the ledger."""
        rows = json.loads(gristmill(self.grid, "usage", "--by", "job", "--json").stdout)["rows"]
        return int(next(row["amount_ucredits"] for row in rows if row["key"] == self.job))

    def log(self) -> str:
        """The settlement's."""
        return self.grid.log("settlement").read_text()


@contextlib.contextmanager
def _going_on(rig: ChainRig) -> Iterator[None]:
    """A block now and then, as on any chain."""
    is_over = threading.Event()

    def mine() -> None:
        while not is_over.wait(BLOCK_S):
            rig.mine()

    miner = threading.Thread(target=mine)
    miner.start()
    try:
        yield
    finally:
        is_over.set()
        miner.join()


@contextlib.contextmanager
def chain_grid(folder: pathlib.Path) -> Iterator[ChainGrid]:
    """One whose rental has gone its way."""
    with contract_shop(folder) as shop, _going_on(shop.rig):
        config = folder / "settlement.toml"
        config.write_text(SETTINGS.format(url=shop.rig.url, folder=folder))
        with Grid.temporary(workers=2, slots=1, settlement=str(config)) as grid:
            made = ChainGrid(shop, grid)
            made.go()
            yield made
