"""Subscriptions: results in sequence, each once, under cumulative credit."""

from gristmill.client.core import effects as out
from gristmill.client.core import events as on
from gristmill.client.core.requests import ask
from gristmill.client.core.state import (
    ACK_MS,
    NEVER,
    QUIET_MS,
    QUIET_MS_MAX,
    State,
    Subscription,
)
from gristmill.wire import client as wire
from gristmill.wire.client import FINAL_JOB_STATES


def subscribe(state: State, job: int, after: int, now_ms: int, todo: list[out.AnyEffect]) -> None:
    """Ask for a job's results; a second wish for the same job changes nothing."""
    known = state.subscriptions.get(job)
    if known is not None and not known.is_final:
        return
    subscription = Subscription(
        job, after=after, acked=after, told_acked=after, told_ms=now_ms, moved_ms=now_ms
    )
    state.subscriptions[job] = subscription
    _ask(state, subscription, now_ms, todo)


def _ask(state: State, subscription: Subscription, now_ms: int, todo: list[out.AnyEffect]) -> None:
    subscription.is_fresh = False
    subscription.got_bytes = 0
    subscription.granted_bytes = max(state.window_bytes - subscription.queued_bytes, 0)
    message = wire.Subscribe(
        b"", 0, subscription.job, subscription.after, subscription.granted_bytes
    )
    ask(state, "subscribe", subscription.job, message, [], now_ms, todo)


def subscribe_again(state: State, now_ms: int, todo: list[out.AnyEffect]) -> None:
    """A new session knows nothing of our subscriptions (those still unanswered were just said)."""
    asked = {pending.key for pending in state.requests.values() if pending.kind == "subscribe"}
    for subscription in state.subscriptions.values():
        if subscription.job not in asked and not subscription.is_final:
            _ask(state, subscription, now_ms, todo)


def forget_credit(state: State) -> None:
    """Credit is counted since the subscription, and the old ones are gone."""
    for subscription in state.subscriptions.values():
        subscription.got_bytes = 0
        subscription.granted_bytes = 0


def forget_told(state: State) -> None:
    """What we told last may not have been taken: acknowledge and allow once more, when we may."""
    for subscription in state.subscriptions.values():
        subscription.told_acked = min(subscription.told_acked, subscription.acked - 1)


def _is_gone(subscription: Subscription) -> bool:
    """Whether what is missing was asked for again and still did not come: freed, or damaged."""
    return subscription.is_fresh and subscription.retried_after == subscription.after


def _ask_again(
    state: State, subscription: Subscription, now_ms: int, todo: list[out.AnyEffect]
) -> None:
    """The transport lost some: start behind the last one we have, once for all of them."""
    job = subscription.job
    if not any((p.kind, p.key) == ("subscribe", job) for p in state.requests.values()):
        subscription.retried_after = subscription.after
        _ask(state, subscription, now_ms, todo)


def on_subscribed(state: State, job: int) -> None:
    """What comes next is the new subscription's: a gap before it was freed, or is damaged."""
    subscription = state.subscriptions.get(job)
    if subscription is not None:
        subscription.is_fresh = True


def unsubscribe(state: State, job: int, todo: list[out.AnyEffect]) -> None:
    """Nobody reads this job here any more."""
    subscription = state.subscriptions.pop(job, None)
    if subscription is None:
        return
    for number in [n for n, p in state.requests.items() if (p.kind, p.key) == ("subscribe", job)]:
        del state.requests[number]
    if state.phase == "open" and not subscription.is_final:
        todo.append(out.Send(wire.Unsubscribe(state.session, job)))


def on_results(
    state: State, result: wire.Results, frames: list[bytes], now_ms: int, todo: list[out.AnyEffect]
) -> None:
    """One result: the next, one that we have, or one after a gap."""
    subscription = state.subscriptions.get(result.job)
    if subscription is None:
        if state.phase == "open":
            todo.append(out.Send(wire.Unsubscribe(state.session, result.job)))
        return
    size_bytes = sum(map(len, frames))
    subscription.moved_ms, subscription.quiet_ms = now_ms, QUIET_MS
    if result.sequence <= subscription.after:
        _grant(state, subscription, now_ms, todo)
        return
    if result.sequence > subscription.after + 1 and not _is_gone(subscription):
        _ask_again(state, subscription, now_ms, todo)
        return
    subscription.is_fresh = False
    subscription.after = result.sequence
    # What came twice, or behind a gap, is not counted: the newest subscription sends each once.
    subscription.got_bytes += size_bytes
    subscription.queued_bytes += size_bytes
    todo.append(out.ResultArrived(result, frames))


