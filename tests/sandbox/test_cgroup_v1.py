"""Version 1 groups against the kernel, and where they are found."""

import os
import select
import subprocess
import time
from pathlib import Path

import pytest

from gristmill.sandbox import delegation
from gristmill.sandbox.delegation import (
    CONTROLLERS_V1,
    agent_name,
    find_place,
    is_alive,
    parse_mounts,
    parse_own,
)
from gristmill.sandbox.limits import MEBIBYTE, Limits
from gristmill.sandbox.run import run
from gristmill.sandbox.spec import JailSpec


@pytest.fixture
def ground(host):
    if host.place.version != 1:
        pytest.skip(f"cgroup version here is {host.place.version}")
    return host._ground


def file_of(ground, controller, name, group="j"):
    found = sorted(ground.directories[controller].glob(f"{group}*"), key=lambda p: int(p.name[1:]))
    return found[-1] / name


def test_limits_are_in_force(ground):
    group = ground.make(Limits(memory_bytes=64 * MEBIBYTE, pids_max=9, cpu_quota_ms_per_s=250))
    try:
        assert int(file_of(ground, "memory", "memory.limit_in_bytes").read_text()) == 64 * MEBIBYTE
        swap = file_of(ground, "memory", "memory.memsw.limit_in_bytes")
        assert not swap.exists() or int(swap.read_text()) == 64 * MEBIBYTE
        assert int(file_of(ground, "pids", "pids.max").read_text()) == 10
        assert int(file_of(ground, "cpu", "cpu.cfs_quota_us").read_text()) == 25_000
    finally:
        assert group.remove()


def test_readings_are_the_kernels(ground):
    group = ground.make(Limits())
    try:
        before = group.reading()
        assert (before.cpu_us, before.oom_kills, before.pids_denied) == (0, 0, 0)
        worker = subprocess.Popen(
            [
                "/usr/bin/python3",
                "-Sc",
                "b = bytearray(32 << 20); input(); [0 for _ in range(10**6)]",
            ],
            stdin=subprocess.PIPE,
        )
        for path in group.procs_files:
            Path(path).write_text(str(worker.pid))
        assert group.pids() == [worker.pid]
        worker.communicate(b"\n")
        after = group.reading()
        assert after.cpu_us > 10_000
        assert after.source == "cgroup-v1"
        assert group.cpu_us() == after.cpu_us
        peak = after.memory_peak_bytes
        assert group.reset_peak()
        assert group.reading().memory_peak_bytes < max(peak, 1)
    finally:
        assert group.remove()


def test_a_cpu_quota_slows_a_jail_down(host, ground):
    """A loop under 50 ms of cpu a second is throttled; counted by the kernel, not timed."""
    spec = JailSpec(argv=("sh", "-c", "while :; do :; done"), limits=Limits(cpu_quota_ms_per_s=50))
    jail = host.start(spec)
    stat = file_of(ground, "cpu", "cpu.stat")
    deadline = time.monotonic() + 30
    while int(stat.read_text().split("nr_throttled ")[1].split()[0]) == 0:
        assert time.monotonic() < deadline
        assert jail.poll() is None
        select.select([jail], [], [], 0.01)
    jail.close()


def test_peak_and_cpu_of_a_jail_against_what_it_did(host, ground):
    code = "b = bytearray(40 << 20)\nimport time\nwhile time.process_time() < 0.3: pass"
    result = run(host, JailSpec(argv=("/usr/bin/python3", "-Sc", code)))
    reading = result.ending.reading
    assert 40 * MEBIBYTE <= reading.memory_peak_bytes <= 60 * MEBIBYTE
    assert 300_000 <= reading.cpu_us <= 900_000


HYBRID = """\
31 24 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
32 24 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 24 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
34 24 0:30 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
35 24 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
36 24 0:32 / /proc rw - proc proc rw
"""


def test_trees_that_are_mounted_together_are_one():
    mounts = parse_mounts(HYBRID)
    assert len(mounts) == 5
    both = next(mount for mount in mounts if "cpuacct" in mount.controllers)
    assert both.controllers >= {"cpu", "cpuacct"}
    assert parse_own("4:cpu,cpuacct:/a\n0::/b\n") == {"cpu": "/a", "cpuacct": "/a", "": "/b"}


def test_a_user_is_told_what_to_make(tmp_path):
    text = HYBRID.replace("/sys/fs/cgroup", str(tmp_path / "absent"))
    place = find_place(text, "4:memory:/x\n0::/\n", False, lambda _: False)
    assert place.version == 0
    assert "not writable" in place.reason
    trees = " ".join(f"{tmp_path}/absent/{name}/gristmill" for name in ("memory", "pids", "cpu"))
    trees = trees.replace("/cpu/", "/cpu,cpuacct/")
    assert place.remedy == f"sudo mkdir -p {trees} && sudo chown -R {os.geteuid()} {trees}"


def test_the_remedy_can_be_pasted_and_then_helps(tmp_path):
    text = HYBRID.replace("/sys/fs/cgroup", str(tmp_path / "trees"))
    remedy = find_place(text, "0::/\n", False, lambda _: False).remedy
    subprocess.run(["sh", "-ec", remedy.replace("sudo ", "")], check=True)
    assert find_place(text, "0::/\n", False, lambda _: False).version == 1


def test_a_user_uses_a_directory_made_for_it(tmp_path):
    text = HYBRID.replace("/sys/fs/cgroup", str(tmp_path))
    for name in ("cpu,cpuacct", "memory", "pids"):
        (tmp_path / name / "gristmill").mkdir(parents=True)
    place = find_place(text, "0::/\n", False, lambda _: False)
    assert place.version == 1
    assert set(place.directories) == set(CONTROLLERS_V1)
    assert place.directories["cpu"] == place.directories["cpuacct"] == tmp_path / "cpu,cpuacct"


def test_an_agent_that_proc_hides_is_not_dead(monkeypatch):
    """ProtectProc= and a user namespace of its own: there is no /proc/PID of it, yet it runs."""
    other = subprocess.Popen(["sleep", "60"])
    try:
        pid, started = agent_name(other.pid).split("-")
        assert is_alive(pid, started)
        assert not is_alive(pid, str(int(started) + 1)), "its number was given to another"

        def hidden(_):
            raise FileNotFoundError

        monkeypatch.setattr(delegation, "_start_time", hidden)
        assert is_alive(pid, started)
    finally:
        other.kill()
        other.wait()
    assert not is_alive(pid, started)
    assert not is_alive("0", "1")
    assert not is_alive("9" * 30, "1")
    monkeypatch.undo()
    assert not is_alive("no", "number")
