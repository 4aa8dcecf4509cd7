"""One settlement: what is certain on the chain, told to the ledger; what the ledger owes, sent.

Each turn does everything that is due, in an order in which nothing can be done twice: read the
chain, tell the ledger what is certain, find out what to do next, let the queue send. Whatever
fails is left as it is for the next turn; whatever was done is on disk or certain on the chain. A
chain, a ledger or a store that does not answer is waited for, told once; the grid needs none of it.
"""

import logging
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from msgspec.structs import asdict

from gristmill.contracts import merkle, vouchers
from gristmill.contracts.rpc import Contract
from gristmill.ledger.settlement.core import chain_log, epochs, queue_records, reconcile
from gristmill.ledger.settlement.core.chain_log import Fact
from gristmill.ledger.settlement.core.mirror import Mirror, apply, sums
from gristmill.ledger.settlement.core.queue_records import State, told_state
from gristmill.ledger.settlement.core.vouchers import Voucher, judge
from gristmill.ledger.settlement.courier import Courier
from gristmill.ledger.settlement.follower import Follower
from gristmill.ledger.settlement.ports import (
    Books,
    BooksDownError,
    Lists,
    Node,
    NodeDownError,
    Signer,
    Stated,
    UnknownRentalError,
)
from gristmill.ledger.settlement.rows import Rows
from gristmill.wire.chain import HASH_BYTES, Shown, ShowVoucher, VoucherRuling
from gristmill.wire.errors import RemoteError

log = logging.getLogger("gristmill.settlement")

PRESENT_MS = 5_000  #: a ledger that was started again hears of us within this
GO = "go"  #: a file in the state folder: an operator says go
NO_RECEIPTS = bytes(32)  #: where a payout commits to no receipts of its own


class FullNode(Node, Protocol):
    """A node that can be asked what the contracts hold."""

    def figures(self, block: int) -> reconcile.Figures:
        """All as of one block."""
        ...


class Place(NamedTuple):
    """Where the contracts are. ``start``: the first block that can have something of them."""

    chain_id: int
    rental: Contract
    pool: Contract
    start: int


class Pace(NamedTuple):
    """``epoch_s``: between two redemptions of a rental. ``reconcile_s``: between two reports."""

    epoch_s: float
    reconcile_s: float