def on_result_taken(
    state: State, event: on.ResultTaken, now_ms: int, todo: list[out.AnyEffect]
) -> None:
    """The consumer took one: acknowledge it and allow more."""
    subscription = state.subscriptions.get(event.job)
    if subscription is None:
        return
    if event.sequence > subscription.after:
        return  # of an earlier reading of the same job
    subscription.queued_bytes = max(subscription.queued_bytes - event.size_bytes, 0)
    subscription.acked = max(subscription.acked, event.sequence)
    _grant(state, subscription, now_ms, todo)
    _forget_if_over(state, subscription)


def _grant(
    state: State, subscription: Subscription, now_ms: int, todo: list[out.AnyEffect]
) -> None:
    allowed = subscription.got_bytes + state.window_bytes - subscription.queued_bytes
    is_worth_a_message = allowed - subscription.granted_bytes >= state.window_bytes // 8
    is_last = subscription.is_final and subscription.acked == subscription.after
    # The broker may free what was read, and large inputs with it, however small the results are.
    late_ms = subscription.told_ms + ACK_MS
    is_late = subscription.acked > subscription.told_acked and now_ms >= late_ms
    if state.phase != "open":
        return
    if state.held_until_ms:
        state.next_ms = min(state.next_ms, state.held_until_ms)
        return
    if not (is_worth_a_message or is_last or is_late):
        if subscription.acked > subscription.told_acked:
            state.next_ms = min(state.next_ms, late_ms)
        return
    if is_last and not is_worth_a_message and subscription.told_acked == subscription.acked:
        return
    subscription.granted_bytes = max(allowed, subscription.granted_bytes)
    subscription.told_acked, subscription.told_ms = subscription.acked, now_ms
    todo.append(
        out.Send(
            wire.Credit(
                state.session, subscription.job, subscription.acked, subscription.granted_bytes
            )
        )
    )


def on_job_event(
    state: State, status: wire.JobStatus, now_ms: int, todo: list[out.AnyEffect]
) -> None:
    """The job's card; the final one ends the subscription.

    It comes after the last result: if that was not got, the transport lost some, once.
    """
    subscription = state.subscriptions.get(status.job)
    if subscription is None or subscription.is_final:
        return
    subscription.moved_ms = now_ms
    is_final = status.state in FINAL_JOB_STATES
    if is_final and status.results > subscription.after and not _is_gone(subscription):
        _ask_again(state, subscription, now_ms, todo)
        return
    if is_final:
        subscription.is_final = True
        _grant(state, subscription, now_ms, todo)
        _forget_if_over(state, subscription)
    todo.append(out.StatusArrived(status, is_final))


def on_time(state: State, now_ms: int, todo: list[out.AnyEffect]) -> int:
    """Asks again where nothing came for long; returns when to look again.

    The last result, the final card or our last credit may have been lost, and nothing that comes
    later would show it. Who waits for a long subtask asks ever more seldom.
    """
    due = NEVER
    if state.phase != "open" or state.held_until_ms:
        return due
    for subscription in list(state.subscriptions.values()):
        if subscription.is_final:
            if subscription.acked > subscription.told_acked:  # while we were held
                _grant(state, subscription, now_ms, todo)
                _forget_if_over(state, subscription)
            continue
        if now_ms - subscription.moved_ms >= subscription.quiet_ms:
            subscription.moved_ms = now_ms
            subscription.quiet_ms = min(2 * subscription.quiet_ms, QUIET_MS_MAX)
            asked = {p.key for p in state.requests.values() if p.kind == "subscribe"}
            if subscription.job not in asked:
                _ask(state, subscription, now_ms, todo)
        due = min(due, subscription.moved_ms + subscription.quiet_ms)
        if subscription.acked > subscription.told_acked:
            _grant(state, subscription, now_ms, todo)
            due = min(due, subscription.told_ms + ACK_MS)
    return due


def _forget_if_over(state: State, subscription: Subscription) -> None:
    """The job has ended and its consumer took everything: it may be read again from the start."""
    is_untold = bool(state.held_until_ms) and subscription.told_acked < subscription.acked
    if subscription.is_final and subscription.acked == subscription.after and not is_untold:
        del state.subscriptions[subscription.job]


def on_refused(
    state: State, job: int, code: str, message: str, hint: str, todo: list[out.AnyEffect]
) -> None:
    """The broker will not send this job's results."""
    if state.subscriptions.pop(job, None) is not None:
        todo.append(out.ResultsFailed(job, code, message, hint))
