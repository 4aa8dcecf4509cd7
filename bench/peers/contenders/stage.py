"""What every contender's process does: one scenario at a time, told by ``run.py`` over pipes.

This runs in the contender's own virtual environment: standard library only. A contender is
started by ``start``; a scenario's inputs are made by ``prepare``, timed by ``run`` and compared by
``check``, so that only the work itself lies between two readings of the CPU. Daemons that a
contender leaves to init come back to this process (it is their subreaper): everything that a
contender started is in the tree below it, and is counted and ended with it.
"""

import ctypes
import importlib.metadata
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

PR_SET_CHILD_SUBREAPER = 36
PAYLOAD_BYTES = 10 * 1024
CHUNK = 1_000  #: items in one message of those who batch
PAYLOAD_CHUNK = 50  #: of 10 KiB: half a MiB
WARM = 10  #: calls that are not counted in the latency


def no_op(value: Any) -> Any:
    """The task of every scenario: its input is its result."""
    return value


def no_ops(values: Sequence[Any]) -> list[Any]:
    """A batch made by hand, for peers whose docs advise it and leave it to the user."""
    return [no_op(value) for value in values]


def in_chunks(values: Sequence[Any], size: int = CHUNK) -> list[Sequence[Any]]:
    """Values in lists of ``size``."""
    return [values[at : at + size] for at in range(0, len(values), size)]


def flat(chunks: Any) -> list[Any]:
    """The values of lists of values."""
    return [value for chunk in chunks for value in chunk]


class Contender:
    """What a peer does in each scenario; a subclass is one peer.

    Scenarios, each of which gets a list of inputs and gives the list of results:
        batched: the fastest way of running a no-op over tuples that the peer documents.
        each: the same, one tracked task or future for an item.
        payload: 10 KiB in and 10 KiB out.
        programs: a program for each item, for peers that run programs.

    Attributes:
        packages: distributions whose versions belong to the figures.
        unable: scenario to the reason why this peer has no such thing.
    """

    packages: tuple[str, ...] = ()
    unable: ClassVar[dict[str, str]] = {}

    def start(self, slots: int, scratch: str) -> None:
        """Bring up ``slots`` workers, ready for the first call; files go below ``scratch``."""

    def stop(self) -> None:
        """End all of it, as its users would."""

    def versions(self) -> dict[str, str]:
        """Of what is measured."""
        return {name: importlib.metadata.version(name) for name in self.packages}

    def batched(self, values: list[Any]) -> list[Any]:
        """See the class."""
        raise NotImplementedError

    def each(self, values: list[Any]) -> list[Any]:
        """See the class."""
        raise NotImplementedError

    def payload(self, values: list[Any]) -> list[Any]:
        """See the class."""
        raise NotImplementedError

    def programs(self, values: list[Any]) -> list[Any]:
        """See the class."""
        raise NotImplementedError

    def one(self, value: Any) -> Any:
        """One call, from submit to its result."""
        raise NotImplementedError


def inputs_of(scenario: str, count: int) -> list[Any]:
    """Tuples of an int and a short text; bodies that differ; texts for programs."""
    if scenario == "payload":
        tail = os.urandom(PAYLOAD_BYTES - 8)
        return [index.to_bytes(8, "little") + tail for index in range(count)]
    if scenario == "programs":
        return [str(index) for index in range(count)]
    return [(index, "abc") for index in range(count)]


class Stage:
    """Answers the orders of ``run.py``: a JSON object a line in, one out."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self.scenario = ""
        self.inputs: list[Any] = []
        self.results: list[Any] = []

    def start(self, slots: int, scratch: str) -> dict[str, Any]:
        """Bring the contender up."""
        began = time.perf_counter()
        self.contender.start(slots, scratch)
        return {
            "versions": self.contender.versions(),
            "unable": self.contender.unable,
            "start_s": time.perf_counter() - began,
        }

    def prepare(self, scenario: str, n: int) -> dict[str, Any]:
        """Make the inputs of the next run."""
        self.scenario, self.results = scenario, []
        self.inputs = inputs_of("each" if scenario == "latency" else scenario, n)
        return {}

    def run(self, seconds_max: float) -> dict[str, Any]:
        """The run itself; of latencies, as many as fit into ``seconds_max``."""
        if self.scenario != "latency":
            work: Callable[[list[Any]], list[Any]] = getattr(self.contender, self.scenario)
            began = time.perf_counter()
            self.results = work(self.inputs)
            return {"seconds": time.perf_counter() - began}
        times: list[float] = []
        opened = time.perf_counter()
        for value in self.inputs:
            began = time.perf_counter()
            self.results.append(self.contender.one(value))
            times.append(time.perf_counter() - began)
            if len(times) > 2 * WARM and time.perf_counter() - opened > seconds_max:
                break
        self.inputs = self.inputs[: len(times)]
        seconds = time.perf_counter() - opened
        return {"seconds": seconds, "calls": len(times), "times": times[WARM:]}

    def check(self) -> dict[str, Any]:
        """Compare what came back with what went in."""
        results, inputs = list(self.results), self.inputs
        self.results, self.inputs = [], []
        if results != inputs:
            raise AssertionError(f"{len(results)} results of {len(inputs)} inputs, or others")
        return {}

    def stop(self) -> dict[str, Any]:
        """End the contender."""
        self.contender.stop()
        return {}


def serve(contender: Contender) -> None:
    """The main loop of a contender's process; ends when it is told to stop or alone."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    orders = os.fdopen(os.dup(0), "r")
    # Whatever a peer prints, and its daemons read, is no part of the dialogue.
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    stage = Stage(contender)
    for line in orders:
        order = json.loads(line)
        what = order.pop("do")
        try:
            answer = getattr(stage, what)(**order)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        answers.write(json.dumps(answer) + "\n")
        if what == "stop":
            break
    else:
        contender.stop()  # nobody is there to tell it
    answers.flush()
    sys.stderr.flush()
    os._exit(0)  # what a peer left undone at its exit is ended by run.py, which knows its tree
