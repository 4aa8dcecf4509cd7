"""Deploying the contracts: first a plan that sends nothing, then step by step what it says.

A deployment can be interrupted at any point and said again. Before a transaction is sent its hash
stands in the deployment file; afterwards its block and the code that lies there. So a step is never
paid for twice while the chain still knows the first.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import msgspec

from gristmill.contracts import abi, deployment
from gristmill.contracts.artifact import difference, load
from gristmill.contracts.deployment import CONTRACTS, Deployment, Placed
from gristmill.contracts.ethereum import keccak, utils
from gristmill.contracts.keys import Signer
from gristmill.contracts.rpc import Chain, Fees, Transaction, check_token, token_at
from gristmill.wire.errors import RemoteError

DEVELOPMENT_CHAIN = 31337  #: where DevToken may lie: anvil's and hardhat's
GAS_MARGIN_PERCENT = 10  #: a limit so much above the estimate
MINED_S = 180.0  #: how long a step may wait for its block
PERIOD_S_MIN, PERIOD_S_MAX = 60, 90 * 86_400  #: what the contracts take


class Wanted(NamedTuple):
    """Who and how long; addresses have 20 bytes, times are seconds, amounts micro-credits.

    ``token`` is empty where DevToken is deployed too. ``coordinator`` owns WorkPool and posts its
    roots; the owner of the others is who deploys.
    """

    token: bytes
    fee_wallet: bytes
    arbiter: bytes
    guardian: bytes
    coordinator: bytes
    window_s: int
    cap_ucredits: int
    grace_s: int
    dispute_window_s: int

    def arguments(self, name: str, token: bytes) -> tuple[bytes | int, ...]:
        """Of a contract's constructor, in order."""
        if name == "DevToken":
            return ()
        if name == "WorkPool":
            return token, self.coordinator, self.guardian, self.window_s, self.cap_ucredits
        if name == "ComputeRental":
            return token, self.fee_wallet, self.arbiter, self.grace_s, self.dispute_window_s
        assert name == "PromptMarketplace", name
        return token, self.fee_wallet


State = Literal["done", "sent", "to do"]


class Step(NamedTuple):
    """One contract. ``address``: where it lies or will; ``gas``: an estimate, 0 for what is done.

    ``sent``: the transaction that is on its way, empty for none.
    """

    name: str
    state: State
    address: bytes
    arguments: tuple[bytes | int, ...]
    gas: int
    sent: bytes = b""


class Plan(NamedTuple):
    """What deploying would do now. ``balance``: wei of the sender; ``token``: its address."""

    steps: list[Step]
    sender: bytes
    token: bytes
    fees: Fees
    balance: int

    @property
    def gas(self) -> int:
        """Of all steps that are left."""
        return sum(step.gas for step in self.steps)

    @property
    def cost(self) -> int:
        """Wei at the present fee."""
        return self.gas * (self.fees.base + self.fees.priority)

    @property
    def cost_limit(self) -> int:
        """Wei that the sender must have: gas limits at twice the base fee."""
        return sum(gas_limit(step.gas) for step in self.steps) * self.fees.limit


def gas_limit(gas: int) -> int:
    """The limit of a transaction of which this much is estimated."""
    return gas + gas * GAS_MARGIN_PERCENT // 100


def create_address(sender: bytes, nonce: int) -> bytes:
    """Where the contract lies that a sender's transaction of this number makes."""
    made = utils.get_create_address(abi.show_address(sender), nonce)  # type: ignore[arg-type]
    return bytes.fromhex(str(made)[2:])


def check_wanted(wanted: Wanted, chain: Chain) -> None:
    """Raises unless the contracts can be deployed like this; every fault is named.

    Raises:
        RemoteError: ``INVALID_SPEC``; ``CHAIN_WRONG`` for what is no token with 6 decimals.
    """
    faults = [
        f"{what}: {seconds} s is not from {PERIOD_S_MIN} s to {PERIOD_S_MAX // 86_400} days"
        for what, seconds in (
            ("--window", wanted.window_s),
            ("--grace", wanted.grace_s),
            ("--dispute-window", wanted.dispute_window_s),
        )
        if not PERIOD_S_MIN <= seconds <= PERIOD_S_MAX
    ]
    if not 0 < wanted.cap_ucredits < 2**128:
        faults.append(f"--cap: {wanted.cap_ucredits} is no amount")
    if wanted.guardian == wanted.coordinator:
        faults.append("--guardian is the coordinator: nobody would watch what it posts")
    if not wanted.token and chain.chain_id != DEVELOPMENT_CHAIN:
        faults.append(
            f"--dev-token is money that anybody makes: not on chain {chain.chain_id}, only on a "
            f"development chain ({DEVELOPMENT_CHAIN})"
        )
    if faults:
        raise RemoteError("INVALID_SPEC", "; ".join(faults), "gristmill chain deploy --help")
    if wanted.token:
        check_token(chain, token_at(wanted.token))


