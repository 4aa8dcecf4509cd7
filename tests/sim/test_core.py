"""The broker's core in a simulated grid: many seeds, and bugs planted that it has to find."""

import pytest
import sim_mutants
from sim_grid import Grid

SEEDS = 240
GROUPS = 8


@pytest.mark.parametrize("group", range(GROUPS))
def test_every_promise_holds_under_every_seed(group: int) -> None:
    for seed in range(group * SEEDS // GROUPS, (group + 1) * SEEDS // GROUPS):
        try:
            Grid(seed).run()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error


def test_a_seed_is_played_the_same_way_twice() -> None:
    def play(seed: int) -> tuple[int, int, list[str]]:
        trace: list[str] = []
        grid = Grid(seed)
        see = grid.checker.see

        def both(effect: object) -> None:
            trace.append(repr(effect))
            see(effect)

        grid.checker.see = both
        grid.run()
        return grid.steps, grid.now, trace

    traces = [play(seed) for seed in range(6)]
    assert traces == [play(seed) for seed in range(6)]
    assert sum(len(trace) for _, _, trace in traces) > 1000


def test_the_seeds_meet_what_they_are_meant_to_meet() -> None:
    grids = [Grid(seed).run() for seed in range(25)]
    assert sum(grid.checker.superseded for grid in grids) > 10
    assert sum(grid.lost for grid in grids) > 10
    assert sum(grid.restarts for grid in grids) > 5
    outcomes: dict[int, int] = {}
    states: dict[str, int] = {}
    names: dict[str, int] = {}
    for grid in grids:
        for job in grid.checker.jobs.values():
            states[job.state] = states.get(job.state, 0) + 1
            for outcome in job.finals.values():
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
        for name, count in grid.checker.events.items():
            names[name] = names.get(name, 0) + count
    assert {"done", "failed", "cancelled"} <= states.keys()
    assert {0, 1, 11, 12, 16, 17} <= outcomes.keys()  # ok error set-up cancelled lost budget
    assert {
        "cap.reached",
        "hold.refused",
        "job.paused",
        "job.resumed",
        "lease.rescued",
        "lease.returned",
        "result.refused",
        "worker.draining",
        "worker.lost",
    } <= names.keys()


@pytest.mark.parametrize("mutant", sorted(sim_mutants.MUTANTS))
def test_a_planted_bug_is_found(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sim_mutants.MUTANTS[mutant](monkeypatch)
    for seed in range(60):
        try:
            Grid(seed).run()
        except AssertionError:
            return
    pytest.fail(f"60 seeds did not find {mutant}")
