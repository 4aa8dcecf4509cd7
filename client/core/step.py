"""The client's side of the dialogue as one pure function.

Theory of operation. The transport may drop anything at any time, the broker may restart at any
time; nothing that was asked may be lost or done twice. So everything is kept until its answer and
said again with the same id (each message: docs/rfc/0002, section 8):

========= ============== ================================================== ==================
what      said again     until                                              made harmless by
========= ============== ================================================== ==================
HELLO     GREET_MS       Welcome                                            the client id
request   RESEND_MS..    Answer, Accepted, Refused; ``timeout_ms`` silence  submission id, being
                                                                            a question
parcel    STALL_MS       InputCredit.committed passes it                    its position
results   by the broker  Credit.acked; a gap: SUBSCRIBE after the last got  the sequence
SUBSCRIBE QUIET_MS..     the final card                                     the sequence, and a
                                                                            new number
credit    STALL_MS..     Accepted: a SUBMIT asks for it when nothing is on  being cumulative
          by a SUBMIT    its way that would bring it
========= ============== ================================================== ==================

``RATE_LIMITED`` holds all of it back for a while, see ``pace``.

A new Welcome says everything again at once: requests in the order they were made, then
subscriptions after the last sequence that was got, then parcels not yet acknowledged.

A broker that says nothing for ``timeout_ms`` is given up: every request, upload and subscription
fails with ``UNREACHABLE``, and whoever waits for them can act. From then on we are another client
(a new id, made of the old one): the session that we leave ends by its own silence, and with it the
uploads that nobody finishes. Only silence that we could have heard counts: time in which this
process was stopped does not.
``next_ms`` of the state is when ``TimePassed`` is due.
"""

import hashlib

import msgspec

from gristmill.client.core import effects as out
from gristmill.client.core import events as on
from gristmill.client.core import pace, results, uploads
from gristmill.client.core.requests import ask, say_again
from gristmill.client.core.state import (
    GREET_MS,
    LATE_MS,
    NEVER,
    SILENCES,
    TELL_SHARE,
    State,
)
from gristmill.wire import client as wire

#: events that start no timer sooner than the ping that is due anyway
_QUIET = frozenset({on.ResultTaken, on.ParcelReady, on.Received})
#: refusals of a HELLO that saying it again cannot change
_FINAL_REFUSALS = frozenset(
    {"UNAUTHORISED", "FORBIDDEN", "PROTOCOL", "NAME_TAKEN", "KEY_EXPIRED", "KEY_REVOKED"}
)


def step(state: State, event: on.AnyEvent, now_ms: int) -> list[out.AnyEffect]:
    """What follows from one event; total and deterministic."""
    todo: list[out.AnyEffect] = []
    if now_ms - state.next_ms >= LATE_MS and state.next_ms:
        state.heard_ms = min(now_ms, state.heard_ms + now_ms - state.next_ms)
    match event:
        case on.Received():
            _on_received(state, event.message, event.frames, now_ms, todo)
        case on.ResultTaken():
            results.on_result_taken(state, event, now_ms, todo)
        case on.ParcelReady():
            uploads.on_parcel_ready(state, event, now_ms, todo)
        case on.UploadEnded():
            uploads.on_upload_ended(state, event.upload, now_ms, todo)
        case on.Requested():
            ask(state, "app", event.token, event.message, event.frames, now_ms, todo)
        case on.JobRequested():
            uploads.on_job_requested(state, event, now_ms, todo)
        case on.ResultsWanted():
            results.subscribe(state, event.job, event.after, now_ms, todo)
        case on.ResultsUnwanted():
            results.unsubscribe(state, event.job, todo)
        case on.LinkUp():
            state.is_linked = True
            if state.phase != "closed":
                _greet(state, now_ms, todo)
        case on.LinkLost():
            state.is_linked = False
            if state.phase == "open":
                state.phase = "greeting"
        case on.TimePassed():
            pass
        case on.Closed():
            if state.phase == "open":
                todo.append(out.Send(wire.Goodbye(state.session)))
            state.phase = "closed"
    if now_ms >= state.next_ms or type(event) not in _QUIET:
        _on_time(state, now_ms, todo)
    return todo


def _greet(state: State, now_ms: int, todo: list[out.AnyEffect]) -> None:
    state.phase = "greeting"
    state.greeted_ms = now_ms
    todo.append(out.Send(state.hello))


