"""The daemon as a process on a real chain with a real ledger, killed, lied to and re-orged.

Vouchers over all rentals at once; at the end every one is paid once, to the unit, and the three
books agree. Judged by the contracts' events and balances and by the ledger, not by the daemon.
"""

import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec
import pytest
import zmq
from chain_rig import ChainRig, chain_rig
from ledger_rig import LedgerProcess
from settle_proxy import Proxy
from settle_rig import CREDIT, TENANT, WINDOW_S, Grid, Market

from gristmill.contracts.merkle import Tree, decode_list
from gristmill.wire import chain as wire
from gristmill.wire.frames import encode
from gristmill.wire.ledger import LedgerAnswer, LedgerRefused, decode_from_ledger

IS_RELEASE = os.environ.get("GRISTMILL_SIZE") == "release"
RENTALS = 2_000 if IS_RELEASE else 500
KILLS = 40 if IS_RELEASE else 5
RE_ORGS = 40 if IS_RELEASE else 10
DEPTH = 4
BLOCK_S = 0.25
PATIENCE_S = 900 if IS_RELEASE else 180


class Daemon:
    """The settlement's process; killed and started again at will."""

    def __init__(self, folder: pathlib.Path, market: Market, url: str, ledger: str) -> None:
        self.state = folder / "settlement"
        self._log = open(folder / "settlement.log", "ab")
        keystore, password = market.keystore(folder)
        config = folder / "settlement.toml"
        config.write_text(
            f'rpcs = ["{url}"]\ndeployment = "{market.file}"\nkeystore = "{keystore}"\n'
            f'password_file = "{password}"\ndepth = {DEPTH}\npoll_s = 0.05\nepoch = "1s"\n'
            'reconcile = "2s"\nredeem_min = "0.000001"\ntimeout = "500ms"\nin_flight = 128\n'
            "bump_blocks = 3\nrange_blocks = 50\npending_max = 10000\n"
            "fee_day_gwei = 1000000000000\n"
        )
        self._command = [sys.executable, "-P", "-m", "gristmill.ledger.settlement"]
        self._command += ["--state", str(self.state), "--ledger", ledger, "--config", str(config)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [*self._command, "--die-with-parent"], stderr=self._log, stdout=self._log
        )

    def check(self) -> None:
        """It has not ended by itself."""
        assert self._process is not None
        assert self._process.poll() is None, f"it ended by itself: {self.said()[-3000:]}"

    def kill(self) -> None:
        self.check()
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def end(self) -> int:
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(30)

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def said(self) -> str:
        return pathlib.Path(self._log.name).read_text()


