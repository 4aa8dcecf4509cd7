"""Arrays and subtasks as people write them."""

import pytest

from gristmill.cli.selection import Array, format_runs, parse_array, parse_runs


@pytest.mark.parametrize(
    ("text", "numbers", "at_once"),
    [
        ("1-5", [1, 2, 3, 4, 5], 0),
        ("1-100:25", [1, 26, 51, 76], 0),
        ("1,5,9", [1, 5, 9], 0),
        ("7", [7], 0),
        ("0-2,10-11%4", [0, 1, 2, 10, 11], 4),
        ("5,1", [5, 1], 0),
        ("3-3", [3], 0),
    ],
)
def test_arrays(text: str, numbers: list[int], at_once: int) -> None:
    array = parse_array(text)
    assert [number for span in array.ranges() for number in span] == numbers
    assert (array.total, array.at_once) == (len(numbers), at_once)


@pytest.mark.parametrize(
    "text",
    ["", "-", "1-", "-5", "5-1", "1-5:0", "1:2", "a-b", "1-5%", "1-5%0", "1,,2", "1 2", "١", "1.5"],
)
def test_bad_arrays_name_the_text(text: str) -> None:
    with pytest.raises(ValueError, match=r"^'") as caught:
        parse_array(text)
    assert repr(text) in str(caught.value) or repr(text.partition("%")[0]) in str(caught.value)


def test_an_array_is_never_written_out() -> None:
    assert parse_array("0-99999999") == Array([(0, 99_999_999, 1)], 0)
    with pytest.raises(ValueError, match=r"100,000,001 numbers, at most 100,000,000"):
        parse_array("0-100000000")


@pytest.mark.parametrize(
    ("text", "job", "runs"),
    [
        ("j17", 17, []),
        ("17", 17, []),
        ("j17/3", 17, [(3, 1)]),
        ("j17/3-9,12", 17, [(3, 7), (12, 1)]),
        ("j17/0", 17, [(0, 1)]),
    ],
)
def test_runs(text: str, job: int, runs: list[tuple[int, int]]) -> None:
    assert parse_runs(text) == (job, runs)
    assert parse_runs(format_runs(job, runs)) == (job, runs)


@pytest.mark.parametrize("text", ["", "x", "j0", "j17/", "j17/a", "j17/9-3", "j17/3,", "j17/-1"])
def test_bad_runs(text: str) -> None:
    with pytest.raises(ValueError, match="j17"):
        parse_runs(text)
