"""Requests: numbered, kept until their answer, said again with the same number.

A subscription that is said again starts elsewhere and has a new one.
"""

from typing import Any

import msgspec

from gristmill.client.core import effects as out
from gristmill.client.core.state import RESEND_MS, RESEND_MS_MAX, Pending, RequestKind, State


def ask(
    state: State,
    kind: RequestKind,
    key: int,
    message: Any,
    frames: list[bytes],
    now_ms: int,
    todo: list[out.AnyEffect],
) -> int:
    """Keep a request, and send it if a session is open; returns its number."""
    state.last_request += 1
    number = state.last_request
    state.requests[number] = Pending(kind, key, message, frames, now_ms, now_ms + RESEND_MS)
    if state.held_until_ms:
        state.requests[number].again_ms = state.held_until_ms
    elif state.phase == "open":
        _say(state, number, now_ms, todo)
    return number


def say_again(state: State, number: int, now_ms: int, todo: list[out.AnyEffect]) -> None:
    """Send a kept request again, and wait longer for the next time.

    A subscription's position moved on, and with it what its credit is counted from: it is another
    request, with a new number, so that a late copy of the old one changes nothing.
    """
    pending = state.requests[number]
    pending.pause_ms = min(2 * pending.pause_ms, RESEND_MS_MAX)
    pending.again_ms = now_ms + pending.pause_ms
    if pending.kind == "subscribe":
        del state.requests[number]
        subscription = state.subscriptions.get(pending.key)
        if subscription is None:
            return
        subscription.is_fresh = False
        subscription.got_bytes = 0
        subscription.granted_bytes = state.window_bytes - subscription.queued_bytes
        pending.message = msgspec.structs.replace(
            pending.message,
            after=subscription.after,
            bytes_allowed=max(subscription.granted_bytes, 0),
        )
        state.last_request = number = state.last_request + 1
        state.requests[number] = pending
    _say(state, number, now_ms, todo)


def _say(state: State, number: int, now_ms: int, todo: list[out.AnyEffect]) -> None:
    pending = state.requests[number]
    message = msgspec.structs.replace(pending.message, session=state.session, request=number)
    state.said_ms = now_ms
    todo.append(out.Send(message, pending.frames))
