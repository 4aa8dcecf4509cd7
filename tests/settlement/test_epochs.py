"""From vouchers to roots: which moves are due, and that each is due once."""

import msgspec
import pytest

from gristmill.ledger.settlement.core.epochs import (
    Commit,
    Finish,
    Move,
    Payout,
    Post,
    Publish,
    Redeem,
    Settings,
    Vetoed,
    Withdraw,
    moves,
)
from gristmill.ledger.settlement.core.mirror import Mirror, Rental, Root
from gristmill.ledger.settlement.core.queue_records import Intent
from gristmill.ledger.settlement.core.vouchers import Voucher

POOL = b"p" * 20
ID = b"r" * 32
NAME = f"redeem/{ID.hex()}/40/1"
US = b"o" * 20
SETTINGS = Settings(grace_s=100, hurry_s=50, redeem_min=10, cap=1_000, provider=US)


@pytest.fixture
def mirror() -> Mirror:
    rental = Rental(ID, b"k" * 20, b"o" * 20, POOL, b"s" * 32, 1_000, locked=100, paid=40)
    return Mirror(POOL, rentals={ID: rental})


def voucher(cumulative: int = 60) -> Voucher:
    return Voucher(1, b"c" * 20, ID, cumulative, b"t" * 32, b"signature")


def due(mirror: Mirror, **more: object) -> list[Move]:
    given: dict[str, object] = {
        "vouchers": {ID: voucher()},
        "intents": {},
        "payout": None,
        "done": 0,
        "is_due": True,
        "now_s": 0,
        "settings": SETTINGS,
    }
    return moves(mirror, **(given | more))  # type: ignore[arg-type]


def intent(purpose: str, **more: object) -> dict[str, Intent]:
    return {purpose: Intent(purpose, b"", b"", 1, **more)}  # type: ignore[arg-type]


def test_a_voucher_is_redeemed_when_it_is_time(mirror: Mirror) -> None:
    assert due(mirror) == [Redeem(NAME, voucher())]
    assert due(mirror, is_due=False) == []
    assert due(mirror, vouchers={ID: voucher(40)}) == []


def test_a_small_one_waits_until_it_is_urgent(mirror: Mirror) -> None:
    small = {ID: voucher(49)}
    assert due(mirror, vouchers=small) == []
    assert due(mirror, vouchers=small, now_s=1_049) == []
    assert due(mirror, vouchers=small, now_s=1_050, is_due=False) == [Redeem(NAME, voucher(49))]


def test_while_it_waits_for_gas_a_larger_one_takes_its_place(mirror: Mirror) -> None:
    later = {ID: voucher(90)}
    assert due(mirror, vouchers=later, intents=intent(NAME)) == [Redeem(NAME, voucher(90))]
    assert due(mirror, vouchers=later, intents=intent(NAME, nonce=3)) == []


def test_one_that_was_refused_is_tried_again_when_it_is_due_and_not_for_ever(
    mirror: Mirror,
) -> None:
    intents = intent(NAME, state="superfluous")
    assert due(mirror, intents=intents, is_due=False) == []
    for number in range(2, 6):
        name = f"redeem/{ID.hex()}/40/{number}"
        assert due(mirror, intents=intents) == [Redeem(name, voucher())]
        intents |= intent(name, state="failed", nonce=number)
    assert due(mirror, intents=intents) == []


def test_nothing_of_a_closed_rental(mirror: Mirror) -> None:
    mirror.rentals[ID].state = "closed"
    assert due(mirror) == []


def test_in_a_dispute_it_is_shown_once(mirror: Mirror) -> None:
    mirror.rentals[ID].state = "disputed"
    assert due(mirror) == [Redeem(NAME, voucher())]
    mirror.rentals[ID].shown = 60
    assert due(mirror) == []


