"""Mixed and skewed durations: the makespan over its lower bound, max(total / slots, longest).

Subtasks sleep, so that two noisy cores serve many slots; each says how long it really slept, and
the bound is the lowest that these times give. Beside us, in turn: ``multiprocessing.Pool`` with
as many processes, static chunks (an equal share of the list for each) and chunks of one; and beside
tier ``job``, which alone forks for each subtask, as many processes that do nothing else (*bare
forks*). The clock runs from the call to the last result. *In order*: what the list takes if each
slot takes the next whenever it is free and nothing else takes any time: nobody who does not know
the durations does better but by luck. ``others``: with one very long subtask among many short ones,
when the last of the short ones was there, over their own bound with one slot taken.
"""

import heapq
import multiprocessing
import random
import time
from collections.abc import Callable, Iterable
from typing import Any

from harness import forkpool
from harness.measure import Runs, arguments, own_cpu_us
from harness.ours import Bill, Spent

from gristmill.cli.grid import Grid
from gristmill.client import Client

LONG_S = 10.0
#: mean of the short ones; a fork for each subtask takes a few ms of these two cores
MEAN_S = {"batch": 0.012, "job": 0.048}
SEED = 11


def nap(given: tuple[int, float]) -> tuple[int, float]:
    """Sleep; which one it was, and for how long it did."""
    index, seconds = given
    began = time.perf_counter()
    time.sleep(seconds)
    return index, time.perf_counter() - began


