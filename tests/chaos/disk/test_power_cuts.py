"""P2: a power cut at any moment. What had been promised by then is on the disk, whole.

``disk_record`` notes what the real broker and ledger write, sync and say; ``disk_cuts`` builds the
disk of each cut and lets the real recovery and the judge look at it.
"""

import collections
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable

import disk_judge
import disk_record
import pytest

FOLDER = pathlib.Path(__file__).parent
RECORD_S = 120.0
RELEASE_S = 360.0  #: of cutting, on two processors


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    """A process of this folder's scripts, which import each other by name."""
    return subprocess.Popen(
        [sys.executable, "-P", str(FOLDER / script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(FOLDER)},
        stdout=subprocess.PIPE,
        text=True,
    )


def record(
    folder: pathlib.Path, fault: str, seeds: tuple[int, ...], jobs: int
) -> list[pathlib.Path]:
    """Recordings; ``jobs`` are over before each of two restarts in them, and at the end."""
    paths = [folder / f"recording-{seed}" for seed in seeds]
    running = [
        start("disk_record.py", path, fault, seed, jobs)
        for path, seed in zip(paths, seeds, strict=True)
    ]
    for process in running:
        process.communicate(timeout=RECORD_S)
        assert process.returncode == 0, f"recording {fault} failed"
    return paths


def cut(
    recordings: list[pathlib.Path], cuts: int, seconds: float, until: str = "all"
) -> tuple[collections.Counter[str], list[str]]:
    """Cuts each recording in a process of its own; the sums, and faults in words."""
    each = -(-cuts // len(recordings))
    running = [
        start("disk_cuts.py", path, number, each, seconds, until)
        for number, path in enumerate(recordings)
    ]
    counts: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    for process in running:
        told, _ = process.communicate(timeout=seconds + 120)
        assert process.returncode == 0, "a judge failed"
        found = json.loads(told)
        counts.update(found["counts"])
        counts["operations"] += found["operations"]
        faults += found["faults"]
    return counts, faults


@pytest.mark.slow
def test_a_power_cut_loses_nothing_that_was_promised(
    tmp_path: pathlib.Path, sized: Callable[[int, int], int], figures: Callable[..., None]
) -> None:
    cuts = sized(400, 50_000)
    recordings = record(tmp_path, "none", (1, 2), sized(4, 12))
    counts, faults = cut(recordings, cuts, sized(int(RECORD_S), int(RELEASE_S)))
    kinds = {name: counts[name] for name in disk_judge.FAULT_KINDS}
    figures(
        **{name: counts[name] for name in ("cuts", "bad", "operations", "promises_checked")},
        **kinds,
    )
    assert not faults, "\n".join(faults)
    assert counts["cuts"] >= sized(cuts, 2_000)
    modes = {name: number for name, number in counts.items() if name.startswith("cuts_")}
    assert len(modes) == 5 and min(modes.values()) > 0, modes


@pytest.mark.slow
@pytest.mark.parametrize("fault", [name for name in disk_record.FAULTS if name != "none"])
def test_a_promise_that_is_given_too_early_is_found(
    fault: str, tmp_path: pathlib.Path, figures: Callable[..., None]
) -> None:
    """The proof above can fail: with each of these faults it does."""
    recordings = record(tmp_path, fault, (3,), 1)
    counts, faults = cut(recordings, 900, RECORD_S, until="first")
    figures(cuts=counts["cuts"], bad=counts["bad"])
    assert faults, f"{fault}: {counts['cuts']} power cuts found nothing"
