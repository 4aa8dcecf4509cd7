"""The core alone: one event in, the exact effects out."""

import msgspec
import pytest
from client_core import HELLO, SUBMIT, WELCOME, new, opened, result, sent, status

from gristmill.client.core import effects as out
from gristmill.client.core import events as on
from gristmill.client.core.state import (
    ACK_MS,
    GREET_MS,
    QUIET_MS,
    RESEND_MS,
    STALL_MS,
    State,
)
from gristmill.client.core.step import step
from gristmill.wire import client as wire


def test_nothing_is_said_before_the_welcome() -> None:
    state = new()
    assert step(state, on.Requested(1, wire.Ask(b"", 0, "jobs")), 0) == []
    assert step(state, on.LinkUp(), 5) == [out.Send(HELLO)]
    effects = step(state, on.Received(WELCOME, []), 6)
    assert effects == [
        out.Welcomed(WELCOME),
        out.Send(wire.Ask(WELCOME.session, 1, "jobs")),
    ]


def test_hello_is_said_again_until_the_welcome() -> None:
    state = new()
    step(state, on.LinkUp(), 0)
    assert step(state, on.TimePassed(), GREET_MS - 1) == []
    assert step(state, on.TimePassed(), GREET_MS) == [out.Send(HELLO)]


def test_a_request_is_said_again_with_its_number_then_fails() -> None:
    state = opened()
    step(state, on.Requested(4, wire.Ask(b"", 0, "jobs")), 10)
    (again,) = [
        m for m in sent(step(state, on.TimePassed(), 10 + RESEND_MS)) if isinstance(m, wire.Ask)
    ]
    assert again.request == 1
    effects = []
    for now in range(1100, 5200, 100):
        effects += step(state, on.TimePassed(), now)
    (failed,) = [effect for effect in effects if isinstance(effect, out.RequestFailed)]
    assert (failed.token, failed.code) == (4, "UNREACHABLE")
    assert not state.requests


def test_a_living_broker_is_waited_for() -> None:
    state = opened()
    step(state, on.Requested(4, wire.Ask(b"", 0, "jobs")), 10)
    for now in range(1000, 20_000, 500):
        effects = step(state, on.Received(wire.Pong(), []), now)
        assert not [e for e in effects if isinstance(e, out.RequestFailed)]


@pytest.mark.parametrize("code", ["UNAUTHORISED", "PROTOCOL"])
def test_a_refused_hello_fails_everything_then_and_later(code: str) -> None:
    state = new()
    step(state, on.LinkUp(), 0)
    step(state, on.Requested(1, wire.Ask(b"", 0, "jobs")), 0)
    effects = step(state, on.Received(wire.Refused(0, code, "m", "h"), []), 1)
    assert effects == [out.RequestFailed(1, code, "m", "h")]
    assert step(state, on.Requested(2, wire.Ask(b"", 0, "jobs")), 9) == [
        out.RequestFailed(2, code, "m", "h")
    ]


def accepted(state: State, allowed: int = 100) -> None:
    step(state, on.JobRequested(1, SUBMIT, b"f"), 10)
    effects = step(state, on.Received(wire.Accepted(1, 7, False, allowed), []), 11)
    assert effects == [
        out.JobAccepted(1, 7),
        out.Send(wire.Subscribe(WELCOME.session, 2, 7, 0, state.window_bytes)),
    ]
    assert step(state, on.Received(wire.Answer(2), []), 12) == []


def test_parcels_keep_to_the_credit_and_one_may_cross_it() -> None:
    state = opened()
    accepted(state, allowed=100)
    parcel = on.ParcelReady(1, 2, "q", b"x" * 60)
    assert len(sent(step(state, parcel, 20))) == 1
    assert len(sent(step(state, parcel, 20))) == 1  # crosses the limit
    assert sent(step(state, parcel, 20)) == []
    effects = step(state, on.Received(wire.InputCredit(7, 2, 160), []), 21)
    assert [message.first for message in sent(effects)] == [4]
    assert out.UploadMoved(1, 2, 0) in effects


