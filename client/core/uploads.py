"""Uploads: parcels in order under credit, kept until the broker has them on disk.

A client that was silent for longer than a session lasts (stopped, asleep, cut off) finds its
open-ended job closed where it was, or ended. It learns that from the refusal of its next parcel,
asks how many inputs the job has, and submits a new job for those behind.
"""

import hashlib

import msgspec

from gristmill.client.core import effects as out
from gristmill.client.core import events as on
from gristmill.client.core import results
from gristmill.client.core.requests import ask
from gristmill.client.core.state import (
    NEVER,
    QUIET_MS_MAX,
    STALL_MS,
    KeptParcel,
    State,
    Upload,
)
from gristmill.wire import client as wire
from gristmill.wire.errors import CODES


def on_job_requested(
    state: State, event: on.JobRequested, now_ms: int, todo: list[out.AnyEffect]
) -> None:
    """A new job: its upload waits for the acceptance."""
    state.uploads[event.upload] = Upload(
        event.upload, event.message, event.function, event.may_continue, moved_ms=now_ms
    )
    ask(state, "submit", event.upload, event.message, [event.function], now_ms, todo)


def on_accepted(
    state: State, number: int, accepted: wire.Accepted, now_ms: int, todo: list[out.AnyEffect]
) -> None:
    """The job has an id: subscribe first, so that no result waits, then send its inputs."""
    upload = state.uploads[number]
    upload.job = accepted.job
    upload.bytes_allowed = accepted.bytes_allowed
    state.upload_of_job[accepted.job] = number
    todo.append(out.JobAccepted(number, accepted.job))
    results.subscribe(state, accepted.job, 0, now_ms, todo)
    if accepted.is_replayed and not accepted.bytes_allowed:
        _ask_count(state, upload, now_ms, todo)  # it has ended: it takes no inputs, whatever we say
    pump(state, upload, now_ms, todo)


def claim_all(state: State, now_ms: int, todo: list[out.AnyEffect]) -> None:
    """A new session says which uploads it goes on with, or the broker would close them."""
    for upload in state.uploads.values():
        is_asked = any(
            pending.kind in ("claim", "count", "submit") and pending.key == upload.number
            for pending in state.requests.values()
        )
        if upload.job and not is_asked:
            ask(state, "claim", upload.number, upload.message, [upload.function], now_ms, todo)


def _ask_credit(state: State, upload: Upload, now_ms: int, todo: list[out.AnyEffect]) -> None:
    """It waits for credit, and nothing on its way would bring what was lost: say its Submit again.

    The answer tells the credit, or that the job has ended.
    """
    upload.moved_ms = now_ms
    upload.quiet_ms = min(2 * upload.quiet_ms, QUIET_MS_MAX)
    kinds = {p.kind for p in state.requests.values() if p.key == upload.number}
    if kinds.isdisjoint(("claim", "count")):
        ask(state, "claim", upload.number, upload.message, [upload.function], now_ms, todo)


def on_claimed(
    state: State, number: int, accepted: wire.Accepted, now_ms: int, todo: list[out.AnyEffect]
) -> None:
    """The upload is ours again."""
    upload = state.uploads.get(number)
    if upload is not None and upload.job == accepted.job:
        upload.bytes_allowed = max(upload.bytes_allowed, accepted.bytes_allowed)
        if not accepted.bytes_allowed:
            _ask_count(state, upload, now_ms, todo)  # it has ended
        pump(state, upload, now_ms, todo)


def _ask_count(state: State, upload: Upload, now_ms: int, todo: list[out.AnyEffect]) -> None:
    """The broker takes no more inputs for this job: how many has it?"""
    is_asked = any(p.kind == "count" and p.key == upload.number for p in state.requests.values())
    if not is_asked and upload.have < 0:
        ask(state, "count", upload.number, wire.Ask(b"", 0, "job", upload.job), [], now_ms, todo)


def on_counted(
    state: State, number: int, answer: wire.Answer, now_ms: int, todo: list[out.AnyEffect]
) -> None:
    """A job that was closed while we were away: what it has not got goes on in a new one.

    One that was cancelled, or stopped at its cap, or that has enough by its completion rule, does
    not: its end says why.
    """
    upload = state.uploads.get(number)
    if upload is None:
        return
    status = msgspec.msgpack.decode(answer.body, type=wire.JobStatus)
    if is_forced_end(status) or upload.message.spec.completion != "all":
        on_closed(state, number, todo)
        return
    if status.count < 0:  # a broker that crashed has forgotten that it was closed: it goes on
        upload.stalls = 0
        rewind(state, upload, now_ms)
        pump(state, upload, now_ms, todo)
        return
    upload.have = status.count
    _settle_cut(state, upload, now_ms, todo)