def _on_received(
    state: State, message: object, frames: list[bytes], now_ms: int, todo: list[out.AnyEffect]
) -> None:
    if state.phase in ("closed", "refused"):
        return
    state.heard_ms = now_ms
    if state.is_silence_told:
        state.is_silence_told = False
        todo.append(out.BrokerBack())
    match message:
        case wire.Results():
            results.on_results(state, message, frames, now_ms, todo)
        case wire.InputCredit():
            uploads.on_input_credit(state, message, now_ms, todo)
        case wire.JobEvent():
            results.on_job_event(state, message.status, now_ms, todo)
        case wire.Answer():
            if frames:  # a body that is too large for a header
                message = msgspec.structs.replace(message, body=msgspec.Raw(b"".join(frames)))
            _on_answer(state, message, now_ms, todo)
        case wire.Accepted():
            _on_accepted(state, message, now_ms, todo)
        case wire.Refused():
            _on_refused(state, message, now_ms, todo)
        case wire.Welcome():
            _on_welcome(state, message, now_ms, todo)
        case _:
            pass  # a PONG: having heard it is all


def _on_welcome(
    state: State, welcome: wire.Welcome, now_ms: int, todo: list[out.AnyEffect]
) -> None:
    if state.phase == "open" and welcome.session == state.session:
        return  # the answer to a HELLO that was said twice
    state.phase, state.is_recovery_told = "open", False
    state.held_until_ms = 0  # it took our HELLO
    state.session = welcome.session
    state.ping_ms = max(welcome.ping_ms, 1)
    state.said_ms = now_ms
    todo.append(out.Welcomed(welcome))
    results.forget_credit(state)
    uploads.rewind_all(state, now_ms)
    for number in list(state.requests):
        say_again(state, number, now_ms, todo)
    uploads.claim_all(state, now_ms, todo)
    results.subscribe_again(state, now_ms, todo)
    for upload in list(state.uploads.values()):
        uploads.pump(state, upload, now_ms, todo)


def _on_answer(state: State, answer: wire.Answer, now_ms: int, todo: list[out.AnyEffect]) -> None:
    pending = state.requests.pop(answer.request, None)
    if pending is None:
        return
    if pending.kind == "close":
        uploads.on_closed(state, pending.key, todo)
    elif pending.kind == "subscribe":
        results.on_subscribed(state, pending.key)
    elif pending.kind == "count":
        uploads.on_counted(state, pending.key, answer, now_ms, todo)
    else:
        todo.append(out.Answered(pending.key, answer))


def _on_accepted(
    state: State, accepted: wire.Accepted, now_ms: int, todo: list[out.AnyEffect]
) -> None:
    pending = state.requests.pop(accepted.request, None)
    if pending is None:
        return
    if pending.kind == "submit":
        uploads.on_accepted(state, pending.key, accepted, now_ms, todo)
    elif pending.kind == "claim":
        uploads.on_claimed(state, pending.key, accepted, now_ms, todo)
    else:
        todo.append(out.Answered(pending.key, accepted))


def _on_refused(
    state: State, refused: wire.Refused, now_ms: int, todo: list[out.AnyEffect]
) -> None:
    if refused.code == "REJOIN":
        if refused.session not in (b"", state.session):
            return  # of a session that we have left: what it had was said again in this one
        if state.phase == "open" or now_ms - state.greeted_ms >= GREET_MS:
            _greet(state, now_ms, todo)
        return
    if refused.code == "RECOVERING":  # nothing that we said was taken: it is said again
        state.phase, state.greeted_ms = "greeting", now_ms
        if not state.is_recovery_told:
            state.is_recovery_told = True
            todo.append(out.BrokerRecovering(refused.message))
        return
    if refused.code == "RATE_LIMITED":
        pace.on_rate_limited(state, refused, now_ms, todo)
        return
    if refused.request == 0 and state.phase == "greeting" and refused.code in _FINAL_REFUSALS:
        state.phase = "refused"
        state.refusal = (refused.code, refused.message, refused.hint)
        _on_time(state, now_ms, todo)
        return
    pending = state.requests.pop(refused.request, None)
    code, message, hint = refused.code, refused.message, refused.hint
    if pending is None:
        if refused.job and code == "UNKNOWN_JOB" and refused.job in state.subscriptions:
            results.on_refused(state, refused.job, code, message, hint, todo)
        uploads.on_parcel_refused(state, refused, now_ms, todo)
    elif pending.kind == "app":
        todo.append(out.RequestFailed(pending.key, code, message, hint))
    elif pending.kind == "subscribe":
        results.on_refused(state, pending.key, code, message, hint, todo)
    elif pending.kind == "claim":
        pass  # its parcels will hear why, if it matters
    elif pending.kind == "close" and code in ("PARCEL_ORDER", "UPLOAD_CLOSED"):
        uploads.on_close_refused(
            state, msgspec.structs.replace(refused, job=pending.message.job), now_ms, todo
        )
    else:
        uploads.fail(state, pending.key, code, message, hint, todo)


