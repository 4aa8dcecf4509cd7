"""A client that is over the rate of its key: silent until it may go on, and nothing is lost."""

from client_core import HELLO, SUBMIT, WELCOME, new, opened, result, sent, status

from gristmill.client.core import effects as out
from gristmill.client.core import events as on
from gristmill.client.core.state import ACK_MS
from gristmill.client.core.step import step
from gristmill.wire import client as wire


def limited(request: int = 0, job: int = 0, retry_after_ms: int = 400) -> on.Received:
    refused = wire.Refused(request, "RATE_LIMITED", "the key is at its rate", "", job, b"",
                           retry_after_ms)  # fmt: skip
    return on.Received(refused, [])


def test_over_its_rate_a_client_is_silent_until_it_may_go_on_and_says_so_once() -> None:
    state = opened()
    (asked,) = sent(step(state, on.Requested(1, wire.Ask(b"", 0, "jobs")), 10))
    effects = step(state, limited(asked.request), 20)
    (held,) = [effect for effect in effects if isinstance(effect, out.Held)]
    assert 400 <= held.wait_ms <= 500 and sent(effects) == []
    assert step(state, limited(asked.request), 25) == [], "told once"
    assert sent(step(state, on.Requested(2, wire.Ask(b"", 0, "grid")), 30)) == []
    until_ms = state.held_until_ms
    assert 420 <= until_ms <= 525
    assert sent(step(state, on.TimePassed(), until_ms - 1)) == []
    again = sent(step(state, on.TimePassed(), until_ms))
    assert [one.about for one in again] == ["jobs", "grid"]
    assert again[0].request == asked.request, "the same request, not another"
    answer = wire.Answer(asked.request)
    assert step(state, on.Received(answer, []), until_ms + 5) == [out.Answered(1, answer)]


def test_parcels_that_followed_on_a_refused_one_go_again_in_order() -> None:
    state = opened()
    step(state, on.JobRequested(1, SUBMIT, b""), 10)
    step(state, on.Received(wire.Accepted(1, 7, False, 1 << 20), []), 11)
    for _ in range(3):
        step(state, on.ParcelReady(1, 5, "m", b"12345"), 12)
    step(state, on.Received(wire.InputCredit(7, 5, 1 << 20), []), 13)  # the first is on disk
    effects = step(state, limited(0, 7), 14)
    assert not [one for one in effects if isinstance(one, out.UploadFailed)]
    assert sent(step(state, on.ParcelReady(1, 5, "m", b"12345"), 15)) == []
    again = sent(step(state, on.TimePassed(), state.held_until_ms))
    assert [one.first for one in again if isinstance(one, wire.Parcel)] == [5, 10, 15]


def test_credit_that_may_not_have_been_taken_is_given_again() -> None:
    state = opened()
    step(state, on.ResultsWanted(7), 10)
    step(state, on.Received(wire.Answer(1), []), 11)
    step(state, result(1), 12)
    told = sent(step(state, on.ResultTaken(7, 1, 8), 12 + ACK_MS))
    assert [one.acked for one in told if isinstance(one, wire.Credit)] == [1]
    step(state, limited(), 13 + ACK_MS)
    step(state, status("done", 1), 14 + ACK_MS)
    assert 7 in state.subscriptions, "its end is not told yet"
    at_ms = max(state.held_until_ms, 12 + 2 * ACK_MS)
    told = sent(step(state, on.TimePassed(), at_ms))
    assert [one.acked for one in told if isinstance(one, wire.Credit)] == [1]
    assert 7 not in state.subscriptions


def test_a_hello_that_is_refused_for_its_rate_is_said_later_and_a_welcome_ends_the_wait() -> None:
    state = new()
    step(state, on.LinkUp(), 0)
    step(state, limited(retry_after_ms=3_000), 5)
    for now_ms in range(10, 3_000, 200):
        assert sent(step(state, on.TimePassed(), now_ms)) == []
    assert sent(step(state, on.TimePassed(), state.held_until_ms)) == [HELLO]
    step(state, limited(retry_after_ms=3_000), state.held_until_ms + 1)
    step(state, on.Received(WELCOME, []), state.held_until_ms - 1)
    assert sent(step(state, on.Requested(1, wire.Ask(b"", 0, "jobs")), state.heard_ms + 1))


def test_a_wait_longer_than_the_patience_is_no_silence() -> None:
    state = opened()
    step(state, on.Requested(1, wire.Ask(b"", 0, "jobs")), 10)
    step(state, limited(1, retry_after_ms=30_000), 20)
    for now_ms in range(100, 30_000, 500):
        effects = step(state, on.TimePassed(), now_ms)
        assert not [one for one in effects if isinstance(one, out.RequestFailed)], now_ms
        assert {type(one) for one in sent(effects)} <= {wire.Ping}, "it keeps its session"
    told = sent(step(state, on.TimePassed(), state.held_until_ms))
    assert [one.about for one in told if isinstance(one, wire.Ask)] == ["jobs"]
