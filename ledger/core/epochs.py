"""Epochs: when one closes, and what its head says.

Theory of operation. The ledger's accepted contributions, each by the digest that its entry of an
outbox has, are the leaves of one Merkle tree for each epoch. An epoch opens with the first receipt
behind the last one and closes ``epoch_ms`` later, when it has ``RECEIPTS_MAX`` of them, or when the
ledger ends in order; an idle ledger closes none. A head names the head before, the last link of the
chain of transfers, and the range of each broker's outbox with the link of its last entry: whoever
has a head can tell whether anything before it was changed since.

    state  | event                                | next
    -------|--------------------------------------|------------------------
    idle   | a receipt                            | open, due in epoch_ms
    open   | due; full; the ledger ends           | idle, a head is signed
"""

from collections.abc import Sequence

from gristmill.wire.epochs import EpochHead, Range, digest_of_head, digest_of_ranges
from gristmill.wire.merkle import DIGEST_BYTES, Levels, leaf_of, levels_of, root_of

#: of one epoch, about: what bounds the time that closing one and proving out of it takes
RECEIPTS_MAX = 65_536
NO_HEAD = bytes(DIGEST_BYTES)


def is_due(opened_ms: int, receipts: int, now_ms: int, epoch_ms: int) -> bool:
    """Whether an open epoch (``opened_ms`` is 0 for none) closes now."""
    return bool(opened_ms) and (now_ms - opened_ms >= epoch_ms or receipts >= RECEIPTS_MAX)


def tree_of(digests: Sequence[bytes]) -> Levels:
    """The tree over these contents, in their order."""
    return levels_of([leaf_of(digest) for digest in digests])


def next_head(
    before: EpochHead | None,
    tree: Levels,
    ranges: list[Range],
    transfers: int,
    transfer_chain: bytes,
    now_ms: int,
) -> EpochHead:
    """The head of the epoch after ``before``; time never goes back in them."""
    return EpochHead(
        number=before.number + 1 if before else 1,
        closed_ms=max(now_ms, before.closed_ms) if before else now_ms,
        receipts=len(tree[0]),
        root=root_of(tree),
        previous=digest_of_head(before) if before else NO_HEAD,
        transfers=transfers,
        transfer_chain=transfer_chain,
        ranges=digest_of_ranges(ranges),
    )
