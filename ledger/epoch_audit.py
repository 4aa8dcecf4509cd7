"""Whether epochs and keys are in order: every root from its receipts, every head from the books."""

from collections.abc import Iterator

from gristmill.ledger import schema
from gristmill.ledger.core.epochs import NO_HEAD, tree_of
from gristmill.ledger.engine import Database
from gristmill.wire.epochs import (
    EPOCH_CONTEXT,
    EpochHead,
    Range,
    digest_of_head,
    digest_of_ranges,
    signed_bytes,
)
from gristmill.wire.merkle import root_of
from gristmill.wire.receipts import is_by

_RECEIPTS = (
    "SELECT digest FROM entry WHERE broker = ? AND sequence BETWEEN ? AND ?"
    " AND kind = 3 AND code = '' ORDER BY sequence"
)


def key_faults(db: Database) -> Iterator[str]:
    """A name has another key only from later on."""
    query = "SELECT kind, name, public, from_ms FROM public_key ORDER BY kind, name, from_ms"
    before: tuple[str, str, str] = "", "", ""
    for kind, name, public, from_ms in db.execute(query):
        if (kind, name, public) == before:
            yield f"the key of the {kind} {name} from {from_ms} on is the one before"
        before = kind, name, public


def epoch_faults(db: Database) -> Iterator[str]:
    """Epochs from the first on: numbers, ranges, roots, links, signatures."""
    stated = [
        row for row in db.execute("SELECT public, from_ms FROM public_key WHERE kind = 'ledger'")
    ]
    brokers: dict[int, str] = {
        id_: broker for id_, broker in db.execute("SELECT id, broker FROM outbox")
    }
    covered: dict[int, int] = {}
    previous, expected = NO_HEAD, 0
    query = f"SELECT {schema.EPOCH} FROM epoch ORDER BY number"
    for *fields, public, signature in list(db.execute(query)):
        head = EpochHead(*fields)
        expected += 1
        if head.number != expected:
            yield f"epoch {expected} is missing; the next is {head.number}"
            expected = head.number
        if head.previous != previous:
            yield f"epoch {head.number} does not follow from the one before it"
        previous = digest_of_head(head)
        if not any(key == public and from_ms <= head.closed_ms for key, from_ms in stated):
            yield f"epoch {head.number} is signed by a key that was not the ledger's: {public}"
        if not is_by(public, EPOCH_CONTEXT + signed_bytes(head), signature):
            yield f"the signature of epoch {head.number} is not good"
        yield from _range_faults(db, head, brokers, covered)
        row = db.execute(
            "SELECT chain FROM transfer WHERE number = ?", (head.transfers,)
        ).fetchone()
        if (row[0] if row else schema.NO_CHAIN) != head.transfer_chain:
            yield f"transfer {head.transfers} is not the one that epoch {head.number} saw"


def _range_faults(
    db: Database, head: EpochHead, brokers: dict[int, str], covered: dict[int, int]
) -> Iterator[str]:
    ranges, digests = [], []
    query = "SELECT broker, first, last, chain FROM epoch_range WHERE epoch = ? ORDER BY broker"
    for broker, first, last, chain in list(db.execute(query, (head.number,))):
        whose = brokers.get(broker, "")
        if first != covered.get(broker, 0) + 1:
            yield (
                f"epoch {head.number} begins with entry {first} of {whose}; the epoch before ended"
                f" with {covered.get(broker, 0)}"
            )
        covered[broker] = last
        found = db.execute(
            "SELECT chain FROM entry WHERE broker = ? AND sequence = ?", (broker, last)
        ).fetchone()
        if found is None or found[0] != chain:
            yield f"entry {last} of {whose} is not the one that epoch {head.number} saw"
        ranges.append(Range(whose, first, last, chain))
        digests += [digest for (digest,) in db.execute(_RECEIPTS, (broker, first, last))]
    if digest_of_ranges(ranges) != head.ranges:
        yield f"the ranges of epoch {head.number} are not those of its head"
    if len(digests) != head.receipts or root_of(tree_of(digests)) != head.root:
        yield (
            f"the {len(digests)} receipts of epoch {head.number} do not make its root of"
            f" {head.receipts}"
        )
