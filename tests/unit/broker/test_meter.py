"""Token buckets: never more than the burst and the rate, and every size gets through in the end."""

from hypothesis import given
from hypothesis import strategies as some

from gristmill.broker.core.meter import Bucket, Meter

RATE = some.integers(1, 10**9)
STEPS = some.lists(
    some.tuples(some.integers(0, 5_000), some.integers(1, 10**6)), min_size=1, max_size=60
)


@given(RATE, some.integers(1, 10**9), STEPS)
def test_no_more_passes_than_burst_and_rate_and_one_message(
    per_s: int, burst: int, steps: list[tuple[int, int]]
) -> None:
    bucket, now_ms, passed, largest = Bucket(per_s, burst, 0), 0, 0, 0
    for pause_ms, cost in steps:
        now_ms += pause_ms
        if not bucket.take(cost, now_ms):
            passed, largest = passed + cost, max(largest, cost)
        assert passed * 1_000 <= burst * 1_000 + per_s * now_ms + largest * 1_000


@given(RATE, some.integers(1, 10**9), STEPS)
def test_who_waits_as_told_passes_and_nobody_waits_longer_than_the_debt(
    per_s: int, burst: int, steps: list[tuple[int, int]]
) -> None:
    bucket, now_ms = Bucket(per_s, burst, 0), 0
    for pause_ms, cost in steps:
        now_ms += pause_ms
        wait_ms = bucket.take(cost, now_ms)
        if wait_ms:
            most = cost_ms = -(-max(c for _, c in steps) * 1_000 // per_s)
            assert wait_ms <= cost_ms + 1_000 // 4 + -(-1_000 // per_s) + 1, most
            now_ms += wait_ms
            assert bucket.take(cost, now_ms) == 0


@given(STEPS, some.integers(0, 10**6))
def test_who_stays_below_its_rate_is_never_refused(steps: list[tuple[int, int]], gap: int) -> None:
    per_s, now_ms = 1_000, 0
    bucket = Bucket(per_s, 10, 0)
    for pause_ms, cost in steps:
        assert bucket.take(cost, now_ms) == 0
        now_ms += cost + pause_ms  # as long as it takes to gain it back


def test_a_rate_of_nothing_is_no_limit() -> None:
    bucket = Bucket(0, 1, 0)
    assert not any(bucket.take(10**9, 0) for _ in range(100))


@given(RATE, RATE, some.integers(1, 10**6), some.integers(0, 10**7))
def test_a_new_limit_forgives_nothing_and_is_never_for_ever(
    before: int, after: int, burst: int, used: int
) -> None:
    bucket = Bucket(before, 10**6, 0)
    bucket.take(used, 0)
    bucket.change(after, burst, 0)
    assert bucket.tokens(0) <= max(burst, 1) - min(used, 1)
    assert bucket.take(1, 0) <= -(-2 * burst * 1_000 // after) + 1
    bucket.change(0, 1, 0)
    assert bucket.take(1, 0) == 0


def test_a_closed_meter_lets_nothing_overtake() -> None:
    meter = Meter(0)
    meter.limit((100, 10), (0, 0), 0, 0)
    assert [meter.take(1, 1, 0) for _ in range(11)] == [0] * 10 + [100]
    assert meter.take(1, 1, 50) == 50, "five tokens are there, and it is closed"
    assert [meter.take(1, 1, 100) for _ in range(11)] == [0] * 10 + [100]
    assert (meter.passed, meter.refused, meter.closings) == (20, 3, 2)


def test_of_two_limits_the_narrower_holds_and_a_refused_message_costs_neither() -> None:
    meter = Meter(0)
    meter.limit((1_000, 1_000), (1_000, 1_000), 0, 0)
    assert meter.take(1, 5_000, 0) == 0, "larger than the burst: a debt"
    assert meter.take(1, 1, 0) == 4_250
    assert meter.cause == "1,000 bytes a second"
    assert meter.take(1, 1, 4_250) == 0
    assert meter.passed == 2
    meter.limit((1, 1), (0, 0), 0, 4_250)
    meter.take(1, 1, 4_250)
    assert meter.take(1, 1, 4_250) and meter.cause == "1 requests a second"


def test_a_wider_limit_opens_a_closed_meter_at_once() -> None:
    meter = Meter(0)
    meter.limit((1, 1), (0, 0), 0, 0)
    assert not meter.take(1, 0, 0) and meter.take(1, 0, 0)
    meter.limit((0, 1), (0, 0), 0, 1)
    assert meter.take(1, 0, 1) == 0
