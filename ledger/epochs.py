"""The ledger's epochs: closes them, signs their heads, and proves receipts out of them.

What an epoch covers is read from the books each time; in memory are only when the open one began
and the trees of those that were asked about last.
"""

import bisect
import logging
from collections import OrderedDict
from typing import Any

import msgspec
from nacl.signing import SigningKey

from gristmill.ledger import schema
from gristmill.ledger.audit import entry_of
from gristmill.ledger.book import Book
from gristmill.ledger.core.epochs import is_due, next_head, tree_of
from gristmill.ledger.engine import Database
from gristmill.wire.epochs import (
    EpochHead,
    KeyStatement,
    Range,
    ReceiptRow,
    ReceiptsPage,
    SignedHead,
    SignedKey,
    sign_head,
    sign_key,
)
from gristmill.wire.errors import RemoteError
from gristmill.wire.ledger import AskReceipts
from gristmill.wire.limits import HEADER_BYTES_MAX
from gristmill.wire.merkle import Levels, proof_of

log = logging.getLogger("gristmill.ledger")

PAGE_BYTES = HEADER_BYTES_MAX - (8 << 10)  #: of all parts of a page
PAGE_ROWS = 256
TREES_KEPT = 4
RETRY_MS = 5_000  #: after an epoch could not be closed
AFTER_BITS = 40  #: of a place in a job: attempt, then the index behind it
_encode = msgspec.msgpack.Encoder().encode
_LEAVES = (
    "SELECT sequence, digest FROM entry WHERE broker = ? AND sequence BETWEEN ? AND ?"
    " AND kind = 3 AND code = '' ORDER BY sequence"
)
_COUNT = "SELECT count(*) FROM entry WHERE broker = ? AND sequence > ? AND kind = 3 AND code = ''"


class _Tree:
    """The tree of an epoch, and which entry of which outbox each leaf is."""

    def __init__(self) -> None:
        self.entries: list[tuple[int, int]] = []
        self.levels: Levels = [[]]
        self._digests: list[bytes] = []

    def add(self, db: Database, outbox: int, first: int, last: int) -> None:
        """The receipts among these entries; outboxes come in their order."""
        for sequence, digest in db.execute(_LEAVES, (outbox, first, last)):
            self.entries.append((outbox, sequence))
            self._digests.append(digest)

    def build(self) -> "_Tree":
        """Once, when all leaves are there."""
        self.levels, self._digests = tree_of(self._digests), []
        return self


