"""What is true of the books after every step, whatever was asked."""

from gristmill.ledger.core.state import ESCROW, WORLD, LedgerState


def check(state: LedgerState) -> list[str]:
    """Every broken law in words; empty when the books are in order.

    Laws about holds count open ones only, which the state always has.
    """
    broken = []
    accounts = list(state.accounts.values())
    posted = sum(account.posted for account in accounts)
    if posted:
        broken.append(f"the sum of all accounts is {posted}, not 0")
    pending = sum(account.credits_pending - account.debits_pending for account in accounts)
    if pending:
        broken.append(f"the sum of all pending amounts is {pending}, not 0")
    for account in accounts:
        if account.available < 0 and account.name != WORLD:
            broken.append(f"{account.name} is overdrawn by {-account.available}")
        if (
            min(account.debits, account.credits, account.debits_pending, account.credits_pending)
            < 0
        ):
            broken.append(f"{account.name} has a negative side")
        if account.may_overdraw != (account.name == WORLD):
            broken.append(f"{account.name} may overdraw: {account.may_overdraw}")
    held: dict[str, int] = {}
    for hold in state.holds.values():
        if hold.left < 0:
            broken.append(f"{hold.ref} spent {hold.spent} of {hold.amount}")
        if not hold.closed_ms:
            held[hold.payer] = held.get(hold.payer, 0) + hold.left
    for account in accounts:
        is_payer = account.name.startswith(("tenant:", "rental:"))
        if is_payer and account.debits_pending != held.get(account.name, 0):
            broken.append(
                f"{account.name} has {account.debits_pending} pending; its open holds have "
                f"{held.get(account.name, 0)} left"
            )
    if ESCROW in state.accounts and state.accounts[ESCROW].credits_pending != sum(held.values()):
        broken.append(f"escrow differs from what open holds have left, {sum(held.values())}")
    return broken
