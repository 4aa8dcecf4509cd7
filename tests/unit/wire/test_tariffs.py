"""Tariffs: how they are written, their bounds, and the toll's rounding."""

import pytest

from gristmill.wire.errors import RemoteError
from gristmill.wire.spec import Tariff, toll_of
from gristmill.wire.tariffs import (
    CLASSES_MAX,
    STANDARD_TARIFF,
    check_class,
    parse_tariffs,
    tariff_of,
)


def test_standard_is_there_with_its_defaults() -> None:
    assert parse_tariffs([]) == {"standard": Tariff(1_000_000, 10, 50_000)}
    assert parse_tariffs(["standard=cpu:1,gib:0.05,subtask:0.00001"]) == parse_tariffs([])


def test_rates_that_are_left_out_are_standards() -> None:
    found = parse_tariffs(["big=cpu:2.5", "standard=subtask:0"])
    assert found == {
        "standard": Tariff(1_000_000, 0, 50_000),
        "big": Tariff(2_500_000, 10, 50_000),
    }


def test_the_largest_rate_is_one() -> None:
    assert parse_tariffs(["big=gib:1000000"])["big"].gib_second_ucredits == 10**12


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["big=cpu:1000000.000001"], "rate cpu of class big is 1,000,000.000001 credits, must be"),
        (["big=cpu:-1"], "rate cpu of class big: '-1' is not an amount"),
        (["big=cpu:0.0000001"], "at most 6 decimals"),
        (["big=cpu:1e3"], "'1e3' is not an amount"),
        (["big=cpu:nan"], "'nan'"),
        (["big=gpu:1"], "rate 'gpu:1' of class big is none of cpu, gib, subtask"),
        (["big=cpu:1,cpu:2"], "rate 'cpu:2' of class big is there twice"),
        (["big"], "rate '' of class big is none of"),
        (["=cpu:1"], "'' is no name of a class"),
        (["a b=cpu:1"], "'a b' is no name of a class"),
        (["big=cpu:1", "big=cpu:2"], "class 'big' has two tariffs"),
        ([f"c{n}=cpu:1" for n in range(CLASSES_MAX)], f"{CLASSES_MAX + 1} classes; at most"),
    ],
)
def test_what_is_out_of_range_is_refused_by_name(texts: list[str], words: str) -> None:
    with pytest.raises(RemoteError) as caught:
        parse_tariffs(texts)
    assert caught.value.code == "INVALID_SPEC" and words in caught.value.message


def test_every_bad_rate_is_named_at_once() -> None:
    with pytest.raises(RemoteError, match=r"gpu:1.*class b is 2,000,000 credits"):
        parse_tariffs(["a=gpu:1", "b=cpu:2000000"])


def test_an_unknown_class_is_refused_with_the_known_ones() -> None:
    tariffs = parse_tariffs(["big=cpu:2"])
    check_class({}, tariffs)
    check_class({"class": "big"}, tariffs)
    with pytest.raises(RemoteError, match=r"class is .huge.; .* for big, standard") as caught:
        check_class({"class": "huge"}, tariffs)
    assert caught.value.code == "UNKNOWN_CLASS"


def test_a_class_that_came_later_costs_what_standard_did() -> None:
    assert tariff_of({"standard": STANDARD_TARIFF}, "late") == STANDARD_TARIFF


@pytest.mark.parametrize(
    ("amount", "toll"),
    [
        (0, 0),
        (1, 0),
        (33, 0),
        (34, 1),
        (100, 3),
        (1 << 60, 34_587_645_138_205_409),
    ],
)
def test_the_toll_is_three_percent_rounded_down_and_the_node_has_the_rest(
    amount: int, toll: int
) -> None:
    assert toll_of(amount) == toll
    assert (amount - toll) + toll == amount and 100 * toll <= 3 * amount < 100 * (toll + 1)