def make(chain: Chain, wanted: Wanted, sender: bytes, known: Deployment | None) -> Plan:
    """What is left to do, and what it costs; sends nothing.

    Args:
        chain: it is asked only.
        wanted: see ``check_wanted``, which is called.
        sender: who deploys.
        known: what the deployment file says, if there is one.

    Raises:
        RemoteError: as ``check_wanted``; ``CHAIN_WRONG``: the file's chain, code or arguments are
            others; ``CHAIN_REVERTED``: a constructor would refuse.
    """
    check_wanted(wanted, chain)
    if known is not None and known.chain_id != chain.chain_id:
        raise RemoteError(
            "CHAIN_WRONG",
            f"{chain.shown} is chain {chain.chain_id}; the deployment file is of {known.chain_id}",
            "name another --deployment for another chain",
        )
    placed = dict(known.contracts) if known is not None else {}
    nonce = chain.nonce(sender, "pending")
    names = (*([] if wanted.token else ["DevToken"]), *CONTRACTS)
    token, steps = wanted.token, list[Step]()
    for name in names:
        step = _known_step(chain, name, placed.get(name))
        if step is None:
            address = create_address(sender, nonce)
            step = Step(name, "to do", address, wanted.arguments(name, token or address), 0)
            step = step._replace(gas=_estimate(chain, step, sender, nonce, steps))
            nonce += 1
        if name == "DevToken":
            token = step.address
        _check_arguments(step, wanted.arguments(name, token))
        steps.append(step)
    if known is not None and known.token != token:
        raise RemoteError(
            "CHAIN_WRONG",
            f"the deployment file is for the token {abi.show_address(known.token)}, "
            f"not {abi.show_address(token)}",
            "name that token, or another --deployment",
        )
    return Plan(steps, sender, token, chain.fees(), chain.balance(sender))


def _known_step(chain: Chain, name: str, placed: Placed | None) -> Step | None:
    """The step of what the file has, done or on its way; None where it must be done (again)."""
    if placed is None:
        return None
    artifact = load(name)
    values = _values(name, placed)
    if placed.block:
        fault = deployment.fault_of_code(name, placed, chain.code(placed.address))
    else:
        receipt = chain.receipt(placed.transaction)
        if receipt is None:
            is_waiting = chain.is_known(placed.transaction)
            sent = Step(name, "sent", placed.address, values, 0, placed.transaction)
            return sent if is_waiting else None
        if not receipt.is_ok:
            return None
        fault = difference(artifact, chain.code(placed.address))
        if not fault:
            return Step(name, "sent", placed.address, values, 0, placed.transaction)
    if fault:
        raise RemoteError(
            "CHAIN_WRONG",
            f"{name} at {abi.show_address(placed.address)}: {fault}",
            "the file is of another chain or of another release: name another --deployment",
        )
    return Step(name, "done", placed.address, values, 0)


def _values(name: str, placed: Placed) -> tuple[bytes | int, ...]:
    values = (placed.arguments[key] for key in abi.interface_of(name).constructor_names())
    return tuple(bytes.fromhex(v[2:]) if isinstance(v, str) else v for v in values)


def _check_arguments(step: Step, wanted: Sequence[bytes | int]) -> None:
    names = abi.interface_of(step.name).constructor_names()
    other = [
        f"{name} is {abi.show(has)}, not {abi.show(asked)}"
        for name, has, asked in zip(names, step.arguments, wanted, strict=True)
        if has != asked
    ]
    if other:
        raise RemoteError(
            "CHAIN_WRONG",
            f"{step.name} at {abi.show_address(step.address)} is deployed otherwise: "
            + "; ".join(other),
            "say it with what it was begun with, or name another --deployment",
        )


