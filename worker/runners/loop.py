"""Tier ``batch`` (and ``trusted``): subtasks one after another in this very process.

The fastest way there is, about half a microsecond a subtask around the call; what it gives up: a
tenant's subtasks see one another's globals, and a limit that is passed ends the jail.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

from gristmill.wire.limits import RESULT_FLUSH_MS
from gristmill.wire.outcome import Outcome
from gristmill.worker.runners import protocol
from gristmill.worker.runners.failures import describe, note_of
from gristmill.worker.runners.outbox import Outbox, Range, Trouble

ERROR = int(Outcome.ERROR)
FLUSH_NS = RESULT_FLUSH_MS * 1_000_000


def run_inputs(
    function: Callable[..., Any],
    inputs: list[Any],
    lease_id: int,
    first: int,
    is_star: bool,
    page: protocol.Page,
    outbox: Outbox,
) -> int:
    """Run ``function`` over consecutive inputs; send results every ``RESULT_FLUSH_MS``.

    Returns:
        How many ran: fewer than there are when the agent stopped the lease.
    """
    ran = 0
    call = _star(function) if is_star else function
    while ran < len(inputs):
        part = inputs[ran:] if ran else inputs
        done = _run_some(call, part, lease_id, first + ran, page, outbox.is_safe)
        count = len(done.walls_ns)
        if count:
            flush_output()
            done.written = page.written(outbox.outputs) if outbox.outputs else None
            outbox.send_range(done)
            ran += count
        if page.is_stopped(lease_id):
            break
    return ran


def _run_some(
    call: Callable[[Any], Any],
    inputs: list[Any],
    lease_id: int,
    first: int,
    page: protocol.Page,
    is_safe: bool,
) -> Range:
    """Until the flush time, a change of the stop list, or the end of the inputs.

    Everything in this loop is paid once a subtask: look at bench/ before adding to it.
    """
    words, stop_at, started_at = page.words, protocol.STOP, protocol.STARTED
    stops_seen = words[stop_at]
    values: list[Any] = []
    walls: list[int] = []
    troubles: list[Trouble] = []
    add, add_wall, clock = values.append, walls.append, time.perf_counter_ns
    index = first
    if not page.is_stopped(lease_id):
        before = clock()
        flush_at = before + FLUSH_NS
        for value in inputs:
            if words[stop_at] != stops_seen:
                break
            index += 1
            words[started_at] = index
            try:
                add(call(value))
            except BaseException as error:  # SystemExit and the like are the subtask's own, too
                failure = describe(error, not is_safe)
                troubles.append((index - 1, ERROR, failure, note_of(error)))
            now = clock()
            add_wall(now - before)
            before = now
            if now > flush_at:
                break
        words[started_at] = 0
    return Range(lease_id, first, walls, values, troubles)


def _star(function: Callable[..., Any]) -> Callable[[Any], Any]:
    def call(arguments: Any) -> Any:
        return function(*arguments)

    return call


def flush_output() -> None:
    """Hand prints over before the result that they belong to."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            continue  # closed or replaced by the user's code: theirs to lose
