"""A job paid for out of a contract, from the lock to the nodes' claims, on a chain of this machine.

    python examples/rental.py --subtasks 2000 --nodes 3

Starts a development chain (anvil: ``npm ci --prefix contracts``), deploys the contracts, starts a
grid with a settlement, locks credits, runs a job in jails, signs a voucher for its receipts, lets
the settlement redeem it and post a root, and claims for every node. Then it shows what each step
cost in gas, and that every unit of what was locked is where it should be.
"""

import argparse
import collections
import contextlib
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

from gristmill.cli.grid import Grid
from gristmill.client import Client
from gristmill.client.rental import Rental, leaves, state_payee
from gristmill.contracts import abi, deployment, keys, plan
from gristmill.contracts.act import act
from gristmill.contracts.merkle import Tree
from gristmill.contracts.rpc import Chain
from gristmill.wire import chain as wire
from gristmill.wire.keys import WORKER_KEY, load_key
from gristmill.wire.units import format_credits

ANVIL = (
    pathlib.Path(__file__)
    .parents[1]
    .joinpath("contracts/node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil")
)
CREDIT = 1_000_000
LOCKED = 50 * CREDIT
SEED = CREDIT  #: in the pool from the beginning, for what rounding takes (docs/settlement.md)
WINDOW_S = 60  #: of the pool: a root waits so long
CLAIMS_AT_ONCE = 100
PASSWORD = "only on a development chain"
SETTLEMENT = """\
rpcs = ["{url}"]
deployment = "{folder}/deployment.json"
keystore = "{folder}/settlement.keystore"
password_file = "{folder}/password"
depth = 2
poll_s = 0.2
epoch = "2s"
redeem_min = "0.000001"
reconcile = "1s"
"""


def work(number: int) -> int:
    """A subtask: some arithmetic in a jail."""
    return sum(i * i for i in range(number % 50))


