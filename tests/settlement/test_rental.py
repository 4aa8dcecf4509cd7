"""A rental through the commands: locked, worked, paid by a voucher, settled, claimed; and refused.

A real chain, a grid with its ledger and settlement, jobs in jails.
"""

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from chain_rig import ChainRig, chain_rig
from grid_rig import gristmill, until

from gristmill.cli.documents import BY_NAME
from gristmill.cli.grid import Grid
from gristmill.client import Client
from gristmill.client.rental import Rental
from gristmill.contracts import deployment, plan
from gristmill.contracts.abi import show_address
from gristmill.contracts.act import act
from gristmill.contracts.ethereum import Account
from gristmill.contracts.keys import AccountKey
from gristmill.contracts.merkle import Tree, decode_list
from gristmill.contracts.rpc import Chain
from gristmill.store.client import StoreClient
from gristmill.wire.errors import CODES, RemoteError

CREDIT = 1_000_000
WINDOW_S = 60
PASSWORD = "a long password"
SETTINGS = """\
rpcs = ["{url}"]
deployment = "{folder}/deployment.json"
keystore = "{folder}/operator"
password_file = "{folder}/password"
depth = 1
poll_s = 0.1
epoch = "500ms"
redeem_min = "0.000001"
reconcile = "500ms"
"""


@dataclasses.dataclass
class Market:
    """Contracts on a chain that goes on by itself, a grid that settles there, and a folder."""

    rig: ChainRig
    chain: Chain
    placed: deployment.Deployment
    grid: Grid
    folder: pathlib.Path

    @property
    def operator(self) -> str:
        return show_address(self.rig.people[0].address)

    def person(self, number: int) -> str:
        return show_address(self.rig.people[number].address)

    def options(self, key: str = "ann") -> list[str]:
        keyed = ["--key", str(self.folder / key), "--password-file", str(self.folder / "password")]
        return [*self.seen(), *(keyed if key else [])]

    def seen(self) -> list[str]:
        return ["--rpc", self.rig.url, "--deployment", str(self.folder / "deployment.json")]

    def run(self, *words: str) -> Any:
        """The one document that a command prints, which is of a known schema."""
        done = gristmill(self.grid, *words, "--json")
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout.splitlines()[-1])
        assert told["schema"] in BY_NAME
        return told

    def refused(self, *words: str) -> str:
        """The code that a command is refused with, and it says what to do next."""
        done = gristmill(self.grid, *words)
        code = done.stderr.split()[0] if done.stderr else ""
        assert code in CODES, done.stderr
        assert done.returncode == CODES[code].exit_code and "Traceback" not in done.stderr
        assert "next:" in done.stderr, done.stderr
        return code

    def has(self, address: bytes) -> int:
        return int(self.chain.call(self.placed.token_contract(), "balanceOf", address))


def keystore(path: pathlib.Path, secret: bytes) -> None:
    path.write_text(json.dumps(Account.encrypt(secret, PASSWORD, kdf="scrypt", iterations=2)))
    path.chmod(0o600)


@contextlib.contextmanager
def going_on(rig: ChainRig) -> Iterator[None]:
    """A block now and then, as on any chain."""
    is_over = threading.Event()

    def mine() -> None:
        while not is_over.wait(0.2):
            rig.mine()

    miner = threading.Thread(target=mine)
    miner.start()
    try:
        yield
    finally:
        is_over.set()
        miner.join()


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Market]:
    folder = tmp_path_factory.mktemp("rental")
    with contextlib.ExitStack() as stack:
        rig = stack.enter_context(chain_rig())
        chain = Chain([rig.url])
        stack.callback(chain.close)
        operator, ann = (AccountKey(person.secret) for person in rig.people[:2])
        wanted = plan.Wanted(
            b"", *(person.address for person in rig.people[2:5]), operator.address,
            WINDOW_S, 10**12, 60, 60,
        )  # fmt: skip
        made = plan.make(chain, wanted, operator.address, None)
        file = folder / "deployment.json"
        placed = plan.execute(chain, made, operator, file, None, lambda *_: None)
        token = placed.token_contract()
        act(chain, ann, token, "mint", ann.address, 1_000 * CREDIT)
        # Of the operator: the contract rounds its toll once, the ledger each receipt's.
        act(chain, operator, token, "mint", placed.at("WorkPool").address, CREDIT)
        (folder / "password").write_text(PASSWORD)
        (folder / "password").chmod(0o600)
        for name, number in (("operator", 0), ("ann", 1), ("relayer", 6)):
            keystore(folder / name, rig.people[number].secret)
        config = folder / "settlement.toml"
        config.write_text(SETTINGS.format(url=rig.url, folder=folder))
        stack.enter_context(going_on(rig))
        grid = stack.enter_context(Grid.temporary(workers=2, slots=1, settlement=str(config)))
        yield Market(rig, chain, placed, grid, folder)