def test_the_last_one_settles_a_rental_of_ours_at_once(mirror: Mirror) -> None:
    last = msgspec.structs.replace(voucher(49), is_last=True)
    name = f"settle/{ID.hex()}/40/1"
    assert due(mirror, vouchers={ID: last}, is_due=False) == [Redeem(name, last, True)]
    assert due(mirror, vouchers={ID: last}, intents=intent(name, nonce=3)) == []
    nothing_new = msgspec.structs.replace(last, cumulative=40)
    assert due(mirror, vouchers={ID: nothing_new}) == [Redeem(name, nothing_new, True)]
    mirror.rentals[ID].state = "disputed"  # nobody can settle it then
    assert due(mirror, vouchers={ID: nothing_new}) == []
    mirror.rentals[ID].state = "locked"
    mirror.rentals[ID].provider = b"x" * 20  # not ours
    assert due(mirror, vouchers={ID: nothing_new}) == []
    more = msgspec.structs.replace(voucher(), is_last=True)
    assert due(mirror, vouchers={ID: more}) == [Redeem(NAME, more)]


def test_the_pool_is_sent_its_share_when_nothing_is_being_redeemed(mirror: Mirror) -> None:
    mirror.owed[POOL] = 38
    assert due(mirror, intents=intent(NAME, nonce=3)) == []
    assert due(mirror, vouchers={}) == [Withdraw("withdraw/0/1")]
    assert due(mirror, vouchers={}, intents=intent("withdraw/0/1")) == []
    mirror.withdrawn[POOL] = 5
    assert Withdraw("withdraw/5/1") in due(mirror, vouchers={})


def test_a_payout_from_commit_to_the_ledger(mirror: Mirror) -> None:
    mirror.withdrawn[POOL] = 38
    quiet = {"vouchers": {}}
    assert due(mirror, **quiet) == [Commit(1, 38)]
    payout = Payout(1, b"m" * 32, b"d" * 32, 30)
    assert due(mirror, payout=payout, **quiet) == [Publish(payout)]
    payout.is_published = True
    assert due(mirror, payout=payout, **quiet) == [Post("root/1/1/1", payout)]
    assert due(mirror, payout=payout, intents=intent("root/1/1/1"), **quiet) == []
    mirror.roots[1] = Root(1, b"m" * 32, b"d" * 32, 30, 60, b"x" * 32, 9)
    assert due(mirror, payout=payout, **quiet) == [Finish(payout, b"x" * 32, 9)]
    assert due(mirror, done=1, **quiet) == [Commit(2, 38)]
    mirror.roots[2] = Root(2, b"n" * 32, b"d" * 32, 38, 60, b"x" * 32, 9)
    assert due(mirror, done=2, **quiet) == []


def test_what_came_by_plain_transfers_fills_up(mirror: Mirror) -> None:
    assert due(mirror, vouchers={}, funds=40) == []
    mirror.withdrawn[POOL] = 38
    assert due(mirror, vouchers={}, funds=40) == [Commit(1, 40)]
    assert due(mirror, vouchers={}, funds=37) == [Commit(1, 38)]


def test_no_more_than_the_cap_at_once(mirror: Mirror) -> None:
    mirror.withdrawn[POOL] = 5_000
    assert due(mirror, vouchers={}) == [Commit(1, 1_000)]


def test_a_veto_wants_somebody(mirror: Mirror) -> None:
    payout = Payout(1, b"m" * 32, b"d" * 32, 30, is_published=True)
    mirror.withdrawn[POOL] = 38
    mirror.roots[1] = Root(1, b"m" * 32, b"d" * 32, 30, 60, b"x" * 32, 9, is_vetoed=True)
    assert due(mirror, vouchers={}, payout=payout) == [Vetoed(payout)]
    again = msgspec.structs.replace(payout, trial=2)
    assert due(mirror, vouchers={}, payout=again, now_s=60) == []
    assert due(mirror, vouchers={}, payout=again, now_s=61) == [Post("root/1/2/1", again)]