def _on_time(state: State, now_ms: int, todo: list[out.AnyEffect]) -> None:
    """Everything that is due, and when the next thing will be."""
    if state.phase == "refused":
        _fail_everything(state, *state.refusal, todo)
        state.next_ms = NEVER
        return
    if state.phase == "closed":
        _fail_everything(
            state,
            "UNREACHABLE",
            "this client is closed",
            "make a new Client; jobs that were accepted go on",
            todo,
        )
        state.next_ms = NEVER
        return
    due = [NEVER]
    if state.held_until_ms:
        if now_ms >= state.held_until_ms:
            pace.release(state, now_ms, todo)
        else:
            due.append(state.held_until_ms)
    if state.phase == "open":
        if now_ms - state.heard_ms >= SILENCES * state.ping_ms:
            _greet(state, now_ms, todo)
        elif now_ms - state.said_ms >= state.ping_ms:
            state.said_ms = now_ms
            todo.append(out.Send(wire.Ping(state.session)))
        due.append(state.said_ms + state.ping_ms)
        due.append(state.heard_ms + SILENCES * state.ping_ms)
    elif now_ms - state.greeted_ms >= GREET_MS and state.is_linked and not state.held_until_ms:
        _greet(state, now_ms, todo)
    if state.phase == "greeting":
        greet_ms = state.greeted_ms if state.is_linked else now_ms
        due.append(max(greet_ms + GREET_MS, state.held_until_ms))
    due.append(_resend(state, now_ms, todo))
    due.append(uploads.on_time(state, now_ms, todo))
    due.append(results.on_time(state, now_ms, todo))
    due.append(_notice_silence(state, now_ms, todo))
    state.next_ms = max(min(due), now_ms + 1)


def _resend(state: State, now_ms: int, todo: list[out.AnyEffect]) -> int:
    due = NEVER
    for number in list(state.requests):
        pending = state.requests.get(number)
        if pending is None:
            continue  # its upload failed a moment ago
        silent_ms = now_ms - max(state.heard_ms, pending.made_ms)
        if pending.kind in ("app", "submit") and silent_ms >= state.timeout_ms:
            del state.requests[number]
            message = f"the broker has not answered for {silent_ms / 1000:.3g} s"
            if pending.kind == "app":
                todo.append(out.RequestFailed(pending.key, "UNREACHABLE", message, ""))
            else:
                uploads.fail(state, pending.key, "UNREACHABLE", message, "", todo)
            continue
        if state.phase == "open" and now_ms >= max(pending.again_ms, state.held_until_ms):
            say_again(state, number, now_ms, todo)
        if state.phase == "open":
            due = min(due, max(pending.again_ms, state.held_until_ms))
        if pending.kind in ("app", "submit"):
            due = min(due, max(state.heard_ms, pending.made_ms) + state.timeout_ms)
    return due


def _notice_silence(state: State, now_ms: int, todo: list[out.AnyEffect]) -> int:
    """Who waits for a dead broker is told, and a while later given their own again."""
    is_wanted = any(not subscription.is_final for subscription in state.subscriptions.values())
    if not (is_wanted or state.uploads):
        state.wanted_ms = now_ms
        return NEVER
    since_ms = max(state.heard_ms, state.wanted_ms)
    silent_ms = now_ms - since_ms
    if silent_ms >= state.timeout_ms:
        _give_up(state, silent_ms, now_ms, todo)
        return NEVER
    tell_ms = state.timeout_ms // TELL_SHARE
    if silent_ms >= tell_ms and not state.is_silence_told:
        state.is_silence_told = True
        todo.append(out.BrokerSilent(silent_ms, state.timeout_ms - silent_ms))
    return since_ms + (state.timeout_ms if state.is_silence_told else tell_ms)


def _give_up(state: State, silent_ms: int, now_ms: int, todo: list[out.AnyEffect]) -> None:
    """Everything that waits fails; the session is left, see the module's text."""
    message = f"the broker has not answered for {silent_ms / 1000:.3g} s"
    _fail_everything(state, "UNREACHABLE", message, "", todo)
    client = hashlib.sha256(b"after " + state.hello.client).digest()[:16]
    state.hello = msgspec.structs.replace(state.hello, client=client)
    state.phase = "greeting"
    state.session = b""
    state.heard_ms = now_ms  # what is asked from now on has patience of its own


def _fail_everything(
    state: State, code: str, message: str, hint: str, todo: list[out.AnyEffect]
) -> None:
    requests, state.requests = state.requests, {}
    for pending in requests.values():
        if pending.kind == "app":
            todo.append(out.RequestFailed(pending.key, code, message, hint))
    for upload in list(state.uploads):
        uploads.fail(state, upload, code, message, hint, todo)
    for job in list(state.subscriptions):
        results.on_refused(state, job, code, message, hint, todo)
