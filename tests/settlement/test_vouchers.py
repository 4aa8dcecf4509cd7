"""Each voucher that is not taken, with its own reason."""

import msgspec
import pytest

from gristmill.ledger.settlement.core.mirror import Rental
from gristmill.ledger.settlement.core.vouchers import Voucher, judge

HERE = (31337, b"c" * 20)
CLIENT = b"k" * 20
RENTAL = Rental(b"r" * 32, CLIENT, b"o" * 20, b"p" * 20, b"s" * 32, 1_000, locked=100, paid=40)
GOOD = Voucher(*HERE, RENTAL.id, 60, b"t" * 32, b"signature")


def refused(voucher: Voucher = GOOD, signer: bytes = CLIENT, now_s: int = 0, **more: object) -> str:
    rental = more.get("rental", RENTAL)
    kept = more.get("kept")
    spent = more.get("spent", 0)
    found = judge(voucher, lambda: signer, HERE, rental, kept, now_s, 2_000, spent)  # type: ignore[arg-type]
    return f"{found.code}: {found.message}" if found else ""


def test_a_good_one_and_the_same_again() -> None:
    assert refused() == ""
    assert refused(kept=GOOD) == ""


@pytest.mark.parametrize(
    ("changed", "code", "word"),
    [
        ({"chain_id": 1}, "CHAIN_WRONG", "on chain 1;"),
        ({"contract": b"x" * 20}, "CHAIN_WRONG", "0x7878"),
        ({"cumulative": 101}, "INVALID_SPEC", "100 are locked"),
        ({"cumulative": 40}, "LEDGER_CONFLICT", "replayed: 40"),
        ({"cumulative": 39}, "LEDGER_CONFLICT", "replayed: 40"),
    ],
)
def test_what_is_wrong_with_it(changed: dict[str, object], code: str, word: str) -> None:
    told = refused(msgspec.structs.replace(GOOD, **changed))
    assert told.startswith(code)
    assert word in told


def test_forged() -> None:
    assert refused(signer=b"x" * 20).startswith("UNAUTHORISED: the voucher over 60 is signed by 0x")
    assert "signed by nobody" in refused(signer=b"")


def test_the_last_one_is_over_all_that_was_spent() -> None:
    last = msgspec.structs.replace(GOOD, is_last=True)
    assert refused(last, spent=60) == ""
    assert refused(last, spent=61).startswith("INVALID_SPEC")
    assert refused(spent=61) == ""  # one of many
    assert refused(msgspec.structs.replace(last, cumulative=40), spent=40) == ""
    assert "replayed" in refused(msgspec.structs.replace(last, cumulative=39))


def test_out_of_order() -> None:
    told = refused(kept=msgspec.structs.replace(GOOD, cumulative=61))
    assert told.startswith("LEDGER_CONFLICT: out of order")


def test_no_rental_or_a_closed_one() -> None:
    assert refused(rental=None).startswith("UNKNOWN_RENTAL")
    closed = msgspec.structs.replace(RENTAL, state="closed")
    assert refused(rental=closed).startswith("LEDGER_CONFLICT")


def test_too_near_to_the_refund() -> None:
    assert refused(now_s=1_999) == ""
    assert "can be refunded soon" in refused(now_s=2_000)