class Clients:
    """Brings vouchers to the ledger until each is answered."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(address)
        self._open: dict[int, bytes] = {}
        self._last, self._said_s = 0, 0.0
        self.refused: list[str] = []

    def show(self, vouchers: Sequence[wire.ShowVoucher]) -> None:
        for voucher in vouchers:
            self._last += 1
            asked = msgspec.structs.replace(voucher, request=self._last)
            self._open[self._last] = encode(asked)

    def turn(self) -> int:
        """Say what is not answered; how many those are."""
        while self._socket.poll(0):
            answer = decode_from_ledger.decode(self._socket.recv())
            if isinstance(answer, LedgerAnswer):
                self._open.pop(answer.request, None)
            elif isinstance(answer, LedgerRefused) and answer.code != "SETTLEMENT_DOWN":
                self._open.pop(answer.request, None)
                if "replayed" not in answer.message and "out of order" not in answer.message:
                    self.refused.append(f"{answer.code}: {answer.message}")
        if time.monotonic() - self._said_s > 2:
            self._said_s = time.monotonic()
            for frame in list(self._open.values())[:60]:
                self._socket.send(frame)
        return len(self._open)

    def close(self) -> None:
        self._socket.close(0)
        self._context.term()


class Scene:
    """Everything of the test, and its clock: ``go`` mines and makes trouble until it is so."""

    def __init__(self, rig: ChainRig, folder: pathlib.Path, run: pathlib.Path) -> None:
        self.rig, self.dice = rig, random.Random(7)
        rig.ask("evm_setAutomine", True)
        self.market = Market(rig, folder)
        self.pool = self.market.pool_name
        self.proxy = Proxy(rig.port, 7)
        self.ledger = LedgerProcess(folder / "ledger", run).start()
        self.grid = Grid(self.ledger)
        self.clients = Clients(self.ledger.address)
        self.daemon = Daemon(folder, self.market, self.proxy.url, self.ledger.address)
        self.kills = self.re_orgs = 0
        self._kill_s = self._re_org_s = 0.0

    def close(self) -> None:
        self.daemon.close()
        self.clients.close()
        self.ledger.close()
        self.proxy.close()

    def go(self, what: str, is_so: Callable[[], bool], *, is_wild: bool = False) -> None:
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            self.clients.turn()
            if is_so():
                return
            self.daemon.check()
            self.rig.mine(1)
            if is_wild:
                self._trouble()
            time.sleep(BLOCK_S)
        raise AssertionError(f"{what}: not within {PATIENCE_S} s\n{self.daemon.said()[-4000:]}")

    def _trouble(self) -> None:
        now_s = time.monotonic()
        if self.kills < KILLS and now_s >= self._kill_s:
            self.daemon.kill()
            self.daemon.start()
            self.kills += 1
            self._kill_s = now_s + self.dice.uniform(4, 9)
        if self.re_orgs < RE_ORGS and now_s >= self._re_org_s:
            self.rig.ask("anvil_reorg", self.dice.randrange(1, DEPTH), [])
            self.re_orgs += 1
            self._re_org_s = now_s + self.dice.uniform(1, 5)

    def shown(self, id: bytes, cumulative: int) -> wire.ShowVoucher:
        voucher = self.market.voucher(id, cumulative)
        root, signature = voucher.receipts_root, voucher.signature
        return wire.ShowVoucher(0, TENANT, id, cumulative, root, signature)


@pytest.fixture
def scene(tmp_path: pathlib.Path) -> Iterator[Scene]:
    with chain_rig("--no-mining", "--order", "fifo") as rig:
        with tempfile.TemporaryDirectory(prefix="settle-") as run:
            scene = Scene(rig, tmp_path, pathlib.Path(run))
            yield scene
            scene.close()


@pytest.mark.slow
def test_every_voucher_is_paid_once_and_nothing_drifts(
    scene: Scene, record_property: Callable[[str, object], None]
) -> None:
    market, grid = scene.market, scene.grid
    grid.pay_nodes(scene.pool)
    amount = 10 * CREDIT + 7
    ids = market.lock([amount + 5] * RENTALS, grid)
    scene.rig.ask("evm_setAutomine", False)
    scene.rig.mine(DEPTH)
    scene.daemon.start()
    scene.go("rentals", lambda: grid.books(scene.pool).rentals == RENTALS)
    grid.work(ids, amount)
    began = time.monotonic()
    scene.proxy.percent = 3
    # Two of some: the second may come before the first is redeemed, or after.
    twice = ids[: RENTALS // 10]
    scene.clients.show([scene.shown(id, amount // 2) for id in twice])
    scene.clients.show([scene.shown(id, amount) for id in ids])
    paid = RENTALS * amount
    scene.go("vouchers", lambda: grid.books(scene.pool).paid == paid, is_wild=True)
    net = RENTALS * (amount - amount * 300 // 10_000)
    scene.go("roots", lambda: _root_of(grid, scene.pool) == net, is_wild=True)
    payout = grid.payout(scene.pool)
    listed = scene.daemon.state / "lists" / f"{payout.list_digest.hex()}.json"
    leaves = decode_list(listed.read_bytes()).leaves
    tree = Tree(leaves)
    scene.rig.mine(1, WINDOW_S + 1)
    proofs = [tree.proof_of(address) for address, _ in leaves]
    workers, sums = [one for one, _ in leaves], [one for _, one in leaves]
    scene.proxy.percent = 0
    market.said(market.client.address, market.pool, "claimMany", workers, sums, proofs)
    scene.go("claims", lambda: grid.books(scene.pool).claimed == net)
    took = time.monotonic() - began

    # Judged by the contracts and the ledger.
    assert scene.clients.refused == []
    found = market.redeemed()
    assert {id: figures[-1] for id, figures in found.items()} == dict.fromkeys(ids, amount)
    assert all(sorted(set(figures)) == figures for figures in found.values())
    balances, books = market.balances(), grid.books(scene.pool)
    locked = RENTALS * (amount + 5)
    fees = paid - net
    assert balances == {
        "escrow": locked - net,
        "pool": 0,
        "liability": locked - net,
        "claimed": net,
    }
    assert books.locked == locked == balances["escrow"] + balances["pool"] + balances["claimed"]
    assert (books.paid, books.short, books.committed, books.claimed) == (paid, 0, net, net)
    assert books.spent + books.held == locked
    transactions = market.chain.nonce(market.grid.address, "latest")
    assert scene.daemon.end() == 0
    told = scene.daemon.said()
    assert "DRIFT" not in told, told[told.index("DRIFT") - 3000 :][:4000]
    assert told.rstrip().splitlines()
    assert "drift 0" in told
    for name, value in {
        "payouts": sum(len(figures) for figures in found.values()),
        "vouchers": RENTALS + len(twice),
        "transactions": transactions,
        "re-orgs": scene.re_orgs,
        "kills": scene.kills,
        "faults": sum(scene.proxy.told.values()),
        "fees": fees,
        "drift": 0,
        "seconds": int(took),
    }.items():
        record_property(name, value)
    assert scene.kills
    assert scene.re_orgs
    assert scene.proxy.told


def _root_of(grid: Grid, pool: str) -> int:
    payout = grid.payout(pool)
    return payout.total if payout.root else 0