def locked(market: Market, amount: str = "5") -> str:
    told = market.run(
        "rental", "lock", amount, "--deadline", "1h", "--provider", market.operator,
        *market.options(),
    )  # fmt: skip
    assert told["available_ucredits"] == told["locked_ucredits"] == float(amount) * CREDIT
    return str(told["rental"])


def worked(market: Market, rental: str, *words: str) -> str:
    """A job of the rental, ended and billed."""
    done = gristmill(
        market.grid, "submit", "--rental", rental, "--cap", "2", "--array", "1-20", "--wait",
        *words, "--", "true",
    )  # fmt: skip
    found = re.search(r"\bj\d+\b", done.stdout + done.stderr)
    assert found is not None, done.stderr
    until("its bill", lambda: not held(market, rental))
    return found[0]


def held(market: Market, rental: str) -> int:
    with Client(market.grid.address) as client:
        rows = {one.name: one.held_ucredits for one in client.balance().accounts}
    return rows.get(f"rental:{rental}", 0)


@pytest.mark.slow
def test_from_the_lock_to_the_claims(market: Market) -> None:
    chain, pool = market.chain, market.placed.at("WorkPool")
    payees = [bytes([number + 1]) * 20 for number in range(2)]
    for number, payee in enumerate(payees):
        key = market.grid.state / f"worker-{number}" / "worker.key"
        told = market.run(
            "claim", "at", show_address(payee), "--worker-key", str(key), *market.seen()[2:]
        )
        assert told["address"] == show_address(payee)
    rental = locked(market)
    before = market.has(market.rig.people[1].address)
    job = worked(market, rental)
    bill = market.run("usage", "--by", "job")["rows"]
    spent, toll = next(
        (row["amount_ucredits"], row["toll_ucredits"]) for row in bill if row["key"] == job
    )
    assert spent > 0
    told = market.run("rental", "pay", rental, job, "--last", *market.options())
    assert (told["cumulative_ucredits"], told["is_last"]) == (spent, True)
    shown = lambda: market.run("rental", "show", rental, *market.seen())  # noqa: E731
    until("it is settled", lambda: shown()["state"] == "closed")
    assert shown()["paid_ucredits"] == spent
    until("a root waits", lambda: chain.call(pool, "waiting")[0] or chain.call(pool, "current")[0])
    market.rig.mine(1, WINDOW_S)
    earned = [market.run("claim", "show", show_address(one), *market.seen()) for one in payees]
    due = sum(one["claimable_ucredits"] for one in earned)
    assert due == spent - toll
    with Client(market.grid.address) as client:
        nodes = [row for row in client.balance(everyone=True).accounts if "node:" in row.name]
    assert [row.posted_ucredits for row in nodes] == [0] * len(payees)
    published(market)
    dry = market.run("claim", "take", show_address(payees[0]), *market.seen())
    assert dry["transaction"] == "" and market.has(payees[0]) == 0
    for payee in payees:
        market.run("claim", "take", show_address(payee), *market.options("relayer"), "--send")
    assert sum(map(market.has, payees)) == due
    assert market.has(pool.address) == CREDIT + spent - spent * 3 // 100 - due
    again = market.run(
        "claim", "take", show_address(payees[0]), *market.options("relayer"), "--send"
    )
    assert again["claimable_ucredits"] == 0 and again["transaction"] == ""
    # What was not spent is the client's, and the settlement finds every unit.
    with Client(market.grid.address) as client:
        ann = AccountKey(market.rig.people[1].secret)
        mine = Rental(client, chain, market.placed, ann, bytes.fromhex(rental))
        assert mine.withdraw() == 5 * CREDIT - spent
    assert market.has(market.rig.people[1].address) == before + 5 * CREDIT - spent
    log = market.grid.log("settlement")
    until("it is level", lambda: "drift 0" in log.read_text().splitlines()[-1])
    told = reconciled(market)
    assert told["drift"] == 0 and len(told["lines"]) == 14
    assert {line["name"]: line["ours"] for line in told["lines"]}["ledger: locked"] == 5 * CREDIT


