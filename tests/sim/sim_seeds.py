"""Which seeds a run plays, and on how many processes."""

import logging
import multiprocessing
import os
import pathlib
import subprocess
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from sim_grid import Grid

#: Seeds that once found a real bug, one to a line with its story; played by every run.
KEPT = pathlib.Path(__file__).parent / "kept_seeds.txt"


@dataclass
class Tally:
    """What many seeds came to."""

    seeds: int = 0
    virtual_ms: int = 0
    steps: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def add(self, other: "Tally") -> None:
        """Sums up."""
        self.seeds += other.seeds
        self.virtual_ms += other.virtual_ms
        self.steps += other.steps
        self.counts += other.counts
        self.seen += other.seen
        self.broken += other.broken


def asked_seeds(usual: int) -> list[int]:
    """``GRISTMILL_SEEDS``: empty for the usual ones, ``FIRST:END``, or one seed."""
    text = os.environ.get("GRISTMILL_SEEDS", "")
    if not text:
        return list(range(usual))
    first, colon, end = text.partition(":")
    return list(range(int(first or 0), int(end))) if colon else [int(first)]


def kept_seeds() -> list[int]:
    """The seeds of ``kept_seeds.txt``."""
    lines = [line.split("#")[0].strip() for line in KEPT.read_text().splitlines()]
    return [int(line) for line in lines if line]


def play(seed: int) -> Tally:
    """One seed; a broken promise is told with all that is needed to see it again."""
    tally = Tally(seeds=1)
    grid = Grid(seed)
    try:
        grid.run()
    except Exception:
        tally.broken.append(report(grid))
    world = grid.world
    tally.virtual_ms, tally.steps = world.now, world.steps
    tally.seen.update(world.seen)
    tally.counts.update(
        delivered=grid.net.delivered, lost=grid.net.lost, repeated=grid.net.repeated
    )
    return tally


def report(grid: Grid) -> str:
    """Seed, commit, settings, the end of the history, and how to see it again."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True,
        cwd=pathlib.Path(__file__).parent, check=False,
    ).stdout.strip()  # fmt: skip
    trace = "\n".join(grid.world.trace)
    return (
        f"{traceback.format_exc(limit=-3)}\nseed {grid.seed} of commit {commit or 'unknown'}\n"
        f"{grid.describe()}\nthe end of its history:\n{trace}\n"
        f"play it again: make sim SEEDS={grid.seed}"
    )


def play_all(seeds: Iterable[int], processes: int = 1) -> Tally:
    """Plays seeds, on several processes if there are many."""
    tally = Tally()
    if processes == 1:
        for seed in seeds:
            tally.add(_quietly(seed))
        return tally
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for one in pool.imap_unordered(_quietly, seeds, chunksize=8):
            tally.add(one)
    return tally


def _quietly(seed: int) -> Tally:
    logging.disable(logging.CRITICAL)  # the processes' own logs: a seed has its trace
    try:
        return play(seed)
    finally:
        logging.disable(logging.NOTSET)
