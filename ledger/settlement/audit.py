"""The chain held against the books by somebody who has neither kept before: `chain reconcile`.

Reads every event of the contracts from their first block, which the settlement has done once and
keeps. What it says is as of one block, K deep.
"""

from collections.abc import Callable

from gristmill.contracts.abi import ZERO_ADDRESS
from gristmill.contracts.deployment import Deployment
from gristmill.contracts.rpc import Chain
from gristmill.ledger.settlement.core.mirror import Mirror, apply
from gristmill.ledger.settlement.core.reconcile import Report, reconcile
from gristmill.ledger.settlement.evm import EvmNode
from gristmill.ledger.settlement.ports import NodeDownError
from gristmill.wire.chain import SPECS_MAX, ChainBooks
from gristmill.wire.errors import RemoteError

BLOCKS_AT_ONCE = 500


def report(
    chain: Chain,
    deployment: Deployment,
    depth: int,
    books: Callable[[], ChainBooks],
    agreed: Callable[[list[bytes]], list[bool]],
    tell: Callable[[int, int], None] = lambda at, of: None,
) -> Report:
    """What differs, as of the block that is ``depth`` below the newest.

    Args:
        chain: where.
        deployment: of the contracts there, checked.
        depth: blocks; the settlement's own, so that the ledger was told of that block.
        books: asks the ledger for its sums.
        agreed: asks it which of some specs somebody agreed to.
        tell: called with (block, last block) now and then.

    Raises:
        RemoteError: ``CHAIN_DOWN``, or what the questions raise.
    """
    rental, pool = deployment.at("ComputeRental"), deployment.at("WorkPool")
    node = EvmNode(chain, rental, pool, deployment.token_contract(), ZERO_ADDRESS)
    first = min(deployment.contracts[one.name].block for one in (rental, pool))
    try:
        last = node.head().number - depth
        mirror = Mirror(pool.address)
        for begin in range(first, last + 1, BLOCKS_AT_ONCE):
            end = min(last, begin + BLOCKS_AT_ONCE - 1)
            for fact in node.facts(begin, end):
                apply(mirror, fact)
            tell(end, last)
        figures = node.figures(last)
    except NodeDownError as error:
        raise RemoteError("CHAIN_DOWN", str(error), "name another --rpc, or try again") from None
    rentals = list(mirror.rentals.values())
    known: list[bool] = []
    for at in range(0, len(rentals), SPECS_MAX):
        known += agreed([one.spec for one in rentals[at : at + SPECS_MAX]])
    foreign = frozenset(one.id for one, is_ours in zip(rentals, known, strict=True) if not is_ours)
    return reconcile(mirror, figures, books(), foreign)
