"""A statement of account: every entry that moved it, and whether they make what the account has.

A statement is *as of* a transfer: transfers are numbered, and none is ever changed, so whoever
reads the same entries later adds up the same totals.
"""

import hashlib

import msgspec


class StatementRow(msgspec.Struct, array_like=True, frozen=True):
    """One entry: what it did to the account.

    ``number``: of its last transfer. ``what``: ``funded`` (by an operator), ``bought``, ``held``
    (a job's cap), ``paid`` or ``earned`` (by a receipt), ``released`` and ``expired`` (what was
    left of a hold), ``moved`` (by an operator), ``locked`` and ``returned`` (a rental), ``paid
    out`` and ``claimed`` (a pool). ``amount_ucredits``: what the account has more, or less;
    ``held_ucredits``: what is held more, or less. ``toll_ucredits``: of the amount. ``ref``: of the
    hold (``BROKER/JOB``), of the funding, the purchase, or the other account; on the chain, what it
    is about. ``receipt``: its number among the entries of that broker, 0 for none.
    """

    number: int
    at_ms: int
    what: str
    amount_ucredits: int
    held_ucredits: int = 0
    toll_ucredits: int = 0
    ref: str = ""
    receipt: int = 0


class Totals(msgspec.Struct, array_like=True, frozen=True):
    """What an account had: all that ever came, all that ever went, what is held of the rest."""

    came_ucredits: int = 0
    went_ucredits: int = 0
    held_ucredits: int = 0

    @property
    def posted_ucredits(self) -> int:
        """What it has, holds included."""
        return self.came_ucredits - self.went_ucredits

    @property
    def available_ucredits(self) -> int:
        """What a new hold may still reserve."""
        return self.posted_ucredits - self.held_ucredits

    def after(self, rows: list[StatementRow]) -> "Totals":
        """These and the rows.

        >>> Totals().after([StatementRow(1, 0, "funded", 7), StatementRow(2, 0, "held", 0, 3)])
        Totals(came_ucredits=7, went_ucredits=0, held_ucredits=3)
        """
        came, went, held = self.came_ucredits, self.went_ucredits, self.held_ucredits
        for row in rows:
            came += max(0, row.amount_ucredits)
            went -= min(0, row.amount_ucredits)
            held += row.held_ucredits
        return Totals(came, went, held)


class StatementPage(msgspec.Struct, array_like=True, frozen=True):
    """Entries of an account in their order, up to transfer ``upto``.

    ``after``: where the next page begins, 0 when this is the last one. ``totals``: of the account
    as of ``upto``, as the ledger has it; None where it does not know them any more, in a page
    behind the first. ``incident``: on the last page, when the entries do not make them.
    """

    account: str
    rows: list[StatementRow]
    after: int
    upto: int
    totals: Totals | None = None
    incident: str = ""


def incident_of(account: str, upto: int, entries: Totals, totals: Totals) -> str:
    """The name of a mismatch, the same for everybody who sees it.

    >>> incident_of("tenant:ann", 7, Totals(1), Totals(2))
    'incident-7a96982778d4'
    """
    seen = msgspec.msgpack.encode([account, upto, entries, totals])
    return f"incident-{hashlib.sha256(seen).hexdigest()[:12]}"
