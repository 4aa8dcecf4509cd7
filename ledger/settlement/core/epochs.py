"""What to do next so that clients' vouchers become workers' claims.

Theory of operation. Nothing here remembers a step: each turn looks at what is certain (the
mirror), what is under way (the queue's purposes) and what was written down (the payout), and says
which moves are due. Every move can be made again without being made twice: a transaction has a
purpose, the ledger's answers are of its own numbers, a list has its digest. So a process may end
between any two moves.

    what is certain                               | move
    ----------------------------------------------|-----------------------------------------------
    a voucher over more than is paid, time is due | redeem it (one purpose for each figure paid)
    the last voucher of a rental that is ours     | settle it: the same, and the rest goes back
    nothing is being redeemed, the pool is owed   | withdraw it to the pool
    the pool had more than the last root's total  | commit payout n: its leaves are fixed
    payout n is committed                         | publish its list, post its root
    its root stands, K deep                       | state it to the ledger; payout n is over
    its root was vetoed                           | nothing, an alarm: an operator looks and says go

While gas is above the cap the queue waits, and a voucher that comes meanwhile takes the place of
the one that waits: redemptions are batched by themselves, and none is skipped.
"""

from collections.abc import Mapping

import msgspec

from gristmill.ledger.settlement.core.mirror import Mirror, Rental, newest_root
from gristmill.ledger.settlement.core.queue_records import Intent
from gristmill.ledger.settlement.core.vouchers import Voucher

TRIALS_MAX = 5  #: of one thing, an epoch apart; then somebody has to look


class Settings(msgspec.Struct, frozen=True):
    """When vouchers are redeemed, and how much a root may add.

    ``grace_s``: of the contract. ``hurry_s``: before a refund is possible, a voucher is redeemed
    whatever the time. ``redeem_min``: micro-credits that are worth a redemption before that.
    ``cap``: the pool's capPerEpoch. ``provider``: our address: the rentals of others are not ours
    to settle.
    """

    grace_s: int
    hurry_s: int
    redeem_min: int
    cap: int
    provider: bytes = b""


class Payout(msgspec.Struct):
    """A payout under way. ``trial``: counts the posts after vetoes."""

    number: int
    root: bytes
    list_digest: bytes
    total: int
    trial: int = 1
    is_published: bool = False


class Redeem(msgspec.Struct, frozen=True):
    """Ask the queue for it; ``is_settling``: and for the rest to go back."""

    purpose: str
    voucher: Voucher
    is_settling: bool = False


class Withdraw(msgspec.Struct, frozen=True):
    """Ask the queue to send the pool what it is owed."""

    purpose: str


class Commit(msgspec.Struct, frozen=True):
    """Have the ledger fix the leaves of a payout; then write it down."""

    number: int
    funds: int


class Publish(msgspec.Struct, frozen=True):
    """Put its list where everybody can read it; then write that down."""

    payout: Payout


class Post(msgspec.Struct, frozen=True):
    """Ask the queue for the root."""

    purpose: str
    payout: Payout


class Finish(msgspec.Struct, frozen=True):
    """State the root to the ledger; then the payout is over."""

    payout: Payout
    transaction: bytes
    block: int


class Vetoed(msgspec.Struct, frozen=True):
    """Somebody has to look."""

    payout: Payout


Move = Redeem | Withdraw | Commit | Publish | Post | Finish | Vetoed


def refund_s(rental: Rental, settings: Settings) -> int:
    """From when on anybody may refund it (Unix time)."""
    return rental.deadline_s + settings.grace_s


def trial_of(base: str, intents: Mapping[str, Intent], is_due: bool) -> str:
    """The purpose that is under way, or the one to ask for; empty for none now.

    What failed, was cancelled or never sent is tried again when it is due, ``TRIALS_MAX`` times.
    """
    for number in range(1, TRIALS_MAX + 1):
        purpose = f"{base}/{number}"
        intent = intents.get(purpose)
        if intent is None or not intent.is_final:
            return purpose
        if intent.state == "confirmed" or not is_due:
            return ""
    return ""


def moves(
    mirror: Mirror,
    vouchers: Mapping[bytes, Voucher],
    intents: Mapping[str, Intent],
    payout: Payout | None,
    done: int,
    is_due: bool,
    now_s: int,
    settings: Settings,
    funds: int = 0,
) -> list[Move]:
    """What is due now.

    Args:
        mirror: what is certain.
        vouchers: the largest that was taken, by rental.
        intents: of the queue, by purpose.
        payout: the one under way.
        done: number of the last one that is over.
        is_due: the time for redemptions has come.
        now_s: Unix time.
        settings: see there.
        funds: all that the pool ever had, says the pool: what came by plain transfers, too.
    """
    found: list[Move] = []
    is_redeeming = False
    for id, voucher in vouchers.items():
        rental = mirror.rentals.get(id)
        if rental is None or rental.state == "closed":
            continue
        is_open = rental.state == "locked" and rental.provider == settings.provider
        is_settling = voucher.is_last and is_open
        if voucher.cumulative <= rental.paid and not is_settling:
            continue
        if rental.state == "disputed" and rental.shown >= voucher.cumulative:
            continue
        # What was paid names the redemption: the next one begins where this one ends.
        verb = "settle" if is_settling else "redeem"
        purpose = trial_of(f"{verb}/{id.hex()}/{rental.paid}", intents, is_due)
        if not purpose:
            continue
        intent = intents.get(purpose)
        worth = voucher.cumulative - rental.paid >= settings.redeem_min
        is_urgent = now_s >= refund_s(rental, settings) - settings.hurry_s
        if intent is not None or is_urgent or is_settling or (is_due and worth):
            is_redeeming = True
            if intent is None or intent.nonce < 0:
                found.append(Redeem(purpose, voucher, is_settling))
    owed = mirror.owed.get(mirror.pool, 0)
    had = mirror.withdrawn.get(mirror.pool, 0)
    if owed and not is_redeeming:
        # The figure that the pool had names the withdrawal: the next one finds another.
        purpose = trial_of(f"withdraw/{had}", intents, is_due)
        if purpose and purpose not in intents:
            found.append(Withdraw(purpose))
    return found + _payout_moves(mirror, intents, payout, done, is_due, now_s, settings, funds)


def _payout_moves(
    mirror: Mirror,
    intents: Mapping[str, Intent],
    payout: Payout | None,
    done: int,
    is_due: bool,
    now_s: int,
    settings: Settings,
    funds: int,
) -> list[Move]:
    if payout is None:
        last = newest_root(mirror)
        last_total = last.total if last else 0
        # What clients have paid makes it due; what came by plain transfers only fills up.
        had = mirror.withdrawn.get(mirror.pool, 0)
        if is_due and had > last_total:
            return [Commit(done + 1, min(max(had, funds), last_total + settings.cap))]
        return []
    if not payout.is_published:
        return [Publish(payout)]
    posted = [one for one in mirror.roots.values() if one.root == payout.root]
    standing = [one for one in posted if not one.is_vetoed]
    if standing:
        return [Finish(payout, standing[-1].transaction, standing[-1].block)]
    if len(posted) >= payout.trial:
        return [Vetoed(payout)]
    newest = max(mirror.roots, default=0)
    if newest and now_s <= mirror.roots[newest].active_s:
        return []  # the last one must have waited first
    purpose = trial_of(f"root/{payout.number}/{payout.trial}", intents, is_due)
    return [Post(purpose, payout)] if purpose and purpose not in intents else []