def published(market: Market) -> None:
    """The list under the digest on the chain, by whoever has no grant, makes the root there."""
    pool = market.placed.at("WorkPool")
    number, root, _ = market.chain.call(pool, "current")
    posted = [
        event.arguments
        for event in market.chain.logs(0, market.chain.number(), [pool])
        if event.name == "RootPosted"
    ]
    digest = next(one["listDigest"] for one in posted if one["number"] == number)
    with StoreClient(f"unix://{market.grid.run}/store") as store:
        body = store.get("", digest.hex(), 1 << 20)
    assert hashlib.sha256(body).digest() == digest
    assert Tree(decode_list(body).leaves).root == root


def reconciled(market: Market) -> Any:
    """The report, once nothing is on its way."""

    def level() -> Any:
        done = gristmill(
            market.grid, "chain", "reconcile", *market.seen(), "--depth", "1", "--json"
        )
        told = json.loads(done.stdout)
        assert done.returncode == (1 if told["drift"] else 0)
        return told if not told["drift"] else None

    return until("nothing differs", level)


@pytest.mark.slow
def test_what_is_refused(market: Market) -> None:
    rental, other = locked(market, "1"), "ab" * 32
    keyed = market.options()
    assert market.refused("rental", "show", other, *market.seen()) == "UNKNOWN_RENTAL"
    assert market.refused("rental", "show", "12", *market.seen()) == "INVALID_SPEC"
    assert market.refused("rental", "pay", rental, "j999", *keyed) == "UNKNOWN_JOB"
    assert market.refused("rental", "refund", rental, *keyed) == "CHAIN_REVERTED"  # too early
    to = ("--provider", market.operator)
    assert market.refused("rental", "lock", "9999999", *to, *keyed) == "CHAIN_REVERTED"
    assert market.refused("rental", "lock", "1", "--provider", "0x12", *keyed) == "INVALID_SPEC"
    done = gristmill(market.grid, "submit", "--rental", "zz", "--", "true")
    assert done.returncode == 2 and "64 characters" in done.stderr
    done = gristmill(
        market.grid, "submit", "--rental", rental, "--cap", "2", "--wait", "--", "true"
    )
    assert "the cap is 2 credits" in done.stderr and "has 1 available" in done.stderr
    done = gristmill(market.grid, "submit", "--rental", other, "--cap", "1", "--wait", "--", "true")
    assert f"local has no rental {other}" in done.stderr
    # Another wallet's voucher is not the client's.
    job = worked(market, rental, "--cap", "1")
    assert (
        market.refused("rental", "pay", rental, job, *market.options("relayer")) == "UNAUTHORISED"
    )
    # A last voucher while a job goes on.
    going = gristmill(
        market.grid, "submit", "--rental", rental, "--cap", "0.9", "--", "sleep", "60"
    )
    until("it is held", lambda: held(market, rental))
    assert market.refused("rental", "pay", rental, job, "--last", *keyed) == "RENTAL_BUSY"
    gristmill(market.grid, "cancel", going.stdout.split()[0])
    until("its bill", lambda: not held(market, rental))
    assert market.refused("rental", "pay", rental, job, "--last", *keyed) == "INVALID_SPEC"
    stranger = show_address(b"\x77" * 20)
    assert market.run("claim", "show", stranger, *market.seen())["claimable_ucredits"] == 0
    assert market.refused("claim", "take", stranger, *market.seen(), "--send") == "INVALID_SPEC"


@pytest.mark.slow
def test_without_a_settlement_vouchers_wait_and_jobs_go_on(market: Market) -> None:
    rental = locked(market, "1")
    market.grid.kill("settlement")
    job = worked(market, rental, "--cap", "1")
    with Client(market.grid.address) as client:
        ann = AccountKey(market.rig.people[1].secret)
        mine = Rental(client, market.chain, market.placed, ann, bytes.fromhex(rental))
        with pytest.raises(RemoteError, match=r"settlement|ledger") as caught:
            mine.pay(job)
        assert caught.value.code in ("SETTLEMENT_DOWN", "LEDGER_DOWN")
        market.grid.restart("settlement")
        until("the voucher is taken", lambda: taken(mine, job))


def taken(rental: Rental, job: str) -> bool:
    try:
        return rental.pay(job).cumulative > 0
    except RemoteError as error:
        assert error.code in ("SETTLEMENT_DOWN", "LEDGER_DOWN"), error
        return False