def _settle_cut(state: State, upload: Upload, now_ms: int, todo: list[out.AnyEffect]) -> None:
    """What the job has is not sent; the first input behind that begins a new job.

    Until there is one, or the end of the inputs, nothing is decided: a script that was started
    again with the key of a job that has ended only says over what the job had.
    """
    have, number = upload.have, upload.number
    while upload.parcels and upload.parcels[0].first < have:
        upload.acked_bytes += len(upload.parcels.popleft().frame)
    if not upload.parcels:
        if upload.is_ended:
            on_closed(state, number, todo)
        return
    if not upload.may_continue:
        message = f"job j{upload.job} has ended with {have} inputs: it takes no more"
        fail(state, number, "UPLOAD_CLOSED", message, CODES["UPLOAD_CLOSED"].next_move, todo)
        return
    del state.upload_of_job[upload.job]
    todo.append(out.UploadContinued(number, upload.job, upload.base + have))
    submission = hashlib.sha256(b"after " + upload.message.submission).digest()[:16]
    upload.message = msgspec.structs.replace(upload.message, submission=submission)
    for parcel in upload.parcels:
        parcel.first -= have
    upload.base += have
    upload.count -= have
    upload.have = -1
    upload.job = upload.committed = upload.bytes_allowed = upload.stalls = 0
    upload.acked_bytes = upload.sent_bytes = upload.sent = 0
    upload.is_closing = False
    for request in [
        n for n, p in state.requests.items() if p.kind in ("close", "claim") and p.key == number
    ]:
        del state.requests[request]
    ask(state, "submit", number, upload.message, [upload.function], now_ms, todo)


def is_forced_end(status: wire.JobStatus) -> bool:
    """Whether a job ended before its subtasks did: cancelled, stopped at its cap, refused."""
    if status.state == "cancelled":
        return True
    return status.state == "failed" and status.reason.partition(":")[0] != "JOB_FAILED"


def on_parcel_ready(
    state: State, event: on.ParcelReady, now_ms: int, todo: list[out.AnyEffect]
) -> None:
    """The next inputs."""
    upload = state.uploads.get(event.upload)
    if upload is None or upload.is_ended:
        return  # it failed meanwhile, and its owner was told
    upload.parcels.append(KeptParcel(upload.count, event.count, event.codec, event.frame))
    upload.count += event.count
    if upload.have >= 0:
        _settle_cut(state, upload, now_ms, todo)
    pump(state, upload, now_ms, todo)


def on_upload_ended(state: State, number: int, now_ms: int, todo: list[out.AnyEffect]) -> None:
    """No more inputs."""
    upload = state.uploads.get(number)
    if upload is not None and not upload.is_ended:
        upload.is_ended = True
        if upload.have >= 0:
            _settle_cut(state, upload, now_ms, todo)
        pump(state, upload, now_ms, todo)


def on_input_credit(
    state: State, credit: wire.InputCredit, now_ms: int, todo: list[out.AnyEffect]
) -> None:
    """Inputs are on disk: forget them, send more."""
    upload = state.uploads.get(state.upload_of_job.get(credit.job, -1))
    if upload is None:
        return
    upload.bytes_allowed = max(upload.bytes_allowed, credit.bytes_allowed)
    while upload.parcels and upload.parcels[0].first + upload.parcels[0].count <= credit.committed:
        upload.acked_bytes += len(upload.parcels.popleft().frame)
        upload.sent = max(upload.sent - 1, 0)
        upload.sent_bytes = max(upload.sent_bytes, upload.acked_bytes)
    if credit.committed > upload.committed:
        upload.committed = credit.committed
        upload.moved_ms = now_ms
        upload.stalls = 0
    pump(state, upload, now_ms, todo)
    committed = upload.base + upload.committed
    todo.append(out.UploadMoved(upload.number, committed, len(upload.parcels) - upload.sent))


def pump(state: State, upload: Upload, now_ms: int, todo: list[out.AnyEffect]) -> None:
    """Send what credit allows; one parcel may cross the limit, so a large one cannot stall."""
    if state.phase != "open" or state.held_until_ms or not upload.job or upload.have >= 0:
        return
    is_allowed = upload.sent_bytes < upload.bytes_allowed
    if upload.parcels and upload.sent == 0 and is_allowed:
        upload.moved_ms = now_ms  # a stall is counted from when something is on its way
        upload.quiet_ms = STALL_MS
    while upload.sent < len(upload.parcels) and upload.sent_bytes < upload.bytes_allowed:
        parcel = upload.parcels[upload.sent]
        upload.sent += 1
        upload.sent_bytes += len(parcel.frame)
        _send(state, upload, parcel, now_ms, todo)
    if upload.is_ended and not upload.is_closing and upload.sent == len(upload.parcels):
        upload.is_closing = True
        message = wire.CloseUpload(b"", 0, upload.job, upload.count)
        ask(state, "close", upload.number, message, [], now_ms, todo)


