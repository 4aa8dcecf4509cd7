"""What asking less would have saved."""

import msgspec
import pytest

from gristmill.cli.eff import MIB, compare, suggest
from gristmill.wire.client import JobStatus, JobTerms, SubtaskRow
from gristmill.wire.spec import JobSpec, Limits, Tariff

GIB = 1 << 30
TARIFFS = {"standard": Tariff(1_000_000, 0, 50_000), "big": Tariff(1_000_000, 0, 500_000)}


JOB = JobStatus(
    7, "", "function", "t", "done", "job", 4, 2, 2, 0, 0, 0, 2, *[0] * 8, 0, 0, 0, 0, 10**9, 0, 2
)


def job(peak_mib: int, **more: object) -> JobStatus:
    fields = {"wall_us": 10_000_000, "cpu_us": 2_500_000, "peak_kib": peak_mib << 10,
              "spent_ucredits": 3_500_000, "errors": [], **more}  # fmt: skip
    return msgspec.structs.replace(JOB, **fields)


def terms(**more: object) -> JobTerms:
    limits = Limits(memory_bytes=2 * GIB, wall_ms=60_000)
    spec = JobSpec("function", function="0" * 64, limits=limits, **more)
    return JobTerms(spec, TARIFFS)


ROWS = [
    SubtaskRow(0, "done", "ok", 1, "n", 4_000_001, 900_000, 9, False, "cgroup"),
    SubtaskRow(1, "done", "ok", 1, "n", 6_000_000, 1_600_000, 9, False, "cgroup"),
]


def test_idle_memory_is_the_part_of_the_bill_that_nobody_used() -> None:
    found = compare(job(512), terms(), ROWS)
    assert found.memory_ucredits == 10 * 2 * 50_000
    assert found.idle_ucredits == 750_000
    assert found.suggested_bytes == 650 * MIB  # 512 and a quarter, rounded up to 50
    assert found.saved_ucredits == 1_000_000 * (2_048 - 650) // 2_048
    assert (found.used_cpus_milli, found.used_wall_ms, found.used_cpu_ms) == (250, 6_000, 1_600)


def test_cpus_are_those_of_the_subtasks_and_not_of_what_the_slot_does_between_them() -> None:
    """A share of more than what was asked for would be no share."""
    assert compare(job(512, cpu_us=11_000_000), terms(), ROWS).used_cpus_milli == 250
    assert compare(job(512), terms(), []).used_cpus_milli == 250, "none has its own reading"


def test_the_class_that_a_job_asked_for_sets_the_price() -> None:
    found = compare(job(512, spent_ucredits=10**8), terms(labels={"class": "big"}), ROWS)
    assert found.memory_ucredits == 10_000_000


@pytest.mark.parametrize(
    "status",
    [
        job(1_900),  # with its margin it needs all of it
        job(0),  # nobody could read it
        job(100, errors=[("oom", "over its memory limit", 1, 0)]),
    ],
)
def test_nothing_is_suggested_without_a_reason(status: JobStatus) -> None:
    found = compare(status, terms(), ROWS)
    assert (found.suggested_bytes, found.saved_ucredits) == (0, 0)


def test_memory_is_never_more_than_the_whole_bill() -> None:
    found = compare(job(512, spent_ucredits=5), terms(), ROWS)
    assert found.memory_ucredits == 5 and found.saved_ucredits < 5


@pytest.mark.parametrize(
    ("peak", "asked"), [(1, 100), (36, 100), (37, 150), (256, 350), (700, 900), (4_000, 5_000)]
)
def test_the_margin_rule(peak: int, asked: int) -> None:
    assert suggest(peak * MIB) == asked * MIB