class Epochs:
    """See the module's text.

    Args:
        key: signs heads, and says whose the other keys are.
        epoch_ms: an epoch is closed so long after its first receipt.
    """

    def __init__(self, book: Book, key: SigningKey, epoch_ms: int) -> None:
        self._book = book
        self._key = key
        self._public = key.verify_key.encode().hex()
        self._epoch_ms = epoch_ms
        self._opened_ms = self._receipts = 0
        self._last: EpochHead | None = None
        self._trees: OrderedDict[int, _Tree] = OrderedDict()

    def load(self, now_ms: int, is_read_only: bool = False) -> None:
        """Find the last epoch, and whether receipts wait for the next; state the ledger's key."""
        row = self._row(f"SELECT {schema.EPOCH} FROM epoch ORDER BY number DESC LIMIT 1")
        self._last = EpochHead(*row[:-2]) if row else None
        self._receipts = sum(
            self._row(_COUNT, (broker, last))[0] for broker, _, last, _ in self._covered()
        )
        self._opened_ms = now_ms if self._receipts else 0
        if not is_read_only:
            self._state_key(now_ms)
        log.info("epoch=%d key=%s", self._last.number if self._last else 0, self._public)

    def note(self, receipts: int, now_ms: int) -> None:
        """So many more are in the books."""
        if receipts:
            self._receipts += receipts
            self._opened_ms = self._opened_ms or now_ms

    def wait_ms(self, now_ms: int) -> int | None:
        """How long until the open epoch closes; None when none is open."""
        if not self._opened_ms:
            return None
        return max(0, self._opened_ms + self._epoch_ms - now_ms)

    def look(self, now_ms: int, is_ending: bool = False) -> None:
        """Close the open epoch if it is due.

        Raises:
            PostponedError, RefusedError, or what the database raises: it stays open.
        """
        if self._opened_ms > now_ms:  # the clock was set back
            self._opened_ms = now_ms
        is_now = is_ending and self._receipts > 0
        if is_now or is_due(self._opened_ms, self._receipts, now_ms, self._epoch_ms):
            self._close(now_ms)

    def postpone(self, now_ms: int) -> None:
        """Closing it failed: again in a while."""
        self._opened_ms = min(now_ms, now_ms - self._epoch_ms + RETRY_MS)

    def _row(self, query: str, values: tuple[Any, ...] = ()) -> Any:
        return self._book.db.execute(query, values).fetchone()

    def _covered(self) -> list[tuple[int, str, int, int]]:
        """(outbox, broker, last entry that is in an epoch, last entry that is applied) of each."""
        query = (
            "SELECT outbox.id, outbox.broker, coalesce(max(epoch_range.last), 0), outbox.applied"
            " FROM outbox LEFT JOIN epoch_range ON epoch_range.broker = outbox.id"
            " GROUP BY outbox.id, outbox.broker, outbox.applied ORDER BY outbox.id"
        )
        return list(self._book.db.execute(query))

    def _close(self, now_ms: int) -> None:
        tree = _Tree()
        ranges: list[tuple[int, Range]] = []
        for id_, broker, last, applied in self._covered():
            if applied > last:
                tree.add(self._book.db, id_, last + 1, applied)
                link = "SELECT chain FROM entry WHERE broker = ? AND sequence = ?"
                (chain,) = self._row(link, (id_, applied))
                ranges.append((id_, Range(broker, last + 1, applied, chain)))
        assert tree.entries, "an epoch is opened by a receipt"
        tree.build()
        transfers = self._book.state.transfers
        (chain,) = self._row("SELECT chain FROM transfer WHERE number = ?", (transfers,)) or (
            schema.NO_CHAIN,
        )
        head = next_head(
            self._last, tree.levels, [range_ for _, range_ in ranges], transfers, chain, now_ms
        )
        row = (*msgspec.structs.astuple(head), self._public, sign_head(head, self._key))
        rows = [
            ("epoch", schema.EPOCH, row),
            *(
                ("epoch_range", schema.EPOCH_RANGE, (head.number, id_, r.first, r.last, r.chain))
                for id_, r in ranges
            ),
        ]
        self._book.insert(rows)
        self._last, self._opened_ms, self._receipts = head, 0, 0
        self._keep(head.number, tree)
        log.info("epoch=%d closed receipts=%d root=%s", head.number, head.receipts, head.root.hex())

    def _state_key(self, now_ms: int) -> None:
        """The ledger's own key is a row, too; another file of a key is another row from now on."""
        row = self._row(
            "SELECT public, from_ms FROM public_key WHERE kind = 'ledger'"
            " ORDER BY from_ms DESC LIMIT 1"
        )
        if row is None or row[0] != self._public:
            from_ms = max(now_ms, row[1] + 1) if row else now_ms
            if row:
                log.warning("the ledger's key is another one than before: %s", self._public)
            self._book.insert(
                [("public_key", schema.PUBLIC_KEY, ("ledger", "ledger", self._public, from_ms))]
            )

    # ------------------------------------------------------------ questions

    def page(self, question: AskReceipts) -> ReceiptsPage:
        """A page of receipts, with what proves those of closed epochs.

        Raises:
            RemoteError: ``UNKNOWN_JOB``.
        """
        hold = None
        if "\0" not in question.ref:  # a text that no database has
            hold = self._row("SELECT id, tenant FROM hold WHERE ref = ?", (question.ref,))
        if hold is None or hold[1] != question.tenant:
            raise RemoteError("UNKNOWN_JOB", f"there is no bill of {question.ref!r:.300}")
        broker = question.ref.rpartition("/")[0]
        page = ReceiptsPage([], [], self._keys("broker", broker), 0, self._epoch_ms)
        heads: set[int] = set()
        nodes: set[str] = set()
        size = len(_encode(page))
        for row in self._contributions(hold[0], question):
            entry = entry_of(question.ref, question.tenant, row)
            outbox, sequence = row[5], row[6]
            found = self._row(
                "SELECT epoch FROM epoch_range WHERE broker = ? AND first <= ? AND last >= ?",
                (outbox, sequence, sequence),
            )
            epoch, place = 0, 0
            proof: list[bytes] = []
            if found:
                epoch = found[0]
                place, proof = self._prove(epoch, outbox, sequence)
            parts = [ReceiptRow(sequence, entry, epoch, place, proof)]
            more_heads = [self._head(epoch)] if epoch and epoch not in heads else []
            more_keys = self._node_keys(broker, entry.node) if entry.node not in nodes else []
            size += sum(len(_encode(part)) for part in [*parts, *more_heads, *more_keys])
            if page.receipts and (size > PAGE_BYTES or len(page.receipts) >= PAGE_ROWS):
                last = page.receipts[-1].contribution
                after = (last.attempt << AFTER_BITS) + last.first + 1
                return msgspec.structs.replace(page, after=after)
            page.receipts.extend(parts)
            page.heads.extend(more_heads)
            page.keys.extend(more_keys)
            heads.add(epoch)
            nodes.add(entry.node)
        return page

    def _contributions(self, hold: int, question: AskReceipts) -> list[Any]:
        attempt, first = divmod(max(0, question.after), 1 << AFTER_BITS)
        query = (
            f"SELECT {schema.CONTRIBUTION} FROM contribution WHERE hold = ?"
            " AND (attempt > ? OR attempt = ? AND first >= ?)"
        )
        values: list[Any] = [hold, attempt, attempt, first]
        if question.index >= 0:
            query += " AND first <= ? AND first + count > ?"
            values += [question.index, question.index]
        if question.number > 0:
            query += " AND sequence = ?"
            values.append(question.number)
        query += f" ORDER BY replica, attempt, first LIMIT {PAGE_ROWS + 1}"
        return list(self._book.db.execute(query, values))

    def _prove(self, epoch: int, outbox: int, sequence: int) -> tuple[int, list[bytes]]:
        """(place in the tree of this epoch, its proof)."""
        tree = self._trees.get(epoch)
        if tree is None:
            tree = _Tree()
            query = "SELECT broker, first, last FROM epoch_range WHERE epoch = ? ORDER BY broker"
            for row in list(self._book.db.execute(query, (epoch,))):
                tree.add(self._book.db, *row)
            self._keep(epoch, tree.build())
        self._trees.move_to_end(epoch)
        place = bisect.bisect_left(tree.entries, (outbox, sequence))
        assert tree.entries[place] == (outbox, sequence), (epoch, outbox, sequence)
        return place, proof_of(tree.levels, place)

    def _keep(self, epoch: int, tree: "_Tree") -> None:
        self._trees[epoch] = tree
        while len(self._trees) > TREES_KEPT:
            self._trees.popitem(last=False)

    def _head(self, number: int) -> SignedHead:
        """Signed by the key that the ledger has now: the one that the page states."""
        row = self._row(f"SELECT {schema.EPOCH} FROM epoch WHERE number = ?", (number,))
        *fields, public, signature = row
        head = EpochHead(*fields)
        if public != self._public:
            signature = sign_head(head, self._key)
        return SignedHead(head, signature)

    def _keys(self, kind: str, name: str) -> list[SignedKey]:
        """The ledger's key and all of this name."""
        query = (
            "SELECT kind, name, public, from_ms FROM public_key WHERE kind = ? AND name = ?"
            " ORDER BY from_ms"
        )
        own = list(self._book.db.execute(query, ("ledger", "ledger")))
        if not own or own[-1][2] != self._public:  # read-only from its start: not stated
            own = [("ledger", "ledger", self._public, 0)]
        return [self._signed(row) for row in [own[-1], *self._book.db.execute(query, (kind, name))]]

    def _node_keys(self, broker: str, public: str) -> list[SignedKey]:
        query = "SELECT kind, name, public, from_ms FROM public_key WHERE public = ? ORDER BY name"
        found = self._book.db.execute(query, (public,))
        its = [row for row in found if row[0] == "node" and row[1].startswith(f"{broker}/")]
        return [self._signed(row) for row in its[:1]]

    def _signed(self, row: Any) -> SignedKey:
        statement = KeyStatement(*row)
        return SignedKey(statement, sign_key(statement, self._key))