def test_the_upload_is_closed_behind_its_last_parcel() -> None:
    state = opened()
    accepted(state)
    step(state, on.ParcelReady(1, 5, "q", b"x" * 40), 20)
    (close,) = sent(step(state, on.UploadEnded(1), 21))
    assert (type(close), close.job, close.count) == (wire.CloseUpload, 7, 5)
    effects = step(state, on.Received(wire.Answer(close.request), []), 22)
    assert effects == [out.UploadMoved(1, 5, 0), out.UploadClosed(1)]
    assert not state.uploads


def test_a_broker_that_reads_its_journal_is_waited_for_and_nothing_fails() -> None:
    state = opened()
    step(state, on.Requested(9, wire.Ask(b"", 0, "jobs")), 22)
    refused = on.Received(wire.Refused(0, "RECOVERING", "the broker reads", ""), [])
    effects = step(state, refused, 300)
    assert effects == [out.BrokerRecovering("the broker reads")]
    assert step(state, refused, 301) == []  # told once
    assert sent(step(state, on.TimePassed(), 301 + GREET_MS)) == [HELLO]
    second = wire.Welcome(b"t" * 16, "b", "local", 1000, 15000, "", True)
    messages = sent(step(state, on.Received(second, []), 2_000))
    assert [type(message) for message in messages] == [wire.Ask]


def test_a_new_session_says_everything_again() -> None:
    state = opened()
    accepted(state)
    step(state, on.ParcelReady(1, 5, "q", b"x" * 40), 20)
    step(state, result(1), 21)
    step(state, on.Requested(9, wire.Ask(b"", 0, "jobs")), 22)
    assert sent(step(state, on.Received(wire.Refused(0, "REJOIN", "", ""), []), 300)) == [HELLO]
    second = wire.Welcome(b"t" * 16, "b", "local", 1000, 15000, "", True)
    messages = sent(step(state, on.Received(second, []), 301))
    kinds = [type(message) for message in messages]
    assert kinds == [wire.Ask, wire.Submit, wire.Subscribe, wire.Parcel]
    assert all(message.session == b"t" * 16 for message in messages)
    assert messages[1].submission == SUBMIT.submission  # the upload is ours still
    assert messages[2].after == 1 and messages[3].first == 0
    assert messages[2].bytes_allowed == state.window_bytes - 8  # one result is not taken yet


def test_parcels_that_stand_still_are_said_again() -> None:
    state = opened()
    accepted(state)
    step(state, on.ParcelReady(1, 5, "q", b"x" * 40), 20)
    step(state, on.Received(wire.Pong(), []), 3000)
    messages = sent(step(state, on.TimePassed(), 20 + STALL_MS))
    assert [m.first for m in messages if isinstance(m, wire.Parcel)] == [0]


def test_each_result_is_told_once_and_in_sequence() -> None:
    state = opened()
    accepted(state)
    assert [type(e) for e in step(state, result(1), 20)] == [out.ResultArrived]
    assert step(state, result(1), 21) == []
    (again,) = sent(step(state, result(3), 22))
    assert (type(again), again.after) == (wire.Subscribe, 1)
    assert sent(step(state, result(4), 23)) == []  # asked once for all of them
    step(state, on.Received(wire.Answer(again.request), []), 24)
    assert [type(e) for e in step(state, result(2), 25)] == [out.ResultArrived]


def test_what_was_taken_is_told_within_a_second_however_small_it_is() -> None:
    """The broker frees inputs with it, and an upload may wait for their room."""
    state = opened()
    accepted(state)
    step(state, result(1), 20)
    assert sent(step(state, on.ResultTaken(7, 1, 8), 30)) == []
    assert state.next_ms <= 20 + ACK_MS
    said = [*sent(step(state, on.TimePassed(), 20 + ACK_MS))]
    said += sent(step(state, on.TimePassed(), 30 + 2 * ACK_MS))
    assert [m.acked for m in said if isinstance(m, wire.Credit)] == [1]  # once


