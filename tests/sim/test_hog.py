"""A tenant with very much work, and others with a little: nobody is starved."""

import hashlib

import msgspec
import pytest
import sim_mutants
from sim_grid import Grid, Settings
from sim_jobs import Work

from gristmill.wire.spec import JobSpec, Limits

OTHERS = 3
TOOK_MS = 40
ITEMS = 40
HOG_JOBS = 8


def work(number: int, tenant: str, priority: int) -> Work:
    function = msgspec.msgpack.encode([number, 7])
    spec = JobSpec(
        kind="function", function=hashlib.sha256(function).hexdigest(), count=ITEMS,
        limits=Limits(cpus_milli=1_000, wall_ms=600_000), priority=priority,
    )  # fmt: skip
    made = Work(number, tenant, spec, ITEMS, function, 7, TOOK_MS, [ITEMS])
    made.submission = hashlib.sha256(function).digest()[:16]
    return made


def play(seed: int) -> dict[str, int]:
    """Cpu ms of each tenant at the moment when the last of the others was through."""
    works = [work(number, "t0", 9) for number in range(HOG_JOBS)]
    works += [work(HOG_JOBS + number, f"t{number}", 0) for number in range(1, OTHERS + 1)]
    settings = Settings(
        faults={}, heal_ms=2_000, workers=2, clients=1 + OTHERS, works=0, ttl_ms=3_500,
        report_ms=1_000, poor=False, broker={},
    )  # fmt: skip
    grid = Grid(seed, settings, works)
    at_end: dict[str, int] = {}
    real = grid.promises.ended

    def ended(work: Work, reading: object, card: object) -> None:
        real(work, reading, card)
        if work.tenant != "t0":
            at_end.update(grid.truth.cpu_ms)

    grid.promises.ended = ended
    for client in grid.clients:
        client.spread_ms = 0 if client.host == "c0" else 300  # the hog is there first
    grid.run()
    return at_end


def is_fair(cpu_ms: dict[str, int]) -> bool:
    """The hog had at most twice what each of the others had, which is their all."""
    least = min(cpu_ms[f"t{number}"] for number in range(1, OTHERS + 1))
    return cpu_ms["t0"] <= 2 * least


@pytest.mark.parametrize("seed", range(2))
def test_a_hog_gets_no_more_than_its_share(seed: int, figures) -> None:
    cpu_ms = play(seed)
    figures(**{f"cpu_ms_{tenant}": ms for tenant, ms in sorted(cpu_ms.items())})
    assert is_fair(cpu_ms), cpu_ms


def test_a_share_that_is_not_counted_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    sim_mutants.fair_share_is_ignored(monkeypatch)
    assert not is_fair(play(0))
