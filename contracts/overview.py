"""What the contracts of a deployment say of themselves, all as of one block."""

from typing import Any, NamedTuple

from gristmill.contracts import abi
from gristmill.contracts.deployment import Deployment, fault_of_code
from gristmill.contracts.rpc import Chain, Contract, contract_at
from gristmill.wire.errors import RemoteError


class Seen(NamedTuple):
    """One contract; addresses are empty where it has no such thing, amounts are micro-credits.

    ``fault``: how its code differs; then nothing else was asked of it. ``proposal``: a fee wallet
    that can take its place at ``proposal_from_s`` (Unix time). ``balance``: of the token.
    ``liability``: what the rental owes and holds. ``pool``: of WorkPool alone.
    """

    name: str
    address: bytes
    fault: str = ""
    owner: bytes = b""
    next_owner: bytes = b""
    fee_wallet: bytes = b""
    proposal: bytes = b""
    proposal_from_s: int = 0
    balance: int = 0
    liability: int | None = None
    pool: "Pool | None" = None


class Pool(NamedTuple):
    """WorkPool's root, and the one that waits (``waiting`` 0 for none) until ``waiting_from_s``."""

    coordinator: bytes
    guardian: bytes
    number: int
    root: bytes
    total: int
    claimed: int
    waiting: int
    waiting_root: bytes
    waiting_total: int
    waiting_from_s: int


class Overview(NamedTuple):
    """``now_s``: the block's time, by which the contracts go."""

    chain_id: int
    block: int
    now_s: int
    token: bytes
    symbol: str
    contracts: list[Seen]


def look(deployment: Deployment, chain: Chain) -> Overview:
    """Everything at the newest block.

    Raises:
        RemoteError: ``CHAIN_WRONG``: it is another chain; ``CHAIN_DOWN``.
    """
    if chain.chain_id != deployment.chain_id:
        raise RemoteError(
            "CHAIN_WRONG",
            f"{chain.shown} is chain {chain.chain_id}, the deployment's is {deployment.chain_id}",
            "name an RPC of that chain, or the deployment of this one",
        )
    header = chain.header("latest")
    if header is None:
        raise RemoteError("CHAIN_DOWN", f"{chain.shown} has no newest block")
    block, token = header.number, deployment.token_contract()
    seen = []
    for name, placed in deployment.contracts.items():
        contract = contract_at(name, placed.address)
        if not placed.block:
            seen.append(Seen(name, placed.address, "sent, and not seen in a block"))
        elif fault := fault_of_code(name, placed, chain.code(placed.address, block)):
            seen.append(Seen(name, placed.address, fault))
        elif name == "DevToken":
            seen.append(Seen(name, placed.address))
        else:
            seen.append(_look(chain, contract, token, block))
    symbol = str(chain.call(token, "symbol", block=block))
    return Overview(chain.chain_id, block, header.timestamp, deployment.token, symbol, seen)


def _look(chain: Chain, contract: Contract, token: Contract, block: int) -> Seen:
    def ask(function: str) -> Any:
        return chain.call(contract, function, block=block)

    seen = Seen(
        contract.name,
        contract.address,
        owner=ask("owner"),
        next_owner=_some(ask("pendingOwner")),
        balance=chain.call(token, "balanceOf", contract.address, block=block),
    )
    if contract.name == "WorkPool":
        return seen._replace(pool=_look_at_pool(chain, contract, block))
    seen = seen._replace(
        fee_wallet=ask("feeWallet"),
        proposal=_some(ask("proposedFeeWallet")),
        proposal_from_s=ask("feeWalletFrom"),
    )
    if contract.name == "ComputeRental":
        return seen._replace(liability=ask("totalLiability"))
    return seen


def _look_at_pool(chain: Chain, contract: Contract, block: int) -> Pool:
    number, root, total = chain.call(contract, "current", block=block)
    waiting, waiting_root, waiting_total, from_s = chain.call(contract, "waiting", block=block)
    return Pool(
        chain.call(contract, "coordinator", block=block),
        chain.call(contract, "guardian", block=block),
        number,
        root,
        total,
        chain.call(contract, "claimedTotal", block=block),
        waiting,
        waiting_root,
        waiting_total,
        from_s,
    )


def _some(address: bytes) -> bytes:
    """Empty for the zero address."""
    return b"" if address == abi.ZERO_ADDRESS else address
