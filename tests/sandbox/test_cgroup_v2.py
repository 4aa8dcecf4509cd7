"""Version 2 groups against a stand-in tree, and what a real cgroup2 can show here."""

import importlib.util
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from gristmill.sandbox.cgroup import GroupV2, Reading
from gristmill.sandbox.delegation import Ground, Place, agent_name, find_place, parse_mounts
from gristmill.sandbox.limits import Limits

_spec = importlib.util.spec_from_file_location(
    "fake_cgroup2", Path(__file__).with_name("fake_cgroup2.py")
)
fake_cgroup2 = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fake_cgroup2)

LIMITS = Limits(memory_bytes=1 << 20, pids_max=7, cpu_quota_ms_per_s=250)


@pytest.fixture
def tree(tmp_path):
    return fake_cgroup2.FakeCgroup2(tmp_path / "cgroup")


@pytest.fixture
def group(tree):
    (tree.mount / "cgroup.subtree_control").write_text("+cpu +memory +pids")
    return GroupV2(tree.mount / "jail", LIMITS, tree.make)


def text(group_or_path, name, tree):
    return (tree.mount / group_or_path / name).read_text()


def test_limits_are_written_in_the_kernels_units(group, tree):
    # A plain file keeps the tail of a longer old text, so only what was written is compared.
    assert text("jail", "memory.max", tree).startswith("1048576")
    assert text("jail", "memory.swap.max", tree).startswith("0")
    assert text("jail", "pids.max", tree).startswith("8")  # nsjail's own process is one of them
    assert text("jail", "cpu.max", tree).startswith("25000 100000")
    assert text("jail", "memory.oom.group", tree) == "0\n"


def test_readings(group):
    assert group.cpu_us() == 1_234_567
    assert group.reading() == Reading(1_234_567, 1_048_576, 1, 3, "cgroup-v2")


def test_the_meter_is_read_again_each_time(group, tree):
    at = tree.mount / "jail" / "cpu.stat"
    at.write_text("usage_usec 2000000\nuser_usec 2000000\nsystem_usec 0\n")
    assert group.cpu_us() == 2_000_000


def test_the_peak_is_reset_by_its_own_descriptor(group):
    assert group.reset_peak()


def test_an_old_kernel_without_peak_and_kill(tree):
    (tree.mount / "cgroup.subtree_control").write_text("+memory +pids")

    def make(path):
        tree.make(path)
        for name in ("memory.peak", "memory.swap.max", "cgroup.kill"):
            (path / name).unlink()

    group = GroupV2(tree.mount / "old", Limits(), make)
    assert group.reading().memory_peak_bytes == 4096
    assert group.reset_peak() is False
    sleeper = subprocess.Popen(["/bin/sleep", "600"])
    (tree.mount / "old" / "cgroup.procs").write_text(f"{sleeper.pid}\n")
    group.kill()
    assert sleeper.wait(10) == -signal.SIGKILL


def test_kill_is_the_kernels_own(group, tree):
    group.kill()
    assert text("jail", "cgroup.kill", tree) == "1"


def test_a_misspelt_or_missing_limit_fails_and_leaves_nothing_open(tree):
    before = os.listdir("/proc/self/fd")
    with pytest.raises(FileNotFoundError):  # no controller was handed down
        GroupV2(tree.mount / "bare", LIMITS, tree.make)
    assert os.listdir("/proc/self/fd") == before


def test_remove_says_when_somebody_is_still_inside(group, tree):
    assert group.remove() is False  # the stand-in's files are in the way, as processes would be
    tree.remove(tree.mount / "jail")
    assert group.remove() is True
    assert group.remove() is True


# ------------------------------------------------------------------------------------- delegation

UNIFIED = "30 23 0:26 / {mount} rw,nosuid,nodev - cgroup2 cgroup2 rw,nsdelegate\n"


def place_of(tree, own, is_root=False, is_delegated=lambda _: False):
    return find_place(UNIFIED.format(mount=tree.mount), f"0::{own}\n", is_root, is_delegated)


def unit(tree, name="unit"):
    (tree.mount / "cgroup.subtree_control").write_text("+cpu +memory +pids")
    tree.make(tree.mount / name)
    return tree.mount / name


def test_a_user_with_a_delegated_group_uses_it(tree):
    at = unit(tree)
    assert place_of(tree, "/unit") == Place(2, {"unified": at}, has_cpu_quota=True)


def test_a_user_without_one_is_told_what_to_type(tree):
    place = place_of(tree, "/not/ours")
    assert place.version == 0
    assert "is not delegated to uid" in place.reason
    assert place.remedy.startswith("systemd-run --user --scope -p Delegate=yes")


def test_a_delegation_without_memory_is_told(tree):
    (tree.mount / "cgroup.subtree_control").write_text("+pids")
    tree.make(tree.mount / "unit")
    place = place_of(tree, "/unit")
    assert place.version == 0
    assert "does not offer memory" in place.reason


