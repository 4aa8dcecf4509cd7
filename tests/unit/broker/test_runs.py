"""Run arithmetic against plain sets of indices, and the columns against a plain list."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gristmill.broker.core import columns as cols
from gristmill.broker.core import runs
from gristmill.broker.core.parcels import Parcels
from gristmill.broker.core.ready import Ready
from gristmill.wire.limits import LEASE_PARCEL_BYTES_MAX, LEASE_RUNS_MAX, SEGMENT_SUBTASKS

a_run = st.tuples(st.integers(0, 60), st.integers(1, 20))
some_runs = st.lists(a_run, max_size=12)


def indices(found: list[tuple[int, int]]) -> list[int]:
    return [i for start, length in found for i in range(start, start + length)]


@given(some_runs)
def test_normalise(given_runs: list[tuple[int, int]]) -> None:
    merged = runs.normalise(given_runs, 70)
    assert indices(merged) == sorted(i for i in set(indices(given_runs)) if i < 70)
    assert all(a + n < b for (a, n), (b, _) in itertools.pairwise(merged))


@given(some_runs, some_runs)
def test_intersect_and_subtract(some: list[tuple[int, int]], others: list[tuple[int, int]]) -> None:
    left, right = runs.normalise(some, 100), runs.normalise(others, 100)
    wanted = set(indices(right))
    assert indices(runs.intersect(left, right)) == [i for i in indices(left) if i in wanted]
    assert indices(runs.subtract(left, right)) == [i for i in indices(left) if i not in wanted]


@given(some_runs, st.data())
def test_cut(some: list[tuple[int, int]], data: st.DataObject) -> None:
    normal = runs.normalise(some, 100)
    if not normal:
        return
    position = data.draw(st.integers(0, len(normal) - 1))
    start, length = normal[position]
    first = data.draw(st.integers(start, start + length - 1))
    count = data.draw(st.integers(1, start + length - first))
    assert runs.find(normal, first, count) == position
    left = list(normal)
    runs.cut(left, position, first, count)
    gone = range(first, first + count)
    assert indices(left) == [i for i in indices(normal) if i not in gone]
    assert runs.find(left, first, count) == -1


def test_find_wants_one_run() -> None:
    assert runs.find([(0, 5), (5, 5)], 3, 4) == -1
    assert runs.find([(0, 5)], -1, 2) == -1
    assert runs.total([(0, 5), (9, 2)]) == 7


# ---------------------------------------------------------------- columns


@given(
    st.lists(st.tuples(st.integers(0, 99), st.integers(1, 30), st.sampled_from("lsf")), max_size=20)
)
def test_columns_against_a_list(steps: list[tuple[int, int, str]]) -> None:
    columns, plain = cols.Columns(), [cols.READY] * 100
    columns.grow(60)
    columns.grow(40)
    for first, count, verb in steps:
        count = min(count, 100 - first)
        part = plain[first : first + count]
        if verb == "l" and set(part) == {cols.READY}:
            columns.set_state(first, count, cols.LEASED)
            plain[first : first + count] = [cols.LEASED] * count
        elif set(part) == {cols.LEASED}:
            word = cols.READY if verb == "s" else cols.DONE
            if verb == "s":
                columns.spend(first, count, 3)
            else:
                columns.finish(first, count, cols.DONE, 3, False)
            plain[first : first + count] = [word] * count
    for word in (cols.READY, cols.LEASED, cols.DONE):
        assert columns.count(word) == plain.count(word)
        assert indices(columns.runs_of(word)) == [i for i in range(100) if plain[i] == word]


def test_a_segment_that_is_done_with_leaves_memory() -> None:
    columns, n = cols.Columns(), SEGMENT_SUBTASKS
    columns.grow(2 * n + 10)
    columns.set_state(n - 5, 10, cols.LEASED)
    assert columns.is_all(n - 5, 10, cols.LEASED) and not columns.is_all(n - 6, 2, cols.LEASED)
    columns.finish(0, n, cols.DONE, 1, False)
    assert columns.segments[0] is None and columns.segments[1] is not None
    columns.finish(2 * n, 10, cols.DONE, 1, False)
    assert columns.segments[2] is not None  # it may still grow
    columns.close()
    assert columns.segments[2] is None
    assert columns.at(0) is None and columns.at(n) == (cols.LEASED, 0)
    assert columns.runs_of(cols.READY) == [(n + 5, n - 5)]


def test_spent_figures_are_kept_by_runs_across_segments() -> None:
    columns, n = cols.Columns(), SEGMENT_SUBTASKS
    columns.grow(2 * n)
    assert list(columns.spent(n - 2, 4, True)) == [(n - 2, 2, 0), (n, 2, 0)]
    columns.set_spent(n - 1, 2, False, 2)
    assert list(columns.spent(n - 2, 4, False)) == [
        (n - 2, 1, 0),
        (n - 1, 1, 2),
        (n, 1, 2),
        (n + 1, 1, 0),
    ]
    assert columns.segments[0] is not None and columns.segments[0].losses is None


def test_the_exception_columns_grow_with_the_segment() -> None:
    columns = cols.Columns()
    columns.grow(10)
    columns.set_spent(3, 1, True, 1)
    columns.grow(10)
    columns.set_spent(15, 1, True, 1)
    assert [v for _, _, v in columns.spent(0, 20, True)] == [0, 1, 0, 1, 0]


# ---------------------------------------------------------------- ready queue, parcels


def parcels_of(*sizes: tuple[int, int]) -> Parcels:
    parcels, first = Parcels(), 0
    for count, body_bytes in sizes:
        parcels.add(first, count, "m", body_bytes)
        first += count
    return parcels


def test_new_parcels_are_one_run_and_what_comes_back_goes_first() -> None:
    ready, parcels = Ready(), parcels_of((1000, 10))
    ready.add_last(0, 100, 1)
    ready.add_last(100, 100, 1)
    assert list(ready.runs) == [(0, 200, 1, 0)]
    assert ready.take(50, parcels) == (1, [(0, 50)])
    ready.add_first([(40, 10)], 1)
    assert list(ready.runs) == [(40, 160, 1, 0)]  # it joins its neighbour
    ready.add_first([(3, 2), (7, 1)], 2)
    assert ready.take(50, parcels) == (2, [(3, 2), (7, 1)])  # another attempt is another lease
    assert ready.take(5, parcels) == (1, [(40, 5)])
    assert ready.count == 155


def test_a_lease_has_at_most_64_runs() -> None:
    ready, parcels = Ready(), parcels_of((1000, 10))
    for start in range(200, 0, -2):
        ready.add_first([(start, 1)], 2)
    attempt, taken = ready.take(1000, parcels)
    assert attempt == 2 and len(taken) == LEASE_RUNS_MAX and ready.count == 36


def test_a_bound_run_makes_small_leases() -> None:
    ready, parcels = Ready(), parcels_of((1000, 10))
    ready.add_last(100, 100, 1)
    ready.add_first([(0, 20)], 1, 8)
    assert ready.take(100, parcels) == (1, [(0, 8)])
    assert ready.take(100, parcels) == (1, [(8, 8)])
    assert ready.take(100, parcels)[1][0] == (16, 4)


def test_a_lease_carries_so_many_parcel_bytes() -> None:
    size = LEASE_PARCEL_BYTES_MAX // 4
    ready, parcels = Ready(), parcels_of(*[(10, size)] * 8)
    ready.add_last(0, 80, 1)
    assert ready.take(5, parcels) == (1, [(0, 5)])
    assert ready.take(80, parcels) == (1, [(5, 35)])  # four parcels
    assert parcels.covering(1, [(5, 35)])[0].first == 0
    assert [head.first for head in parcels.covering(1, [(5, 35)])] == [0, 10, 20, 30]


def test_a_single_parcel_above_the_cap_still_goes() -> None:
    ready, parcels = Ready(), parcels_of((10, 2 * LEASE_PARCEL_BYTES_MAX))
    ready.add_last(0, 10, 1)
    assert ready.take(10, parcels) == (1, [(0, 1)])


@pytest.mark.parametrize(("upto", "size"), [(0, 0), (9, 0), (10, 5), (29, 11), (30, 18)])
def test_bytes_before(upto: int, size: int) -> None:
    assert parcels_of((10, 5), (10, 6), (10, 7)).bytes_before(upto) == size


@given(some_runs)
def test_remove_from_the_queue(gone: list[tuple[int, int]]) -> None:
    ready = Ready()
    ready.add_last(0, 50, 1)
    ready.add_first([(60, 10)], 2, 1)
    normal = runs.normalise(gone, 100)
    ready.remove(normal)
    kept = [i for start, length, _, _ in ready.runs for i in range(start, start + length)]
    assert kept == [i for i in [*range(60, 70), *range(50)] if i not in set(indices(normal))]
    assert ready.count == len(kept)