def _estimate(chain: Chain, step: Step, sender: bytes, nonce: int, before: Sequence[Step]) -> int:
    """Gas of a step; a DevToken that is not there yet is shown to the node as if it were."""
    told = {"from": abi.show_address(sender), "data": f"0x{_body(step).hex()}"}
    params: list[object] = [told]
    absent = [s.address for s in before if s.name == "DevToken" and s.state != "done"]
    if absent:
        as_if = {
            abi.show_address(absent[0]): {"code": f"0x{load('DevToken').deployed.hex()}"},
            abi.show_address(sender): {"nonce": hex(nonce)},
        }
        params += ["latest", as_if]
    found = chain.ask("eth_estimateGas", params, f"deploying {step.name}")
    return int(str(found), 16)


def _body(step: Step) -> bytes:
    return abi.constructor_of(load(step.name), step.arguments)


def check_funds(plan: Plan) -> None:
    """Raises unless the sender can pay for all steps.

    Raises:
        RemoteError: ``CHAIN_FUNDS``.
    """
    if plan.balance < plan.cost_limit:
        raise RemoteError(
            "CHAIN_FUNDS",
            f"{abi.show_address(plan.sender)} has {coins(plan.balance)} coin; the steps may cost "
            f"up to {coins(plan.cost_limit)}, at twice the present fee",
            f"send it {coins(plan.cost_limit - plan.balance)} more, then say the same again",
        )


def coins(wei: int) -> str:
    """Wei as the chain's coin, of 18 decimals; all digits that are not zero."""
    whole, rest = divmod(wei, 10**18)
    return f"{whole:,}.{rest:018d}".rstrip("0").rstrip(".")


def execute(
    chain: Chain,
    plan: Plan,
    signer: Signer,
    path: pathlib.Path,
    known: Deployment | None,
    tell: Callable[[Step, Placed], None],
    mined_s: float = MINED_S,
) -> Deployment:
    """Do what is left of a plan; the file is written before and after each transaction.

    Args:
        chain: see ``make``.
        plan: of this very moment: another transaction of the sender in between ends it.
        signer: its address is the plan's sender.
        path: of the deployment file.
        known: what it says now, if it is there.
        tell: called after each step with what is on the chain.
        mined_s: how long each may wait for its block.

    Raises:
        RemoteError: ``CHAIN_DOWN``, ``CHAIN_FUNDS``, ``CHAIN_REVERTED``, ``CHAIN_WRONG``, or the
            signer's. What is done is in the file; saying the same again goes on from there.
    """
    assert signer.address == plan.sender, (signer.address, plan.sender)
    check_funds(plan)
    now = known or Deployment(chain.chain_id, plan.token, {})
    for step in plan.steps:
        if step.state == "done":
            continue
        transaction = step.sent
        if not transaction:
            raw = signer.sign(_transaction(chain, plan, step))
            transaction = keccak(raw)
            now = _with(now, step, Placed(step.address, b"", 0, transaction, _told(step)))
            deployment.write(now, path)
            chain.send(raw)
        receipt = chain.wait(transaction, mined_s)
        code = chain.code(step.address)
        fault = difference(load(step.name), code)
        if not receipt.is_ok or receipt.contract != step.address or fault:
            raise RemoteError(
                "CHAIN_REVERTED",
                f"{step.name} was not made at {abi.show_address(step.address)}: "
                f"{fault or 'its transaction failed'} (0x{transaction.hex()})",
                "look at that transaction; said again, this step is done anew",
            )
        placed = Placed(step.address, keccak(code), receipt.block, transaction, _told(step))
        now = _with(now, step, placed)
        deployment.write(now, path)
        tell(step, placed)
    return now


def _transaction(chain: Chain, plan: Plan, step: Step) -> Transaction:
    """The one that makes a step's contract, with the sender's next number and the present fee."""
    nonce = chain.nonce(plan.sender, "pending")
    if create_address(plan.sender, nonce) != step.address:
        raise RemoteError(
            "CHAIN_NONCE",
            f"{abi.show_address(plan.sender)} has sent something else in the meantime: "
            f"{step.name} would not lie at {abi.show_address(step.address)}",
            "say the same again: what is done is kept",
        )
    fees = chain.fees()
    return Transaction(
        chain.chain_id, nonce, b"", _body(step), gas_limit(step.gas), fees.limit, fees.priority
    )


def _told(step: Step) -> dict[str, str | int]:
    """The arguments as the file has them."""
    names = abi.interface_of(step.name).constructor_names()
    values = (abi.show(v) if isinstance(v, bytes) else v for v in step.arguments)
    return dict(zip(names, values, strict=True))


def _with(now: Deployment, step: Step, placed: Placed) -> Deployment:
    return msgspec.structs.replace(now, contracts={**now.contracts, step.name: placed})
