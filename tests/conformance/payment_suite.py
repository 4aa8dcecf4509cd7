"""What every payment backend must do: ``CHECKS``, each run with a fresh bench.

A backend's test parametrises over ``CHECKS`` and hands each a ``Bench``; see test_payments.py. The
suite knows a backend only by ``gristmill.ledger.payments.interface.PaymentBackend``; ``pay`` is
what a payer does, with whatever really moves there.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from gristmill.ledger.payments.interface import (
    BackendDownError,
    BackendRefusedError,
    CallbackRefusedError,
    PaymentBackend,
)
from gristmill.wire.payments import UNITS

EXPIRY_MS = 3_600_000


@dataclasses.dataclass
class Bench:
    """A backend under test.

    ``intend``: the ledger has an intent of this id and amount (a backend may ask it). ``pay``: pays
    an invoice for good. ``signed``: headers and body of a good callback about an invoice.
    ``expire``: an invoice's time passes. ``dead``: the same backend where nobody answers, None for
    one that asks nobody. ``can_underpay``: less than the amount arrives, too.
    """

    backend: PaymentBackend
    intend: Callable[[str, int], None]
    pay: Callable[[str, int], None]
    signed: Callable[[str], tuple[dict[str, str], bytes]]
    expire: Callable[[str], None]
    dead: PaymentBackend | None
    can_underpay: bool
    amount: int = 50_000

    def made(self, intent: str = "pi1") -> Any:
        self.intend(intent, self.amount)
        return self.backend.create(intent, self.amount, "credits", EXPIRY_MS)


def check_names(bench: Bench) -> None:
    assert bench.backend.name.isalnum() and bench.backend.unit in UNITS


def check_an_invoice_has_a_reference_and_an_expiry(bench: Bench) -> None:
    invoice = bench.made()
    assert invoice.backend_id and invoice.reference
    payment = bench.backend.look_up(invoice.backend_id)
    assert (payment.state, payment.paid, payment.received) == ("open", [], 0)
    assert invoice.expires_ms > 1_700_000_000_000


def check_a_retry_meets_the_same_invoice(bench: Bench) -> None:
    first, again = bench.made(), bench.made()
    assert first == again == bench.backend.find("pi1")


def check_two_intents_have_two_invoices(bench: Bench) -> None:
    one, two = bench.made("pi1"), bench.made("pi2")
    assert one.backend_id != two.backend_id and one.reference != two.reference


def check_another_amount_for_one_intent_is_refused(bench: Bench) -> None:
    bench.made()
    with pytest.raises(BackendRefusedError, match="pi1"):
        bench.backend.create("pi1", bench.amount + 1, "credits", EXPIRY_MS)


def check_an_unknown_intent_has_no_invoice(bench: Bench) -> None:
    assert bench.backend.find("pi-none") is None


def check_an_unknown_invoice_is_refused(bench: Bench) -> None:
    for wrong in ("ab" * 32, "no-such-invoice", "../x"):
        with pytest.raises(BackendRefusedError):
            bench.backend.look_up(wrong)


def check_a_payment_is_seen_once_and_stays(bench: Bench) -> None:
    invoice = bench.made()
    bench.pay(invoice.backend_id, bench.amount)
    first = bench.backend.look_up(invoice.backend_id)
    assert (first.state, first.received, len(first.paid)) == ("closed", bench.amount, 1)
    assert bench.backend.look_up(invoice.backend_id).paid == first.paid


def check_more_than_the_amount_is_all_told(bench: Bench) -> None:
    invoice = bench.made()
    bench.pay(invoice.backend_id, bench.amount * 3 // 2)
    assert bench.backend.look_up(invoice.backend_id).received == bench.amount * 3 // 2


def check_less_than_the_amount_is_told_or_does_not_arrive(bench: Bench) -> None:
    invoice = bench.made()
    bench.pay(invoice.backend_id, bench.amount - 1)
    payment = bench.backend.look_up(invoice.backend_id)
    assert payment.received == (bench.amount - 1 if bench.can_underpay else 0)
    assert payment.state == "open"


def check_what_is_cancelled_is_closed(bench: Bench) -> None:
    invoice = bench.made()
    bench.backend.cancel(invoice.backend_id)
    payment = bench.backend.look_up(invoice.backend_id)
    assert (payment.state, payment.paid) == ("closed", [])
    bench.backend.cancel(invoice.backend_id)  # once more is no error


def check_what_is_paid_stays_paid_when_it_is_cancelled(bench: Bench) -> None:
    invoice = bench.made()
    bench.pay(invoice.backend_id, bench.amount)
    bench.backend.cancel(invoice.backend_id)
    assert bench.backend.look_up(invoice.backend_id).received == bench.amount


def check_what_expired_is_closed(bench: Bench) -> None:
    invoice = bench.made()
    bench.expire(invoice.backend_id)
    assert bench.backend.look_up(invoice.backend_id).state == "closed"


def check_a_good_callback_names_its_invoice(bench: Bench) -> None:
    invoice = bench.made()
    headers, body = bench.signed(invoice.backend_id)
    assert bench.backend.verify_callback(headers, body) == invoice.backend_id


def check_a_bad_callback_is_refused(bench: Bench) -> None:
    invoice = bench.made()
    headers, body = bench.signed(invoice.backend_id)
    (name,) = (each for each in headers if each.endswith("sig"))
    altered = body.replace(invoice.backend_id[:4].encode(), b"0ff0", 1)
    assert altered != body
    for wrong, what in (
        ({}, body),
        ({**headers, name: ""}, body),
        ({**headers, name: "sha256=00"}, body),
        ({**headers, name: headers[name].removeprefix("sha256=")}, body),
        ({**headers, name: headers[name].upper()}, body),
        ({**headers, name: "ä" + headers[name]}, body),
        (headers, altered),
        (headers, body + b" "),
    ):
        with pytest.raises(CallbackRefusedError):
            bench.backend.verify_callback(wrong, what)


def check_a_dead_server_is_down_and_not_a_no(bench: Bench) -> None:
    if bench.dead is None:
        return
    for call in (
        lambda: bench.dead.create("pi1", 5, "x", EXPIRY_MS),
        lambda: bench.dead.find("pi1"),
        lambda: bench.dead.look_up("ab" * 32),
        lambda: bench.dead.cancel("ab" * 32),
    ):
        with pytest.raises(BackendDownError):
            call()


CHECKS = [found for name, found in sorted(globals().items()) if name.startswith("check_")]