class Settlement:
    """See the module's text. One thread; the clock is Unix time in ms.

    Args:
        state: folder of the file GO.
    """

    def __init__(
        self,
        rows: Rows,
        nodes: Sequence[FullNode],
        signer: Signer,
        books: Books,
        lists: Lists,
        place: Place,
        blocks: chain_log.Limits,
        queue: queue_records.Limits,
        epoch: epochs.Settings,
        pace: Pace,
        state: pathlib.Path,
        clock: Callable[[], int],
    ) -> None:
        self._rows, self._nodes, self._books, self._lists = rows, list(nodes), books, lists
        self._place, self._epoch, self._pace, self._clock = place, epoch, pace, clock
        self._go = state / GO
        self.mirror = self._fresh()
        self.follower = Follower(
            rows, blocks, place.start, self._on_facts, self._on_deep, self._on_rewound
        )
        self.courier = Courier(rows, queue, signer, self.follower.log, clock, self._on_ended)
        self._vouchers = {v.rental: v for v in rows.all("voucher", Voucher)}
        self._payout = rows.get("payout", 0, epochs.Payout)
        self._done = rows.get("done", 0, int) or 0
        self._stated = {one.id: one for one in rows.all("stated", Stated)}
        self._foreign = {id: None for id in rows.all("foreign", bytes)}
        self._claims = rows.get("claims", 0, int) or 0
        self._troubles: dict[str, str] = {}
        self._due_ms = self._reconcile_ms = self._present_ms = self._time_s = 0
        self._is_level = False
        #: drifts that an operator has seen and said go to, by line; None: those of the next report
        self._accepted: dict[str, int] | None = rows.get("accepted", 0, dict[str, int]) or {}
        self.report: reconcile.Report | None = None
        self._funds = 0  # that the pool ever had, as it said last
        if why := rows.get("halt", 0, str) or self.follower.log.halted:
            self.courier.halt(why)

    # ------------------------------------------------------------ a turn

    def turn(self) -> None:
        """Everything that is due; never raises for what may come back by itself."""
        self._look_for_go()
        if not self._guard("chain", self._follow):
            self._nodes.append(self._nodes.pop(0))  # another one, if there is
            return
        if not self._is_level:
            return  # what is read is the past: nothing is decided by it
        is_told = self._guard("ledger", self._state)
        if not self.halted:
            self._guard("payouts", self._move)
        self._guard("sending", lambda: self.courier.turn(self._nodes[0]))
        now_ms = self._clock()
        is_time = now_ms >= self._reconcile_ms and self.follower.log.applied >= 0
        if is_told and is_time:
            if self._guard("reconciliation", self.reconcile):
                self._reconcile_ms = now_ms + int(self._pace.reconcile_s * 1000)

    @property
    def halted(self) -> str:
        """Why nothing is sent; empty when all is well."""
        return self.courier.lane.halted

    def _guard(self, what: str, do: Callable[[], object]) -> bool:
        """Do it; trouble is told once, until it is over."""
        try:
            do()
        except (NodeDownError, BooksDownError) as error:
            if what not in self._troubles:
                log.error("%s: waits: %.500s", what, error)
            self._troubles[what] = str(error)
            return False
        if self._troubles.pop(what, ""):
            log.info("%s: goes on", what)
        return True

    def _follow(self) -> None:
        head = self._nodes[0].head()
        self._time_s = max(self._time_s, head.time_s)
        self.follower.turn(self._nodes)
        self._is_level = self.follower.log.tip >= head.number

    # ------------------------------------------------------------ what is certain

    def _fresh(self) -> Mirror:
        mirror = Mirror(self._place.pool.address)
        for fact in self._rows.facts():
            apply(mirror, fact)
        return mirror

    def _on_facts(self, facts: list[Fact]) -> None:
        for fact in facts:
            log.info("block %d: %s of the %s", fact.block, fact.name, fact.contract)
            apply(self.mirror, fact)

    def _on_deep(self, why: str) -> None:
        self.halt(why)

    def _on_rewound(self, block: int) -> None:
        """What was certain above a block is taken back: tell by how much."""
        before, self.mirror = asdict(sums(self.mirror)), self._fresh()
        now = asdict(sums(self.mirror))
        changed = [f"{n} {before[n]} -> {now[n]}" for n in now if now[n] != before[n]]
        log.error("ALARM taken back above block %d: %s", block, "; ".join(changed) or "nothing")
        self.courier.rewind(block)

    def _state(self) -> None:
        """Tell the ledger what it was not told; it moves the difference."""
        if self.follower.log.halted:
            return
        block = self.follower.log.applied
        for rental in self.mirror.rentals.values():
            if rental.id in self._foreign:
                continue
            is_closed = rental.state == "closed"
            known = self._stated.get(rental.id)
            figures = (rental.locked, rental.paid, rental.returned, is_closed)
            if known is not None and not _grows(known, figures):
                continue
            stated = Stated(rental.id, rental.spec, *figures, block)
            try:
                self._books.state_rental(stated)
            except UnknownRentalError:
                log.error("ALARM nobody agreed to rental 0x%s", rental.id.hex())
                self._rows.put("foreign", rental.id.hex(), rental.id)
                self._foreign[rental.id] = None
                continue
            self._rows.put("stated", rental.id.hex(), stated)
            self._stated[rental.id] = stated
        claimed = sums(self.mirror).claimed
        now_ms = self._clock()
        # Said again now and then: so the ledger knows whom vouchers are for.
        if claimed > self._claims or (claimed == self._claims and now_ms >= self._present_ms):
            self._books.state_claims(claimed, block)
            self._present_ms = now_ms + PRESENT_MS
            if claimed > self._claims:
                self._rows.put("claims", 0, claimed)
                self._claims = claimed

    # ------------------------------------------------------------ what to do

    def _move(self) -> None:
        now_ms = self._clock()
        is_due = now_ms >= self._due_ms
        if is_due:
            self._due_ms = now_ms + int(self._pace.epoch_s * 1000)
        agreed = {id: v for id, v in self._vouchers.items() if id not in self._foreign}
        found = epochs.moves(
            self.mirror,
            agreed,
            self.courier.lane.intents,
            self._payout,
            self._done,
            is_due,
            self._time_s,
            self._epoch,
            self._funds,
        )
        wanted = [one for move in found if (one := self._intent_of(move)) is not None]
        self.courier.ask_many(wanted)
        for move in found:
            self._carry_out(move)

    def _intent_of(self, move: epochs.Move) -> queue_records.Asked | None:
        """The transaction of a move that has one."""
        rental, pool = self._place.rental, self._place.pool
        match move:
            case epochs.Redeem():
                v = move.voucher
                verb = "settle" if move.is_settling else "redeem"
                call = rental.interface.encode_call(
                    verb, (v.rental, v.cumulative, v.receipts_root, v.signature)
                )
                return queue_records.Asked(move.purpose, rental.address, call)
            case epochs.Withdraw():
                call = rental.interface.encode_call("withdrawTo", (pool.address,))
                return queue_records.Asked(move.purpose, rental.address, call)
            case epochs.Post():
                payout = move.payout
                values = (payout.root, NO_RECEIPTS, payout.list_digest, payout.total)
                call = pool.interface.encode_call("post", values)
                return queue_records.Asked(move.purpose, pool.address, call)
        return None

    def _carry_out(self, move: epochs.Move) -> None:
        match move:
            case epochs.Commit():
                self._commit(move)
            case epochs.Publish():
                self._publish(move.payout)
            case epochs.Finish():
                payout = move.payout
                self._books.state_root(
                    payout.number, payout.root, payout.list_digest, move.transaction, move.block
                )
                with self._rows.together():
                    self._rows.put("done", 0, payout.number)
                    self._rows.remove("payout", 0)
                self._done, self._payout = payout.number, None
                log.info("payout %d is over: %d in all", payout.number, payout.total)
            case epochs.Vetoed():
                self.halt(f"the root of payout {move.payout.number} was vetoed: look at its list")

    def _commit(self, move: epochs.Commit) -> None:
        if not self._done:  # a file that was lost begins where the ledger is
            last = self._books.last_payout()
            self._done = last.number if last.root else max(0, last.number - 1)
            self._rows.put("done", 0, self._done)
            move = epochs.Commit(self._done + 1, move.funds)
        answer = self._books.commit_payouts(move.number, move.funds)
        if answer.number != move.number:
            return  # nobody has earned anything since the last one
        leaves = self._leaves(move.number)
        if answer.total > move.funds or answer.total != sum(amount for _, amount in leaves):
            self.halt(
                f"payout {move.number} is over {answer.total}; the pool has had {move.funds}, its "
                f"leaves are {sum(amount for _, amount in leaves)}"
            )
            return
        body = self._list_of(move.number, leaves)
        root = merkle.Tree(leaves).root
        payout = epochs.Payout(move.number, root, merkle.digest_of(body), answer.total)
        self._rows.put("payout", 0, payout)
        self._payout = payout

    def _publish(self, payout: epochs.Payout) -> None:
        body = self._list_of(payout.number, self._leaves(payout.number))
        if merkle.digest_of(body) != payout.list_digest:
            self.halt(f"the ledger has other leaves of payout {payout.number} than before")
            return
        self._lists.publish(body)
        payout.is_published = True
        self._rows.put("payout", 0, payout)

    def _leaves(self, number: int) -> list[tuple[bytes, int]]:
        return [(leaf.address, leaf.cumulative) for leaf in self._books.leaves(number)]

    def _list_of(self, number: int, leaves: merkle.Leaves) -> bytes:
        pool = self._place.pool.address
        return merkle.encode_list(merkle.PayoutList(self._place.chain_id, pool, number, leaves))

    def _on_ended(self, purpose: str, state: State) -> None:
        if state in ("failed", "replaced"):
            log.error("ALARM %s is %s", purpose, state)

    # ------------------------------------------------------------ vouchers

    def show_voucher(self, shown: ShowVoucher) -> VoucherRuling:
        """The answer to a voucher that the ledger brings."""
        here = (self._place.chain_id, self._place.rental.address)
        code = message = ""
        try:
            voucher = Voucher(
                *here,
                shown.rental,
                shown.cumulative,
                shown.receipts_root,
                shown.signature,
                shown.is_last,
            )
            self.take_voucher(voucher, shown.spent)
        except RemoteError as error:
            code, message = error.code, error.message
        kept, rental = self._vouchers.get(shown.rental), self.mirror.rentals.get(shown.rental)
        figures = Shown(kept.cumulative if kept else 0, rental.paid if rental else 0)
        return VoucherRuling(shown.request, code, message, figures)

    def take_voucher(self, voucher: Voucher, spent: int = 0) -> None:
        """Check it and keep it; it is on disk when this returns.

        Raises:
            RemoteError: what is wrong with it, by the table of core/vouchers.py.
        """
        here = (self._place.chain_id, self._place.rental.address)
        rental = self.mirror.rentals.get(voucher.rental)
        kept = self._vouchers.get(voucher.rental)
        if kept == voucher:
            return  # it is on disk: its answer was lost

        def signer() -> bytes:
            if len(voucher.receipts_root) != HASH_BYTES:
                return b""
            asked = vouchers.Voucher(voucher.rental, voucher.cumulative, voucher.receipts_root)
            return vouchers.recover(asked, *here, voucher.signature)

        safe_s = epochs.refund_s(rental, self._epoch) - self._epoch.hurry_s if rental else 0
        refusal = judge(voucher, signer, here, rental, kept, self._time_s, safe_s, spent)
        if refusal is not None:
            raise RemoteError(refusal.code, refusal.message, refusal.hint)
        is_more = kept is None or voucher.cumulative > kept.cumulative
        if is_more or (voucher.is_last and kept is not None and not kept.is_last):
            self._rows.put("voucher", voucher.rental.hex(), voucher)
            self._vouchers[voucher.rental] = voucher

    # ------------------------------------------------------------ drift and go

    def reconcile(self) -> reconcile.Report:
        """Compare everything as of the last certain block; a drift halts.

        Raises:
            NodeDownError: the chain does not answer.
            BooksDownError: the ledger does not.
        """
        block = self.follower.log.applied
        figures = self._nodes[0].figures(block)
        self._funds = max(self._funds, figures.pool_balance + figures.claimed)
        books = self._books.sums()
        foreign = frozenset(self._foreign)
        report = reconcile.reconcile(self.mirror, figures, books, foreign)
        is_news = self.report is None or self.report.lines != report.lines
        self.report = report
        if report.drift:
            if is_news:
                log.error("ALARM %s", reconcile.told(report))
            drifts = {line.name: line.drift for line in report.lines}
            if self._accepted is None:
                self._accept(drifts)
            seen = self._accepted or {}
            if report.faults or any(abs(d) > abs(seen.get(name, 0)) for name, d in drifts.items()):
                self.halt(f"drift {report.drift} at block {block}")
        elif is_news:
            self._accept({})
            log.info("reconcile at block %d: drift 0", block)
        return report

    def _accept(self, drifts: dict[str, int] | None) -> None:
        self._accepted = drifts
        self._rows.put("accepted", 0, drifts or {})

    def halt(self, why: str) -> None:
        """Send nothing until an operator says go, also after a restart."""
        if not self.halted:
            self._rows.put("halt", 0, why)
            self.courier.halt(why)

    def _look_for_go(self) -> None:
        if not self.halted or not self._go.exists():
            return
        self._go.unlink()
        log.info("an operator says go after: %s", self.halted)
        if self._payout is not None and any(
            root.is_vetoed and root.root == self._payout.root for root in self.mirror.roots.values()
        ):
            self._payout.trial += 1
            self._rows.put("payout", 0, self._payout)
        self._rows.remove("halt", 0)
        self.follower.release()
        self.courier.release()
        drifts = {line.name: line.drift for line in self.report.lines} if self.report else {}
        self._accept(drifts if any(drifts.values()) else None)
        self._reconcile_ms = 0

    def replay(self) -> None:
        """Forget everything that was read, and read the chain again from the first block."""
        with self._rows.together():
            self._rows.drop_facts(-1)
            self.follower.forget(self._place.start)
        self.mirror = self._fresh()

    def told(self) -> list[str]:
        """Every transaction that is not final, for a person."""
        lane = self.courier.lane
        depth = self.follower.log.limits.depth
        return [
            f"{name}: {told_state(lane.intents[name], self.follower.log.tip, depth)}"
            for name in lane.open
        ]


def _grows(known: Stated, figures: tuple[int, int, int, bool]) -> bool:
    """Whether there is news; what is less than was told is left to the reconciliation."""
    before = (known.locked, known.paid, known.returned, known.is_closed)
    return figures != before and all(b <= now for b, now in zip(before, figures, strict=True))
