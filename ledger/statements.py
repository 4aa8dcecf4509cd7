"""Statements of account, page by page; each is added up while it is read.

A page looks at so many transfers at most, however few of them are the account's: nobody's question
keeps the ledger from its posts. The totals that the account had when its first page was asked for
are remembered, and when the last page comes, the entries must have made them.
"""

from collections import OrderedDict
from collections.abc import Callable

import msgspec

from gristmill.ledger.book import Book
from gristmill.ledger.core.chain_records import Move
from gristmill.ledger.core.effects import Kind
from gristmill.ledger.core.ids import ID_BYTES, NODES_LEG, TOLLS_LEG, outbox_prefix
from gristmill.ledger.core.state import Account
from gristmill.ledger.engine import Row
from gristmill.wire.errors import RemoteError
from gristmill.wire.ledger import AskStatement
from gristmill.wire.limits import HEADER_BYTES_MAX
from gristmill.wire.statement import StatementPage, StatementRow, Totals, incident_of

PAGE_BYTES = HEADER_BYTES_MAX - (8 << 10)  #: of rows
LEGS_MAX = 1_000  #: transfers of one page; at least 2
LOOKED_MAX = 20_000  #: transfers that are looked at for one page; at least 2
OPEN_MAX = 256  #: statements that are being read; of the longest unread the totals are forgotten
_PREFIX = len(outbox_prefix(""))
_encode = msgspec.msgpack.Encoder().encode


class _Open(msgspec.Struct):
    """A statement that is being read: what its entries must make, what they made up to ``at``."""

    totals: Totals
    made: Totals
    at: int = 0