def test_what_stays_missing_after_a_second_try_is_gone() -> None:
    state = opened()
    accepted(state)
    (again,) = sent(step(state, result(3), 22))
    step(state, on.Received(wire.Answer(again.request), []), 24)
    assert [type(e) for e in step(state, result(3), 25)] == [out.ResultArrived]


def test_credit_follows_what_was_taken() -> None:
    state = opened()
    state.window_bytes = 32
    accepted(state)
    step(state, result(1), 20)
    assert sent(step(state, on.ResultTaken(7, 1, 8), 21)) == [
        wire.Credit(WELCOME.session, 7, 1, 40)
    ]


def test_the_end_frees_the_job_once_all_is_taken() -> None:
    state = opened()
    accepted(state)
    step(state, result(1), 20)
    effects = step(state, status("done", 1), 21)
    (told,) = effects
    assert isinstance(told, out.StatusArrived) and told.is_final
    assert sent(step(state, on.ResultTaken(7, 1, 8), 22))[0].acked == 1
    assert not state.subscriptions


def test_a_lost_tail_is_asked_for_before_the_end_is_told() -> None:
    state = opened()
    accepted(state)
    (again,) = sent(step(state, status("done", 1), 20))
    assert (type(again), again.after) == (wire.Subscribe, 0)


def run(state: State, begin: int, end: int) -> list[out.AnyEffect]:
    """What happens while only time passes."""
    told: list[out.AnyEffect] = []
    for now in range(begin, end, 100):
        told += step(state, on.TimePassed(), now)
    return told


def test_silence_is_told_and_then_everything_is_given_up() -> None:
    state = opened()
    accepted(state)
    told = run(state, 100, state.timeout_ms)
    assert [type(e) for e in told if not isinstance(e, out.Send)] == [out.BrokerSilent]
    told = run(state, state.timeout_ms, 12_000)
    given_up = [e for e in told if not isinstance(e, out.Send)]
    assert [type(e) for e in given_up] == [out.UploadFailed, out.ResultsFailed]
    assert {e.code for e in given_up} == {"UNREACHABLE"}  # type: ignore[union-attr]
    assert not (state.uploads or state.subscriptions or state.requests)


def test_after_giving_up_we_are_another_client() -> None:
    state = opened()
    accepted(state)
    run(state, 100, 6_000)
    (hello,) = sent(step(state, on.LinkUp(), 6_100))
    assert isinstance(hello, wire.Hello) and hello.client != HELLO.client
    effects = step(state, on.Received(WELCOME, []), 6_200)
    assert effects == [out.BrokerBack(), out.Welcomed(WELCOME)]  # nothing old is said again


def test_time_in_which_we_were_stopped_is_no_silence() -> None:
    state = opened()
    accepted(state)
    run(state, 100, 1_000)
    effects = step(state, on.TimePassed(), 100_000)
    assert not [e for e in effects if isinstance(e, out.UploadFailed | out.BrokerSilent)]
    told = run(state, 100_100, 100_000 + state.timeout_ms)
    assert [e for e in told if isinstance(e, out.UploadFailed)]


def test_an_idle_client_of_a_dead_broker_has_patience_when_it_asks() -> None:
    state = opened()
    run(state, 100, 60_000)
    step(state, on.JobRequested(1, SUBMIT, b"f"), 60_000)
    assert not [e for e in run(state, 60_100, 61_000) if isinstance(e, out.UploadFailed)]


def closed_at(count: int, state: str = "done", reason: str = "") -> on.Received:
    """The answer to how many inputs job 7 has."""
    card = msgspec.structs.replace(status(state, 1).message.status, count=count, reason=reason)
    return on.Received(wire.Answer(3, msgspec.Raw(msgspec.msgpack.encode(card))), [])


