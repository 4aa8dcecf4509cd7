"""Over the rate of our key: say nothing until the broker takes something again, then say it all.

The broker has taken nothing since the refused message, whether it answered or not, so requests
and parcels that it did not acknowledge are said again, and credit is counted anew. The wait is a
little longer than asked for, each client's by another part, so that not all come back at once.
"""

import hashlib

from gristmill.client.core import effects as out
from gristmill.client.core import results, uploads
from gristmill.client.core.state import HOLD_MS_MIN, HOLD_TELL_MS, State
from gristmill.wire.client import Refused
from gristmill.wire.limits import RETRY_MS_MAX

_SPREAD_SHARE = 4  #: up to 1/4 longer than asked for


def on_rate_limited(state: State, refused: Refused, now_ms: int, todo: list[out.AnyEffect]) -> None:
    """Wait; what was refused is said again after that."""
    wait_ms = min(max(refused.retry_after_ms, HOLD_MS_MIN), RETRY_MS_MAX)
    if now_ms >= state.held_until_ms:
        state.holds += 1
        seed = hashlib.sha256(b"%s %d" % (state.hello.client, state.holds)).digest()
        wait_ms += wait_ms * seed[0] // (256 * _SPREAD_SHARE)
        state.held_until_ms = now_ms + wait_ms
        if now_ms - state.held_ms >= HOLD_TELL_MS:
            todo.append(out.Held(wait_ms, refused.message))
        if state.phase == "open":
            uploads.rewind_all(state, now_ms)
            results.forget_told(state)
    state.held_until_ms = max(state.held_until_ms, now_ms + wait_ms)
    state.held_ms = state.held_until_ms
    # It told us that it is there, and when to come back: until then silence means nothing.
    state.heard_ms = max(state.heard_ms, state.held_until_ms)
    pending = state.requests.get(refused.request)
    if pending is not None:
        pending.again_ms = state.held_until_ms


def release(state: State, now_ms: int, todo: list[out.AnyEffect]) -> None:
    """The wait is over."""
    state.held_until_ms = 0
    if state.phase == "open":
        for upload in list(state.uploads.values()):
            uploads.pump(state, upload, now_ms, todo)