def test_root_uses_its_delegated_group_or_the_top(tree):
    at = unit(tree)
    assert place_of(tree, "/unit", True, lambda path: path == at).directories == {"unified": at}
    assert place_of(tree, "/unit", True).directories == {"unified": tree.mount}


def test_a_process_that_already_moved_finds_its_group_again(tree):
    at = unit(tree)
    (at / "cgroup.subtree_control").write_text("+memory +pids")
    tree.make(at / "self")
    tree.make(at / "gristmill")
    assert place_of(tree, "/unit/self").directories == {"unified": at}


def test_no_controllers_anywhere(tmp_path):
    tree = fake_cgroup2.FakeCgroup2(tmp_path / "hugetlb-only", "hugetlb")
    place = place_of(tree, "/")
    assert place.version == 0
    assert "controllers" in place.reason


def test_a_container_sees_its_own_root():
    line = "30 23 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n"
    mount = parse_mounts(line)[0]
    assert (mount.version, str(mount.point), mount.root) == (2, "/sys/fs/cgroup", "/docker/abc")


def test_the_ground_moves_everybody_down_and_hands_controllers_on(tree):
    at = unit(tree)
    (at / "cgroup.procs").write_text(f"{os.getpid()}\n")
    ground = Ground(place_of(tree, "/unit"), os.getpid(), tree.make)
    assert str(os.getpid()) in (at / "self" / "cgroup.procs").read_text().split()
    for path in (at, at / "gristmill", Path(ground.roots[0])):
        assert {"+memory", "+pids", "+cpu"} <= set(
            (path / "cgroup.subtree_control").read_text().split()
        )
    group = ground.make(LIMITS)
    assert group.procs_files == (f"{ground.roots[0]}/j1/cgroup.procs",)
    ground.leave(group)  # the stand-in cannot remove: kept for later
    tree.remove(Path(ground.roots[0]) / "j1")
    ground.sweep()
    assert ground._leaving == []


def test_the_top_group_keeps_its_processes(tree):
    (tree.mount / "cgroup.procs").write_text("1\n")
    Ground(place_of(tree, "/", True), os.getpid(), tree.make)
    assert not (tree.mount / "self").exists()


def test_two_grounds_of_one_process_do_not_meet(tree):
    unit(tree)
    first = Ground(place_of(tree, "/unit"), os.getpid(), tree.make)
    second = Ground(place_of(tree, "/unit"), os.getpid(), tree.make)
    assert first.roots != second.roots
    assert Path(first.roots[0]).name.startswith(agent_name(os.getpid()))


# ------------------------------------------------------------------------------------ the kernel


@pytest.fixture
def real():
    mounts = parse_mounts(Path("/proc/self/mountinfo").read_text())
    mount = next((mount for mount in mounts if mount.version == 2), None)
    if mount is None or not os.access(mount.point / "cgroup.procs", os.W_OK):
        pytest.skip("no writable cgroup2 mount")
    at = mount.point / f"gristmill-test-{os.getpid()}"
    yield at
    if at.exists():
        at.rmdir()


class Uncontrolled(GroupV2):
    """A group where no controller is on offer: everything but limits is the kernel's own."""

    def _limit(self, limits):
        pass


@pytest.mark.root
def test_a_real_group_meters_kills_and_goes(real):
    group = Uncontrolled(real, Limits())
    assert group.cpu_us() == 0
    spinner = subprocess.Popen(
        ["/bin/sh", "-c", "read go; while :; do :; done"], stdin=subprocess.PIPE
    )
    for path in group.procs_files:
        Path(path).write_text(str(spinner.pid))
    assert group.pids() == [spinner.pid]
    assert group.remove() is False
    group = Uncontrolled(real, Limits(), lambda _: None)  # remove() had closed the meter
    spinner.stdin.write(b"\n")
    spinner.stdin.flush()
    while group.cpu_us() < 50_000:
        pass
    group.kill()
    assert spinner.wait(10) == -signal.SIGKILL
    spinner.stdin.close()
    while not group.remove():
        pass
    assert not real.exists()


@pytest.mark.root
def test_the_stand_in_has_the_formats_of_the_kernel(real):
    real.mkdir()
    files = dict(fake_cgroup2.ALWAYS)
    for controller in (real / "cgroup.controllers").read_text().split():
        files |= fake_cgroup2.CONTROLLED.get(controller, {})
    for name, expected in files.items():
        if name == "cgroup.kill":
            assert (real / name).exists()  # write-only
            continue
        if name == "memory.swap.max" and not (real / name).exists():
            continue  # a kernel without swap accounting
        lines = [re.sub(r"\d+", "N", line) for line in expected.splitlines()]
        got = [re.sub(r"\d+", "N", line) for line in (real / name).read_text().splitlines()]
        assert got[: len(lines)] == lines, name