def durations(shape: str, tier: str, total_s: float, long_s: float) -> list[float]:
    """Seconds of each subtask; the same in every run."""
    chance, mean = random.Random(SEED), MEAN_S[tier]
    count = max(8, int(total_s / mean))
    if shape == "uniform":
        return [chance.uniform(0.5, 1.5) * mean for _ in range(count)]
    if shape == "bimodal":  # a tenth takes 8.2 times the mean, the rest a fifth of it
        return [mean * (8.2 if chance.random() < 0.1 else 0.2) for _ in range(count)]
    if shape == "lognormal":
        drawn = [chance.lognormvariate(0.0, 1.5) for _ in range(count)]
        return [seconds * mean * count / sum(drawn) for seconds in drawn]
    short = 0.001 if tier == "batch" else 0.010
    many = [short] * (10_000 if tier == "batch" else 1_000)
    many = many[: max(10, int(len(many) * long_s / LONG_S))]
    many.insert(len(many) // 2, long_s)  # a tenth of the work before it would hide it
    return many


SHAPES = ("uniform", "bimodal", "lognormal", "one long")


class Turn:
    """What each contender made of one list, in turn."""

    def __init__(self, given: list[tuple[int, float]], slots: int) -> None:
        self.given = given
        self.slots = slots
        self.found: list[tuple[str, list[tuple[int, float, float]], dict[str, Any]]] = []

    def add(self, what: str, got: list[tuple[int, float, float]], **more: Any) -> None:
        """``got``: index, seconds slept, when it came."""
        assert sorted(at for at, _, _ in got) == list(range(len(self.given))), "results differ"
        slept = {index: seconds for index, seconds, _ in got}
        assert all(slept[at] >= seconds for at, seconds in self.given), "one slept too little"
        self.found.append((what, got, more))

    def of_pool(self, what: str, chunk: int) -> None:
        """multiprocessing.Pool, as results come."""
        before = own_cpu_us()
        with multiprocessing.get_context("fork").Pool(self.slots) as pool:
            pool.map(nap, [(0, 0.0)] * self.slots, chunksize=1)
            got = timed(lambda: pool.imap_unordered(nap, self.given, chunksize=chunk))
            pool.close()
            pool.join()
        self.add(what, got, cpu_us=(own_cpu_us() - before) / len(self.given))

    def of_ours(self, client: Client, tier: Any) -> None:
        """``map``, as results come: a new job, so jails of its own."""
        bill, spent = Bill(client), Spent()
        got = timed(lambda: client.map(nap, self.given, tier=tier, ordered=False))
        cpu = spent.each(len(self.given))
        self.add(f"gristmill {tier}", got, billed_ucredits=bill.settle(len(self.given)), **cpu)

    def of_forks(self) -> None:
        """A process for each slot, which forks for each subtask."""
        before = own_cpu_us()
        got = timed(lambda: forkpool.run(nap, self.given, self.slots))
        self.add("bare forks", got, cpu_us=(own_cpu_us() - before) / len(self.given))

    def judge(self, runs: Runs, **more: Any) -> None:
        """Everyone by one bound, the lowest: nobody gains by naps that a busy machine drew out."""
        slept = [[seconds for _, seconds, _ in got] for _, got, _ in self.found]
        bound = min(max(sum(each) / self.slots, max(each)) for each in slept)
        others = min((sum(each) - max(each)) / (self.slots - 1) for each in slept)
        in_order = min(self._in_order(dict(pairs)) for pairs in (
            [(index, seconds) for index, seconds, _ in got] for _, got, _ in self.found
        ))  # fmt: skip
        is_one_long = max(seconds for _, seconds in self.given) > others
        for what, got, figures in self.found:
            makespan, first = max(at for _, _, at in got), min(at for _, _, at in got)
            figures |= {"makespan_s": makespan, "bound_s": bound, "over_bound": makespan / bound}
            figures["in_order_over_bound"] = in_order / bound
            if is_one_long:
                longest = max(got, key=lambda each: each[1])
                last = max(at for index, _, at in got if index != longest[0])
                figures |= {"others_s": last, "others_over_bound": last / others}
            runs.add(what, n=len(got), first_s=first, **more, **figures)

    def _in_order(self, slept: dict[int, float]) -> float:
        """Makespan when each free slot takes the next."""
        ends = [0.0] * self.slots
        for index, _ in self.given:
            heapq.heapreplace(ends, ends[0] + slept[index])
        return max(ends)


def timed(answers: Callable[[], Iterable[tuple[int, float]]]) -> list[tuple[int, float, float]]:
    """Each answer with the time when it came."""
    began = time.perf_counter()
    return [(index, slept, time.perf_counter() - began) for index, slept in answers()]


def main() -> None:
    """Each shape and tier: static chunks, us, chunks of one."""
    options = arguments(
        __doc__ or "",
        quick={"slots": 4, "total_s": 0.4, "long_s": 0.3, "rounds": 1},
        slots=4, total_s=24.0, long_s=LONG_S, rounds=1,
    )  # fmt: skip
    runs = Runs("mixed", vars(options))
    summary: dict[str, float] = {}
    slots = options.slots
    with (
        Grid.temporary(workers=1, slots=slots) as grid,
        Client(grid.address) as client,
    ):
        for tier in MEAN_S:
            list(client.map(nap, [(0, 0.01)] * slots * 4, tier=tier))  # type: ignore[arg-type]
            for shape in SHAPES:
                listed = durations(shape, tier, options.total_s, options.long_s)
                given = list(enumerate(listed))
                more = {"shape": shape, "tier": tier}
                for _ in range(options.rounds):
                    turn = Turn(given, slots)
                    turn.of_pool("static chunks", -(-len(given) // slots))
                    turn.of_ours(client, tier)
                    turn.of_pool("chunks of one", 1)
                    if tier == "job":
                        turn.of_forks()
                    turn.judge(runs, **more)
                ratio = {
                    what: runs.median(what, "over_bound", **more)
                    for what in (f"gristmill {tier}", "static chunks", "chunks of one")
                }
                ours = ratio.pop(f"gristmill {tier}")
                name = f"{tier}_{shape.replace(' ', '_')}"
                in_order = runs.median("static chunks", "in_order_over_bound", **more)
                summary[f"{name}_over_in_order"] = round(ours / in_order, 3)
                if tier == "job":
                    forked = runs.median("bare forks", "over_bound", **more)
                    summary[f"{name}_over_forks"] = round(ours / forked, 3)
                summary[f"{name}_over_bound"] = round(ours, 3)
                summary[f"{name}_over_best_pool"] = round(ours / min(ratio.values()), 3)
        assert client.balance().sum_ucredits == 0
    runs.finish(**summary)


if __name__ == "__main__":
    main()