def cut(spec_completion: str = "all") -> State:
    """An upload of ten inputs, two to a parcel, of which the broker refuses those from 4 on."""
    state = opened()
    submit = msgspec.structs.replace(
        SUBMIT, spec=msgspec.structs.replace(SUBMIT.spec, completion=spec_completion)
    )
    step(state, on.JobRequested(1, submit, b"f", True), 10)
    step(state, on.Received(wire.Accepted(1, 7, False, 1000), []), 11)
    step(state, on.Received(wire.Answer(2), []), 12)
    for _ in range(5):
        step(state, on.ParcelReady(1, 2, "q", b"xy"), 13)
    refused = on.Received(wire.Refused(0, "UPLOAD_CLOSED", "m", "h", 7), [])
    (asked,) = sent(step(state, refused, 14))
    assert isinstance(asked, wire.Ask) and (asked.request, asked.job) == (3, 7)
    assert sent(step(state, refused, 15)) == []  # asked once for all of them
    return state


def test_what_a_closed_job_has_not_got_goes_on_in_a_new_one() -> None:
    state = cut()
    effects = step(state, closed_at(4), 20)
    assert effects[0] == out.UploadContinued(1, 7, 4)
    (again,) = sent(effects)
    assert isinstance(again, wire.Submit) and again.submission != SUBMIT.submission
    effects = step(state, on.Received(wire.Accepted(again.request, 9, False, 1000), []), 21)
    assert effects[0] == out.JobAccepted(1, 9)
    parcels = [m for m in sent(effects) if isinstance(m, wire.Parcel)]
    assert [(m.job, m.first) for m in parcels] == [(9, 0), (9, 2), (9, 4)]
    step(state, on.ParcelReady(1, 2, "q", b"xy"), 22)
    (closing,) = sent(step(state, on.UploadEnded(1), 23))
    assert isinstance(closing, wire.CloseUpload) and (closing.job, closing.count) == (9, 8)
    moved = step(state, on.Received(wire.InputCredit(9, 2, 1000), []), 24)
    assert out.UploadMoved(1, 6, 0) in moved


@pytest.mark.parametrize("state_word, reason", [("cancelled", ""), ("failed", "CAP_REACHED: all")])
def test_a_job_that_was_ended_does_not_go_on(state_word: str, reason: str) -> None:
    state = cut()
    effects = step(state, closed_at(4, state_word, reason), 20)
    assert effects == [out.UploadMoved(1, 10, 0), out.UploadClosed(1)]


def test_a_job_that_has_enough_does_not_go_on() -> None:
    effects = step(cut("any"), closed_at(4), 20)
    assert out.UploadClosed(1) in effects


@pytest.mark.parametrize("state_word", ["done", "running"])
def test_a_parcel_that_came_again_after_the_end_of_its_job_is_no_fault(state_word: str) -> None:
    """The broker had the inputs, and was killed before it said so."""
    state = opened()
    spec = msgspec.structs.replace(SUBMIT.spec, count=2)
    submit = msgspec.structs.replace(SUBMIT, spec=spec)
    step(state, on.JobRequested(1, submit, b"f"), 10)
    step(state, on.Received(wire.Accepted(1, 7, False, 1000), []), 11)
    step(state, on.ParcelReady(1, 2, "q", b"xy"), 13)
    refused = on.Received(wire.Refused(0, "UPLOAD_CLOSED", "m", "h", 7), [])
    step(state, refused, 14)
    step(state, closed_at(2, state_word), 20)
    effects = step(state, on.UploadEnded(1), 21)
    assert effects == [out.UploadMoved(1, 2, 0), out.UploadClosed(1)]


def test_a_new_session_claims_its_uploads() -> None:
    state = opened()
    accepted(state)
    step(state, on.Received(wire.Refused(0, "REJOIN", "", ""), []), 400)
    welcome = msgspec.structs.replace(WELCOME, session=b"t" * 16)
    (claim,) = [
        m for m in sent(step(state, on.Received(welcome, []), 410)) if isinstance(m, wire.Submit)
    ]
    assert claim.submission == SUBMIT.submission
    step(state, on.ParcelReady(1, 2, "q", b"x" * 200), 411)
    assert step(state, on.Received(wire.Accepted(claim.request, 7, True, 500), []), 412) == []
    refused = on.Received(wire.Refused(claim.request, "QUOTA", "", ""), [])
    assert step(state, refused, 413) == []  # a claim that is refused changes nothing


