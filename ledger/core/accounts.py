"""Accounts and the transfers between them: balances move here and nowhere else but in a post.

(A contribution's two posts are ``step``'s own: they are most of what a ledger does.)
"""

from gristmill.ledger.core.effects import AddTransfer, AnyEffect, Kind, OpenAccount
from gristmill.ledger.core.state import WORLD, Account, LedgerState
from gristmill.wire.limits import NAME_CHARS_MAX


def is_name(text: str) -> bool:
    """Whether this may be the name of a tenant, a node or a broker: PostgreSQL keeps no NUL."""
    return 0 < len(text) <= NAME_CHARS_MAX and "\0" not in text


def account_of(state: LedgerState, name: str, effects: list[AnyEffect]) -> Account:
    """The account of this name, opened if it is new."""
    account = state.accounts.get(name)
    if account is None:
        account = Account(len(state.accounts) + 1, name, may_overdraw=name == WORLD)
        state.accounts[name] = account
        effects.append(OpenAccount(account))
    return account


def transfer(
    state: LedgerState,
    id_: bytes,
    kind: Kind,
    debit: Account,
    credit: Account,
    amount: int,
    pending: int,
    now_ms: int,
    effects: list[AnyEffect],
) -> int:
    """Move the balances by one transfer (no post) and write it; gives its number."""
    if kind is Kind.PENDING:
        debit.debits_pending += amount
        credit.credits_pending += amount
    elif kind in (Kind.VOID, Kind.EXPIRE):
        debit.debits_pending -= amount
        credit.credits_pending -= amount
    else:
        debit.debits += amount
        credit.credits += amount
    state.transfers += 1
    number = state.transfers
    effects.append(AddTransfer(number, id_, kind, debit.id, credit.id, amount, pending, now_ms))
    return number
