"""A settlement in this process between a real chain and a real ledger: each step is a test's.

The chain makes blocks when it is told to, and the settlement takes its turn after each.
"""

import contextlib
import http.client
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from chain_rig import ChainRig, chain_rig
from ledger_rig import LedgerProcess
from lying_rpc_rig import Error
from nacl.signing import SigningKey
from settle_rig import CREDIT, DAY_S, Grid, Market

from gristmill.contracts.keys import AccountKey
from gristmill.contracts.rpc import Chain
from gristmill.ledger.payments.line import Line
from gristmill.ledger.settlement.books import FolderLists, LedgerBooks
from gristmill.ledger.settlement.core import chain_log, epochs, queue_records
from gristmill.ledger.settlement.core.queue_records import Intent
from gristmill.ledger.settlement.core.reconcile import told
from gristmill.ledger.settlement.evm import EvmNode, EvmSigner
from gristmill.ledger.settlement.rows import FILE, Rows
from gristmill.ledger.settlement.settlement import GO, Pace, Place, Settlement

GWEI = 10**9
DEPTH = 4  #: K
UNKNOWN_THERE = ("eth_getTransactionReceipt", "eth_getTransactionByHash")


class Stage:
    """Contracts, ledger and settlement; every test has rentals of its own.

    Attributes:
        market: the contracts, the client and the grid's key.
        grid: the ledger's process, and jobs of it.
        settlement: of this moment: ``again`` is a restart.
    """

    def __init__(self, rig: ChainRig, folder: pathlib.Path, ledger: LedgerProcess) -> None:
        self.rig, self.folder = rig, folder
        rig.ask("evm_setAutomine", True)
        self.market = Market(rig, folder)
        rig.ask("evm_setAutomine", False)
        self.grid = Grid(ledger)
        self.pool = self.market.pool_name
        self.grid.pay_nodes(self.pool)
        self._line = Line(ledger.address, SigningKey.generate(), "")
        self._books = LedgerBooks(self._line, self.pool)
        self.rows = Rows(folder / FILE)
        self.again()

    def again(self, *urls: str, pending_max: int = 1_000) -> None:
        """Start it anew from its file; ``urls``: other RPCs than the chain's own."""
        self.rows.close()
        self.rows = Rows(self.folder / FILE)
        market = self.market
        start = min(one.block for one in market.deployment.contracts.values())
        self.settlement = Settlement(
            self.rows,
            [
                EvmNode(
                    Chain([url]), market.rental, market.pool, market.token, market.grid.address
                )
                for url in urls or (self.rig.url,)
            ],
            EvmSigner(AccountKey(market.grid.secret), market.chain.chain_id),
            self._books,
            FolderLists(self.folder / "lists"),
            Place(market.chain.chain_id, market.rental, market.pool, start),
            chain_log.Limits(depth=DEPTH),
            queue_records.Limits(in_flight_max=64, pending_max=pending_max, bump_blocks=2),
            epochs.Settings(DAY_S, 3_600, 1, 10**15, market.grid.address),
            Pace(0, 0),
            self.folder,
            lambda: time.time_ns() // 1_000_000,
        )

    def mine(self, blocks: int = 1, seconds: int = 0) -> None:
        """Blocks, with a turn after each; the first is ``seconds`` late."""
        for _ in range(blocks):
            self.rig.mine(1, seconds)
            seconds = 0
            self.settlement.turn()

    def until(self, what: str, is_so: Callable[[], bool], blocks: int = 60) -> None:
        """Mine until it is so."""
        for _ in range(blocks):
            if is_so():
                return
            self.mine()
        raise AssertionError(f"{what}: not within {blocks} blocks: {self.settlement.told()}")

    def rental(self, amount: int = CREDIT) -> bytes:
        """One that the ledger knows, K blocks deep."""
        (id,) = self.market.lock([amount], self.grid)
        self.mine(DEPTH + 1)
        return id

    def pay(self, id: bytes, cumulative: int) -> None:
        """A voucher of the client's is taken."""
        self.settlement.take_voucher(self.market.voucher(id, cumulative))

    def intent(self, purpose: str) -> Intent:
        """What the queue has of it."""
        return self.settlement.courier.lane.intents[purpose]

    def line(self, purpose: str) -> str:
        """What a person is told of it while it is not final; empty then."""
        lines = dict(each.split(": ", 1) for each in self.settlement.told())
        return lines.get(purpose, "")

    def idle(self) -> None:
        """All that is under way is done, and the three books agree."""
        self.settlement.turn()
        self.until("idle", lambda: not self.settlement.courier.lane.open)
        self.mine(2)
        report = self.settlement.reconcile()
        assert report.is_good, told(report)

    def go(self) -> None:
        """An operator has looked."""
        (self.folder / GO).touch()
        self.settlement.turn()

    def close(self) -> None:
        """Of its own; ledger and chain are others'."""
        self._line.close()
        self.rows.close()


@contextlib.contextmanager
def settle_stage(folder: pathlib.Path) -> Iterator[Stage]:
    """One with a chain and a ledger of its own."""
    with chain_rig("--no-mining", "--order", "fifo") as rig:
        with tempfile.TemporaryDirectory(prefix="stage-") as run:  # short: of a socket
            ledger = LedgerProcess(folder / "ledger", pathlib.Path(run))
            try:
                stage = Stage(rig, folder, ledger.start())
                try:
                    yield stage
                finally:
                    stage.close()
            finally:
                ledger.close()


class Forgetful:
    """An RPC in front of the chain's own. While ``is_behind`` it knows no transaction of ours.

    It takes transactions and says heads all the time: behind a balancer one node often knows what
    another does not.
    """

    def __init__(self, rig: ChainRig) -> None:
        self.is_behind = False
        self._port = rig.port

    def answer(self, method: str, params: Any) -> Any:
        """See ``lying_rpc_rig``."""
        if self.is_behind and method in UNKNOWN_THERE:
            return None
        if self.is_behind and method == "eth_getTransactionCount":
            params = [params[0], hex(self.block)]
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            asked = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
            headers = {"Content-Type": "application/json"}
            connection.request("POST", "/", json.dumps(asked), headers)
            told = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return Error(told["error"]) if "error" in told else told["result"]

    def forget(self, block: int) -> None:
        """From now on it knows what was so up to a block, but for the heads."""
        self.is_behind, self.block = True, block