def test_a_goodbye_ends_everything() -> None:
    state = opened()
    accepted(state)
    effects = step(state, on.Closed(), 20)
    assert sent(effects) == [wire.Goodbye(WELCOME.session)]
    assert [type(e) for e in effects[1:]] == [out.UploadFailed, out.ResultsFailed]
    (failed,) = step(state, on.Requested(3, wire.Ask(b"", 0, "jobs")), 30)
    assert isinstance(failed, out.RequestFailed) and failed.code == "UNREACHABLE"


def test_an_old_sessions_rejoin_does_not_end_the_new_one() -> None:
    state = opened()
    stale = wire.Refused(1, "REJOIN", "", "", 0, b"o" * 16)
    assert sent(step(state, on.Received(stale, []), 300)) == []
    assert state.phase == "open"
    own = msgspec.structs.replace(stale, session=WELCOME.session)
    assert sent(step(state, on.Received(own, []), 301)) == [HELLO]


def replayed() -> State:
    """A script says the key of a job that has ended with two inputs."""
    state = opened()
    step(state, on.JobRequested(1, SUBMIT, b"f", True), 10)
    effects = step(state, on.Received(wire.Accepted(1, 7, True, 0), []), 11)
    asked = [message for message in sent(effects) if isinstance(message, wire.Ask)]
    assert [(message.about, message.job) for message in asked] == [("job", 7)]
    return state


def test_the_inputs_of_a_job_that_has_ended_are_not_sent_again() -> None:
    state = replayed()
    assert step(state, closed_at(2), 12) == []  # nothing is decided before there are inputs
    assert step(state, on.ParcelReady(1, 2, "q", b"xy"), 13) == []
    effects = step(state, on.UploadEnded(1), 14)
    assert out.UploadClosed(1) in effects and sent(effects) == []


def test_inputs_beyond_those_of_a_job_that_has_ended_begin_a_new_one() -> None:
    state = replayed()
    step(state, on.ParcelReady(1, 2, "q", b"xy"), 12)
    step(state, closed_at(2), 13)
    effects = step(state, on.ParcelReady(1, 3, "q", b"xyz"), 14)
    assert effects[0] == out.UploadContinued(1, 7, 2)
    (again,) = sent(effects)
    assert isinstance(again, wire.Submit) and again.submission != SUBMIT.submission


def test_a_broker_that_forgot_the_closing_gets_the_inputs() -> None:
    state = cut()
    parcels = [m for m in sent(step(state, closed_at(-1), 20)) if isinstance(m, wire.Parcel)]
    assert [(m.job, m.first) for m in parcels] == [(7, 0), (7, 2), (7, 4), (7, 6), (7, 8)]


def test_a_close_that_overtook_a_lost_parcel_is_said_again() -> None:
    state = opened()
    step(state, on.JobRequested(1, SUBMIT, b"f", True), 10)
    step(state, on.Received(wire.Accepted(1, 7, False, 1000), []), 11)
    for _ in range(2):
        step(state, on.ParcelReady(1, 2, "q", b"xy"), 12)
    step(state, on.UploadEnded(1), 13)
    gap = wire.Refused(0, "PARCEL_ORDER", "m", "h", 7)
    *_, closing = sent(step(state, on.Received(gap, []), 14))  # everything is said again at once
    assert isinstance(closing, wire.CloseUpload)
    late = wire.Refused(closing.request, "PARCEL_ORDER", "m", "h", 7)
    step(state, on.Received(late, []), 15)
    again = sent(step(state, on.Received(wire.InputCredit(7, 4, 1000), []), 16))
    assert [(m.job, m.count) for m in again if isinstance(m, wire.CloseUpload)] == [(7, 4)]