def _send(
    state: State, upload: Upload, parcel: KeptParcel, now_ms: int, todo: list[out.AnyEffect]
) -> None:
    state.said_ms = now_ms
    header = wire.Parcel(state.session, upload.job, parcel.first, parcel.count, parcel.codec)
    todo.append(out.Send(header, [parcel.frame]))


def rewind(state: State, upload: Upload, now_ms: int) -> None:
    """Everything not acknowledged counts as not sent, a CloseUpload included."""
    upload.sent = 0
    upload.sent_bytes = upload.acked_bytes
    upload.moved_ms = now_ms
    if upload.is_closing and upload.parcels:
        upload.is_closing = False
        for number in [
            n for n, p in state.requests.items() if (p.kind, p.key) == ("close", upload.number)
        ]:
            del state.requests[number]


def rewind_all(state: State, now_ms: int) -> None:
    """A new session: parcels on the way may be lost."""
    for upload in state.uploads.values():
        rewind(state, upload, now_ms)


def on_closed(state: State, number: int, todo: list[out.AnyEffect]) -> None:
    """The broker counted every input: nothing of the upload is needed any more."""
    upload = state.uploads.pop(number, None)
    if upload is not None:
        state.upload_of_job.pop(upload.job, None)
        todo.append(out.UploadMoved(number, upload.base + upload.count, 0))
        todo.append(out.UploadClosed(number))


def on_parcel_refused(
    state: State, refused: wire.Refused, now_ms: int, todo: list[out.AnyEffect]
) -> None:
    """A gap means that the transport lost a parcel: say them again; anything else is the end."""
    upload = state.uploads.get(state.upload_of_job.get(refused.job, -1))
    if upload is None:
        return
    if refused.code == "UPLOAD_CLOSED":
        _ask_count(state, upload, now_ms, todo)
    elif refused.code != "PARCEL_ORDER" or upload.stalls > 8:
        fail(state, upload.number, refused.code, refused.message, refused.hint, todo)
    elif now_ms - upload.moved_ms >= 50 or upload.stalls == 0:
        # Every parcel behind a gap is refused: one answer is enough for all of them.
        upload.stalls += 1
        rewind(state, upload, now_ms)
        pump(state, upload, now_ms, todo)


def on_close_refused(
    state: State, refused: wire.Refused, now_ms: int, todo: list[out.AnyEffect]
) -> None:
    """A CloseUpload overtook what was lost: it is said again once that is there."""
    upload = state.uploads.get(state.upload_of_job.get(refused.job, -1))
    if upload is not None:
        upload.is_closing = False
        on_parcel_refused(state, refused, now_ms, todo)


def fail(
    state: State, number: int, code: str, message: str, hint: str, todo: list[out.AnyEffect]
) -> None:
    """Give an upload up and tell its owner."""
    upload = state.uploads.pop(number, None)
    if upload is None:
        return
    state.upload_of_job.pop(upload.job, None)
    for request in [
        n
        for n, p in state.requests.items()
        if p.kind in ("close", "submit", "claim", "count") and p.key == number
    ]:
        del state.requests[request]
    todo.append(out.UploadFailed(number, code, message, hint))


def on_time(state: State, now_ms: int, todo: list[out.AnyEffect]) -> int:
    """Probe uploads that stand still: the first parcel again, the second time all of them.

    One that waits for credit, with nothing on its way whose acknowledgement would tell it, asks: by
    saying its Submit again, ever more seldom.
    """
    due = NEVER
    if state.phase != "open" or state.held_until_ms:
        return due
    for upload in state.uploads.values():
        if not upload.sent:
            if upload.parcels and upload.job and upload.have < 0:
                if now_ms - upload.moved_ms >= upload.quiet_ms:
                    _ask_credit(state, upload, now_ms, todo)
                due = min(due, upload.moved_ms + upload.quiet_ms)
            continue
        if now_ms - upload.moved_ms >= STALL_MS:
            upload.moved_ms = now_ms
            upload.stalls += 1
            if upload.stalls % 2:
                _send(state, upload, upload.parcels[0], now_ms, todo)
            else:
                rewind(state, upload, now_ms)
                pump(state, upload, now_ms, todo)
        due = min(due, upload.moved_ms + STALL_MS)
    return due
