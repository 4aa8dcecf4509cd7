"""A client's core for tests: greeted, and what a broker would say to it."""

from typing import Any

from gristmill.client.core import effects as out
from gristmill.client.core import events as on
from gristmill.client.core.state import State
from gristmill.client.core.step import step
from gristmill.wire import client as wire
from gristmill.wire.spec import JobSpec
from gristmill.wire.worker import ResultHead

HELLO = wire.Hello(1, b"c" * 16, "", "3.11", "0")
WELCOME = wire.Welcome(b"s" * 16, "b", "local", 1000, 15000, "", True)
SUBMIT = wire.Submit(b"", 0, b"i" * 16, JobSpec("function"))


def new() -> State:
    return State(HELLO, timeout_ms=5000, heard_ms=0)


def opened() -> State:
    state = new()
    step(state, on.LinkUp(), 0)
    step(state, on.Received(WELCOME, []), 1)
    return state


def sent(effects: list[Any]) -> list[Any]:
    return [effect.message for effect in effects if isinstance(effect, out.Send)]


def result(sequence: int, job: int = 7) -> on.Received:
    head = ResultHead(0, 1, job, sequence - 1, 1, "q", 0, 0, 0, "wait4")
    return on.Received(wire.Results(job, sequence, head, 1, ""), [b"12345678", b"", b"", b""])


def status(state: str, results: int) -> on.Received:
    card = wire.JobStatus(
        7, "", "function", "local", state, "job", 4, 1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, results,
    )  # fmt: skip
    return on.Received(wire.JobEvent(card), [])
