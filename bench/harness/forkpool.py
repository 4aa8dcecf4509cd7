"""Tier ``job`` without everything else: processes that fork for each subtask, and no more."""

import multiprocessing
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

ANSWER = struct.Struct("<qd")


def run(
    work: Callable[[Any], tuple[int, float]], given: Sequence[Any], slots: int
) -> Iterator[tuple[int, float]]:
    """``work`` of each, in a child of its own, from ``slots`` processes that take the next in turn.

    What a child found comes through one pipe, in whatever order they end.
    """
    next_one = multiprocessing.get_context("fork").Value("q", 0)
    answers, answer = os.pipe()
    parents = []
    for _ in range(slots):
        pid = os.fork()
        if pid == 0:
            while True:
                with next_one.get_lock():
                    at, next_one.value = next_one.value, next_one.value + 1
                if at >= len(given):
                    os._exit(0)
                child = os.fork()
                if child == 0:
                    os.write(answer, ANSWER.pack(*work(given[at])))  # whole: it is that short
                    os._exit(0)
                os.waitpid(child, 0)
        parents.append(pid)
    os.close(answer)
    with open(answers, "rb", buffering=0) as pipe:
        while part := pipe.read(ANSWER.size):
            yield ANSWER.unpack(part)
    for pid in parents:
        assert os.waitpid(pid, 0)[1] == 0
