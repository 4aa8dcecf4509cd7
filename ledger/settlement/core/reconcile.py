"""Holds the mirror against the contracts and the ledger's books, line by line, to the unit.

Theory of operation. Three parties can say where the money is: the events (the mirror), the
contracts' own figures as of the same block, and the ledger's books once they were told of that
block. Each line has two figures that must be one. Whatever is not zero stops the settlement: it
is not known which of the two is wrong, and every further payment could make it larger.

    line                                   | of one side            | of the other
    ---------------------------------------|------------------------|------------------------------
    escrow owes                            | open and owed, mirror  | totalLiability
    escrow has at least that               | its balance            | totalLiability (no less)
    pool has at least                      | its balance            | mirror (no less)
    claimed                                | mirror                 | claimedTotal
    root                                   | the last not vetoed    | the same, of the contract
    locked, paid, returned, claimed        | mirror                 | books
    spent and held                         | locked - returned      | by jobs, and what is left
    short                                  | nothing                | returned, and spent by jobs
    committed                              | books                  | the last root (no less)
    all that was locked                    | mirror, every rental   | open + owed + pool + claimed +
                                           |                        | withdrawn by others

Tokens that somebody sent to a contract without being asked are a surplus: told, no drift.
"""

import msgspec

from gristmill.ledger.settlement.core.mirror import Mirror, newest_root, sums
from gristmill.wire.chain import ChainBooks


class Figures(msgspec.Struct, frozen=True):
    """What the contracts say, all as of ``block``.

    ``root_number``: of the newest that is not vetoed, whether it can be claimed from yet or not.
    """

    block: int
    liability: int
    escrow_balance: int
    pool_balance: int
    claimed: int
    root_number: int
    root_total: int


class Line(msgspec.Struct, frozen=True):
    """Two figures that must be one; ``may_exceed``: the first may be larger."""

    name: str
    ours: int
    theirs: int
    may_exceed: bool = False

    @property
    def drift(self) -> int:
        """0, or by how much they differ."""
        difference = self.ours - self.theirs
        return min(0, difference) if self.may_exceed else difference

    @property
    def surplus(self) -> int:
        """What came unasked."""
        return max(0, self.ours - self.theirs) if self.may_exceed else 0


class Report(msgspec.Struct, frozen=True):
    """``faults``: of the mirror, in words. ``has_books``: the ledger answered."""

    block: int
    lines: list[Line]
    faults: list[str]
    has_books: bool
    foreign: int  #: locked for agreements that nobody made

    @property
    def drift(self) -> int:
        """The largest of all lines' drifts, or 1 for a fault; 0: everything agrees."""
        most = max((abs(line.drift) for line in self.lines), default=0)
        return most or (1 if self.faults else 0)

    @property
    def is_good(self) -> bool:
        """Everything was compared, and agrees."""
        return self.has_books and not self.drift


def reconcile(
    mirror: Mirror, figures: Figures, books: ChainBooks | None, foreign: frozenset[bytes]
) -> Report:
    """The report. ``foreign``: ids of rentals that the ledger knows no agreement of.

    ``books``: None when the ledger does not answer; they are as of the mirror's block.
    """
    all_sums = sums(mirror)
    newest = newest_root(mirror)
    root_total = newest.total if newest else 0
    lines = [
        Line("escrow owes", all_sums.open + all_sums.owed, figures.liability),
        Line("escrow has", figures.escrow_balance, figures.liability, may_exceed=True),
        Line("pool has", figures.pool_balance, all_sums.pool, may_exceed=True),
        Line("claimed", all_sums.claimed, figures.claimed),
        Line("root's number", newest.number if newest else 0, figures.root_number),
        Line("root's total", root_total, figures.root_total),
        Line(
            "locked = open + owed + pool + claimed + withdrawn",
            all_sums.locked,
            all_sums.open + all_sums.owed + all_sums.pool + all_sums.claimed + all_sums.away,
        ),
    ]
    strange = [mirror.rentals[id] for id in sorted(foreign) if id in mirror.rentals]
    if books is not None:
        locked = all_sums.locked - sum(one.locked for one in strange)
        paid = all_sums.paid - sum(one.paid for one in strange)
        returned = all_sums.returned - sum(one.returned for one in strange)
        lines += [
            Line("ledger: locked", locked, books.locked),
            Line("ledger: paid", paid, books.paid),
            Line("ledger: returned", returned, books.returned),
            Line("ledger: spent and held", locked - returned, books.spent + books.held),
            Line("ledger: short", 0, books.short),
            Line("ledger: committed, at least the root", books.committed, root_total, True),
            Line("ledger: claimed", all_sums.claimed, books.claimed),
        ]
    return Report(
        figures.block,
        lines,
        list(mirror.faults),
        books is not None,
        sum(one.locked for one in strange),
    )


def told(report: Report) -> str:
    """For a person: every line with both figures, and what to do."""
    width = max(len(line.name) for line in report.lines)
    rows = [f"reconcile at block {report.block}"]
    for line in report.lines:
        more = f"  ({line.surplus} came unasked)" if line.surplus else ""
        rows.append(
            f"  {line.name:{width}}  {line.ours:>20}  {line.theirs:>20}  drift {line.drift}{more}"
        )
    rows += [f"  fault: {fault}" for fault in report.faults]
    if report.foreign:
        rows.append(
            f"  {report.foreign} are locked for agreements that nobody made; they leave by refund"
        )
    if not report.has_books:
        rows.append("  the ledger did not answer: its lines are missing, and this proves nothing")
    elif report.drift:
        rows.append(
            f"  DRIFT {report.drift}: nothing is sent. Keep settlement.db and ledger.db, start "
            "with --replay to read the chain again; if the drift stays, one of the two books is "
            "wrong: find the first transfer that differs, then say go (docs/settlement.md)"
        )
    else:
        rows.append("  drift 0")
    return "\n".join(rows)
