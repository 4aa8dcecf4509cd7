"""The question that a new node is asked: a real shell knows the answer, a hostile node does not."""

import subprocess
from typing import Any

import pytest

from gristmill.broker import canary
from gristmill.wire import limits
from gristmill.wire.spec import check_spec
from gristmill.wire.values import pack_safe
from gristmill.wire.worker import Hello

HELLO = Hello(
    limits.PROTOCOL, "mill", "ab" * 32, bytes(16), 1, 500, 64 << 20, 1 << 30, {},
    ["strict", "batch"], ["3.11"], "proc", "test",
)  # fmt: skip


def test_a_real_shell_answers_what_the_broker_expects() -> None:
    spec = canary.question_for(HELLO)
    check_spec(spec)
    assert spec.command is not None
    done = subprocess.run(spec.command.argv, capture_output=True, timeout=30, check=True)
    assert done.stdout == canary.answer_to(spec)
    payload = pack_safe([{"exit_code": 0, "stdout": done.stdout}])
    assert canary.said(*payload) == done.stdout
    other = canary.question_for(HELLO)
    assert canary.answer_to(other) != done.stdout, "nobody foresees it"


def test_it_asks_for_no_more_than_the_node_has() -> None:
    spec = canary.question_for(HELLO)
    assert (spec.limits.cpus_milli, spec.limits.memory_bytes) == (500, 64 << 20)
    assert spec.tier == "strict", "the most isolated that it admits, where it has no job tier"


@pytest.mark.parametrize(
    "value",
    [
        {"stdout": 1 << 40},  # so many zero bytes, if it were asked for them
        {"stdout": "text"}, {"stdout": None}, {"stdout": [1, 2]}, {"other": b"1"}, [b"1"], b"1", 7,
    ],
)  # fmt: skip
def test_nonsense_is_taken_as_it_came(value: Any) -> None:
    codec, payload = pack_safe([value])
    assert canary.said(codec, payload) == payload
    assert canary.said("nothing", payload) == payload
    assert canary.digest_of(payload) != canary.digest_of(
        canary.answer_to(canary.question_for(HELLO))
    )


def test_the_difference_names_both() -> None:
    spec = canary.question_for(HELLO)
    told = canary.difference(spec, b"42" + b"x" * 10_000 + b"\xff")
    assert canary.answer_to(spec).decode().strip() in told and len(told) < 400