class Statements:
    """See the module's text.

    Args:
        alarm: told of an account whose entries do not make what it has.
    """

    def __init__(self, book: Book, alarm: Callable[[str], None]) -> None:
        self._book = book
        self._alarm = alarm
        self._open: OrderedDict[tuple[str, int], _Open] = OrderedDict()

    def page(self, question: AskStatement) -> StatementPage:
        """A page.

        Raises:
            RemoteError: ``INVALID_SPEC``, there is no such account, or no such transfer yet.
        """
        state = self._book.state
        account = state.accounts.get(question.account)
        if account is None and not question.account.startswith("tenant:"):
            told = f"there is no account {question.account!r:.80}"
            raise RemoteError("INVALID_SPEC", told)
        now, after = state.transfers, max(0, question.after)
        upto = question.upto or now
        if not 0 <= after <= upto <= now:
            told = f"transfers {after} to {question.upto}, of {now} that there are"
            raise RemoteError("INVALID_SPEC", told)
        if account is None:  # of a tenant who never had any credits
            return StatementPage(question.account, [], 0, upto, Totals())
        key = (account.name, upto)
        if after == 0 and upto == now:
            totals = Totals(account.credits, account.debits, account.debits_pending)
            self._open[key] = _Open(totals, Totals())
            while len(self._open) > OPEN_MAX:
                self._open.popitem(last=False)
        rows, end = self._rows(account, after, upto)
        known = self._open.get(key)
        page = StatementPage(account.name, rows, end if end < upto else 0, upto)
        if known is None:
            return page
        self._open.move_to_end(key)
        if known.at == after:
            known.at, known.made = end, known.made.after(rows)
        page = msgspec.structs.replace(page, totals=known.totals)
        if page.after or known.at < upto or known.made == known.totals:
            return page
        incident = incident_of(account.name, upto, known.made, known.totals)
        self._alarm(
            f"{incident}: the entries of {account.name} up to transfer {upto} make {known.made}, "
            f"the account has {known.totals}"
        )
        return msgspec.structs.replace(page, incident=incident)

    # ------------------------------------------------------------ rows

    def _rows(self, account: Account, after: int, upto: int) -> tuple[list[StatementRow], int]:
        """(entries, the last transfer that was looked at); both legs of an entry, or none."""
        looked = min(upto, after + LOOKED_MAX)
        found = list(
            self._book.db.execute(
                "SELECT number, id, kind, debit, credit, amount, pending, at_ms FROM transfer"
                " WHERE number > ? AND number <= ? AND (debit = ? OR credit = ?)"
                f" ORDER BY number LIMIT {LEGS_MAX}",
                (after, looked, account.id, account.id),
            )
        )
        end = found[-1][0] if len(found) == LEGS_MAX else looked
        groups: list[list[Row]] = []
        for leg in found:
            if groups and leg[2] == Kind.POST and _entry_of(groups[-1][0]) == _entry_of(leg):
                groups[-1].append(leg)
            else:
                groups.append([leg])
        if end < upto and groups and _may_go_on(groups[-1][-1], end):
            end = groups.pop()[0][0] - 1
        refs = self._refs([leg for group in groups for leg in group])
        minted = self._minted(account) if any(leg[2] == Kind.POSTED for leg in found) else {}
        rows: list[StatementRow] = []
        size = 0
        for group in groups:
            row = self._row(account, group, refs, minted)
            size += len(_encode(row))
            if size > PAGE_BYTES:
                return rows, rows[-1].number
            rows.append(row)
        return rows, end

    def _row(
        self,
        account: Account,
        legs: list[Row],
        refs: dict[int, str],
        minted: dict[int, tuple[str, str]],
    ) -> StatementRow:
        """One entry; ``refs`` of holds, ``minted``: what a transfer out of nothing was for."""
        number, _, kind, debit, credit, _, pending, at_ms = legs[-1]
        total = sum(leg[5] for leg in legs)
        is_out = debit == account.id
        if kind == Kind.PENDING:
            # of the escrow's own pending side there is nothing in an account's totals
            held = total if is_out else 0
            return StatementRow(number, at_ms, "held", 0, held, ref=refs[number])
        if kind in (Kind.VOID, Kind.EXPIRE):
            word, held = ("released" if kind == Kind.VOID else "expired"), -total if is_out else 0
            return StatementRow(number, at_ms, word, 0, held, ref=refs[pending])
        amount = -total if is_out else total
        if kind == Kind.POST:
            toll = sum(leg[5] for leg in legs if leg[1][-1] & 1 == TOLLS_LEG)
            return StatementRow(
                number, at_ms, "paid" if is_out else "earned", amount, -total if is_out else 0,
                toll, refs[pending], _entry_of(legs[0])[1],
            )  # fmt: skip
        what, ref = minted.get(number) or self._mirrored(number)
        if not what:
            other = credit if is_out else debit
            what, ref = (
                "moved",
                next(one.name for one in self._book.state.accounts.values() if one.id == other),
            )
        return StatementRow(number, at_ms, what, amount, ref=ref)

    def _mirrored(self, number: int) -> tuple[str, str]:
        """(why a transfer mirrors the chain, what it is about); empty for another one."""
        query = "SELECT move, subject, number FROM chain_move WHERE transfer = ?"
        row = self._book.db.execute(query, (number,)).fetchone()
        if row is None:
            return "", ""
        move, subject, about = row
        if move == Move.EARNED:
            return "paid out", f"{subject} in payout {about}"
        return Move(move).name.lower(), f"{subject} in block {about}"

    def _refs(self, legs: list[Row]) -> dict[int, str]:
        """The names of the holds that these transfers are about."""
        wanted = {leg[0] if leg[2] == Kind.PENDING else leg[6] for leg in legs} - {0}
        found = {}
        for number in wanted:
            query = "SELECT ref FROM hold WHERE id = ?"
            row = self._book.db.execute(query, (number,)).fetchone()
            found[number] = row[0] if row else ""
        return found

    def _minted(self, account: Account) -> dict[int, tuple[str, str]]:
        """Transfer to (funded or bought, for what); of a tenant's, or of all for other accounts."""
        tenant = account.name.removeprefix("tenant:")
        where, values = (" = ?", (tenant,)) if tenant != account.name else (" <> ?", ("",))
        db = self._book.db
        funded = db.execute(f"SELECT transfer, ref FROM mint WHERE tenant{where}", values)
        found = {number: ("funded", ref) for number, ref in funded}
        bought = db.execute(
            "SELECT payment.transfer, intent.id FROM payment JOIN intent"
            f" ON intent.id = payment.intent WHERE payment.transfer > 0 AND intent.tenant{where}",
            values,
        )
        return found | {number: ("bought", intent) for number, intent in bought}


def _entry_of(leg: Row) -> tuple[bytes, int]:
    """(whose outbox, the number in it) by the id of a transfer that an outbox brought."""
    id_ = leg[1]
    return id_[:_PREFIX], int.from_bytes(id_[_PREFIX:ID_BYTES], "big") >> 1


def _may_go_on(leg: Row, end: int) -> bool:
    """Whether the toll of this leg's contribution may be the transfer behind ``end``."""
    return bool(leg[0] == end and leg[2] == Kind.POST and leg[1][-1] & 1 == NODES_LEG)