def test_a_quiet_subscription_is_asked_for_again_ever_more_seldom() -> None:
    """The last result or the final card may be lost, and nothing later would show it."""
    state = opened()
    step(state, on.ResultsWanted(7, 0), 10)
    step(state, on.Received(wire.Answer(1), []), 20)
    step(state, result(1), 30)
    asked = []
    for now in range(100, 30_000, 100):
        state.heard_ms = now  # the broker answers pings: only this subscription is quiet
        for message in sent(step(state, on.TimePassed(), now)):
            if isinstance(message, wire.Subscribe):
                asked.append(now)
                assert message.after == 1
                step(state, on.Received(wire.Answer(message.request), []), now)
    assert asked[0] == 30 + QUIET_MS + 70 and len(asked) == 3, asked
    effects = step(state, status("done", 1), 30_000)
    assert [type(effect) for effect in effects].count(out.StatusArrived) == 1
    assert not [m for m in sent(step(state, on.TimePassed(), 90_000)) if type(m) is wire.Subscribe]


def waiting_for_credit() -> State:
    """Two parcels are on disk, a third waits: the credit stands still, nothing is on its way."""
    state = opened()
    accepted(state, allowed=100)
    for _ in range(3):
        step(state, on.ParcelReady(1, 2, "q", b"x" * 60), 20)
    step(state, on.Received(wire.InputCredit(7, 4, 100), []), 21)
    return state


def listen(state: State, begin: int, end: int) -> list[tuple[int, wire.Submit]]:
    """The Submits that a broker hears which says nothing but PONG, and when."""
    said = []
    for now in range(begin, end, 100):
        effects = step(state, on.Received(wire.Pong(), []), now)
        said += [(now, one) for one in sent(effects) if isinstance(one, wire.Submit)]
    return said


def test_credit_that_was_lost_is_asked_for() -> None:
    state = waiting_for_credit()
    ((first, asked),) = listen(state, 100, 3_200)
    assert first >= 21 + STALL_MS and asked.submission == SUBMIT.submission
    claim = wire.Accepted(asked.request, 7, True, 100)
    assert sent(step(state, on.Received(claim, []), 3_200)) == []  # it stands still, in truth
    ((second, asked),) = listen(state, 3_300, 9_900)
    assert second >= first + 2 * STALL_MS, "ever more seldom"
    effects = step(state, on.Received(wire.Accepted(asked.request, 7, True, 160), []), 9_900)
    assert [message.first for message in sent(effects)] == [4]


def test_who_asks_for_credit_hears_of_the_end_of_the_job() -> None:
    state = waiting_for_credit()
    ((_, asked),) = listen(state, 100, 3_200)
    (count,) = sent(step(state, on.Received(wire.Accepted(asked.request, 7, True, 0), []), 3_200))
    assert isinstance(count, wire.Ask) and (count.about, count.job) == ("job", 7)


def test_a_subscription_that_is_said_again_is_another_request() -> None:
    """So that the broker knows a late copy of the first one."""
    state = opened()
    step(state, on.ResultsWanted(7, 0), 10)
    (again,) = [m for m in sent(run(state, 100, 1_200)) if isinstance(m, wire.Subscribe)]
    assert again.request == 2 and list(state.requests) == [2]
    step(state, on.Received(wire.Answer(1), []), 1_300)
    assert list(state.requests) == [2], "the answer to the first copy is not one to the second"
    step(state, on.Received(wire.Answer(2), []), 1_400)
    assert not state.requests


def test_results_that_came_twice_or_behind_a_gap_bring_no_credit() -> None:
    """The subscription that follows sends them again, and counts them once."""
    state = opened()
    state.window_bytes = 32
    accepted(state)
    step(state, result(1), 20)
    step(state, result(1), 21)
    (again,) = sent(step(state, result(3), 22))
    step(state, on.Received(wire.Answer(again.request), []), 23)
    step(state, result(1), 24)
    step(state, result(2), 25)
    (credit,) = sent(step(state, on.ResultTaken(7, 2, 16), 26))
    assert credit == wire.Credit(WELCOME.session, 7, 2, 8 + 32)
