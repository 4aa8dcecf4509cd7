"""Jobs with a quorum in the whole simulated grid: real shells, crashes, and one node that lies."""

import dataclasses
from typing import Any

import msgspec
from sim_grid import Grid, draw_settings
from sim_jobs import make_work
from sim_world import World

from gristmill.wire.spec import JobSpec

RULES = ("2/3", "2/2", "adaptive", "2/3")


class QuorumGrid(Grid):
    """Four workers of distinct owners, of which the first may lie; all jobs have a quorum.

    With ``adaptive`` nobody lies: a liar would get some values through, as it may.
    """

    def __init__(self, seed: int) -> None:
        drawn = World(seed)
        settings = dataclasses.replace(draw_settings(drawn), workers=4, clients=1, works=2)
        works = []
        for number in range(2):
            work = make_work(drawn.random, number, "t0", settings.ttl_ms)
            work.spec = self._with_rule(work.spec, RULES[seed % len(RULES)])
            works.append(work)
        super().__init__(seed, settings, works)
        for worker in self.workers:
            worker.labels, worker.tiers = {}, ["strict", "job", "batch"]
        self.workers[0].is_liar = RULES[seed % len(RULES)] == "2/3" and seed % 3 > 0

    def _with_rule(self, spec: JobSpec, rule: str) -> JobSpec:
        return msgspec.structs.replace(spec, quorum=rule, retries=0, labels={})

    def _heal(self) -> None:
        """As ever; and there are enough honest owners for every quorum."""
        for name in ("honest0", "honest1"):
            worker: Any = self._worker(name)
            worker.labels, worker.tiers = {}, ["strict", "job", "batch"]
            worker.slots, worker.cpus_milli = 2, 4_000
            self.workers.append(worker)
        super()._heal()