@contextlib.contextmanager
def development_chain() -> Iterator[tuple[str, list[bytes]]]:
    """(URL, the secrets of ten accounts that have coin) of a chain with a block each second."""
    program = shutil.which("anvil") or str(ANVIL)
    if not pathlib.Path(program).exists():
        sys.exit("this example needs anvil: npm ci --ignore-scripts --prefix contracts")
    options = ("--host", "127.0.0.1", "--port", "0", "--block-time", "1", "--hardfork", "cancun")
    with subprocess.Popen([program, *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            secrets = []
            for line in process.stdout:
                if found := re.match(r"\(\d\) 0x([0-9a-f]{64})$", line.strip()):
                    secrets.append(bytes.fromhex(found[1]))
                if found := re.search(r"Listening on ([0-9.:]+)", line):
                    break
            assert found is not None, "anvil ended"
            yield f"http://{found[1]}", secrets
        finally:
            process.terminate()


def until(what: str, condition: Callable[[], object]) -> None:
    """Waits, and says for what."""
    print(f"  waits for {what} ...", flush=True)
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def gas_by_function(chain: Chain, placed: deployment.Deployment) -> dict[str, list[int]]:
    """What each call of our contracts cost, by its name, in the chain's order."""
    contracts = {one.address: one for one in map(placed.at, ("ComputeRental", "WorkPool"))}
    found: dict[str, list[int]] = collections.defaultdict(list)
    for number in range(chain.number() + 1):
        block = chain.ask("eth_getBlockByNumber", [hex(number), True])
        for told in block["transactions"]:
            contract = contracts.get(bytes.fromhex((told["to"] or "0x")[2:]))
            name = contract and contract.interface.name_of(bytes.fromhex(told["input"][2:10]))
            receipt = chain.receipt(bytes.fromhex(told["hash"][2:]))
            if name and receipt is not None:
                assert receipt.is_ok, (name, told["hash"])
                found[name].append(receipt.gas_used)
    return found


def deploy(
    chain: Chain, people: list[keys.AccountKey], folder: pathlib.Path
) -> deployment.Deployment:
    """The contracts and a token on the chain: what ``gristmill chain deploy --send`` does."""
    operator, _, fees, arbiter, guardian = people[:5]
    wanted = plan.Wanted(
        b"", fees.address, arbiter.address, guardian.address, operator.address, WINDOW_S,
        10**12, 3_600, 3_600,
    )  # fmt: skip
    path = folder / "deployment.json"
    made = plan.make(chain, wanted, operator.address, None)
    return plan.execute(chain, made, operator, path, None, lambda *_: None)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--subtasks", type=int, default=2_000)
    parser.add_argument("--nodes", type=int, default=3)
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url, secrets = stack.enter_context(development_chain())
        chain = Chain([url])
        stack.callback(chain.close)
        people = [keys.AccountKey(secret) for secret in secrets]
        operator, customer = people[:2]
        print(f"== contracts on chain {chain.chain_id}")
        placed = deploy(chain, people, folder)
        for name, one in placed.contracts.items():
            print(f"  {name} at {abi.show_address(one.address)}")
        token, pool = placed.token_contract(), placed.at("WorkPool")
        act(chain, customer, token, "mint", customer.address, LOCKED)
        act(chain, operator, token, "mint", pool.address, SEED)
        (folder / "password").write_text(PASSWORD)
        (folder / "password").chmod(0o600)
        keys.write_keystore(folder / "settlement.keystore", operator.secret, PASSWORD)
        config = folder / "settlement.toml"
        config.write_text(SETTLEMENT.format(url=url, folder=folder))

        print(f"== a grid with {args.nodes} nodes and a settlement")
        grid = Grid.temporary(workers=args.nodes, slots=1, settlement=str(config), fund="")
        stack.callback(grid.stop)
        grid.start(timeout_s=60.0 + 2 * args.nodes)  # a second of cpu each, on few cores
        client = stack.enter_context(Client(grid.address))
        addresses = pay_nodes(grid, client, wire.pool_of(chain.chain_id, pool.address))

        print(f"== {format_credits(LOCKED)} credits are locked")
        header = chain.header()
        assert header is not None
        deadline_s = header.timestamp + 86_400
        rental = Rental.lock(client, chain, placed, customer, LOCKED, deadline_s, operator.address)
        print(f"  rental {rental.name}")
        print(f"  the grid has {format_credits(rental.wait())} of it")

        print(f"== a job of {args.subtasks:,} subtasks in jails, paid by the rental")
        results = client.map(
            work, range(args.subtasks), rental=rental.name, cap="40", tier="batch", name="rental"
        )
        assert sum(results) == sum(map(work, range(args.subtasks)))
        until("its bill", lambda: rental.credits() is not None and not held(client, rental))
        proof = rental.proof(results.job)
        print(f"  {format_credits(proof.amount)} credits, by {proof.receipts:,} receipts")

        print("== the last voucher, over it; the settlement redeems it and gives the rest back")
        rental.pay(results.job, is_last=True)
        until("the redemption", lambda: rental.seen().state == "closed")
        until("a root", lambda: chain.call(pool, "waiting")[0] == 1)
        chain.ask("evm_increaseTime", [WINDOW_S])
        until("its window", lambda: chain.call(pool, "current")[0] == 1)
        back = rental.withdraw()
        claim_all(client, chain, people[5], placed, addresses)

        print("== what it cost")
        gas = gas_by_function(chain, placed)
        fixed = sum(gas[name][0] for name in ("lock", "settle", "withdrawTo", "post"))
        for name, found in gas.items():
            each = f"{sum(found) // len(found):,} each" if len(found) > 1 else ""
            print(f"  {name:12} {sum(found):>10,} {each}")
        print(f"  lock, settle, withdrawTo(pool) and post: {fixed:,} gas in all,")
        print(f"  {fixed / args.subtasks:.2f} gas a subtask; an epoch's post: {gas['post'][0]:,}")

        print("== where it is")
        paid = sum(chain.call(token, "balanceOf", address) for address in addresses)
        toll = chain.call(placed.at("ComputeRental"), "owed", people[2].address)
        rest = chain.call(token, "balanceOf", pool.address)
        for what, amount in (("nodes", paid), ("toll", toll), ("client", back), ("pool", rest)):
            print(f"  {what:12} {format_credits(amount)}")
        assert paid + toll + back + rest == LOCKED + SEED
        until("the settlement's own count", lambda: "drift 0" in grid.log("settlement").read_text())
        print(f"  together     {format_credits(LOCKED + SEED)}: drift 0")


def pay_nodes(grid: Grid, client: Client, pool: str) -> list[bytes]:
    """Each worker says, in its own words, at which address it is paid."""
    addresses = []
    for number in range(grid.workers):
        key = load_key(grid.state / f"worker-{number}" / WORKER_KEY)
        node = key.verify_key.encode().hex()
        address = number.to_bytes(4, "big") + bytes.fromhex(node)[:16]
        payee = wire.Payee(node, pool, address, time.time_ns() // 1_000_000)
        state_payee(client, payee, wire.sign_payee(payee, key))
        addresses.append(address)
    return addresses


def held(client: Client, rental: Rental) -> int:
    """What unfinished jobs hold of the rental."""
    rows = {one.name: one.held_ucredits for one in client.balance().accounts}
    return rows[f"rental:{rental.name}"]


def claim_all(
    client: Client,
    chain: Chain,
    relayer: keys.AccountKey,
    placed: deployment.Deployment,
    addresses: list[bytes],
) -> None:
    """Anybody may send the claims of all; the money goes to the nodes."""
    pool = placed.at("WorkPool")
    found = leaves(client, wire.pool_of(chain.chain_id, pool.address))
    tree = Tree([(leaf.address, leaf.cumulative) for leaf in found])
    _, root, _ = chain.call(pool, "current")
    assert tree.root == root, "the books do not make the root that stands"
    print(f"== claims of {len(found)} nodes, {CLAIMS_AT_ONCE} at once; their tree is the root's")
    for first in range(0, len(found), CLAIMS_AT_ONCE):
        some = found[first : first + CLAIMS_AT_ONCE]
        proofs = [tree.proof_of(leaf.address) for leaf in some]
        act(
            chain, relayer, pool, "claimMany",
            [leaf.address for leaf in some], [leaf.cumulative for leaf in some], proofs,
        )  # fmt: skip
    assert {leaf.address for leaf in found} <= set(addresses)


if __name__ == "__main__":
    main()
