"""Attacks on a host without cgroups: rlimits, the clock and /proc stand in, and say so."""

import dataclasses
import errno
import os
import select

from gristmill.sandbox.limits import MEBIBYTE
from gristmill.sandbox.spec import JailSpec
from gristmill.sandbox.verdict import outcome_of_errno
from gristmill.wire.outcome import Outcome


def test_a_fork_bomb_is_refused(bare_host, attack):
    got = attack(bare_host, "fork_bomb")
    assert b"BlockingIOError" in got.result.stderr
    reading = got.result.ending.reading
    assert reading.source == "proc"
    assert outcome_of_errno(errno.EAGAIN, "BlockingIOError", reading) is Outcome.PIDS


def test_ten_gigabytes_are_refused(bare_host, attack):
    got = attack(bare_host, "malloc_10g")
    assert got.result.verdict.outcome in (Outcome.EXIT, Outcome.OOM)
    assert b"MemoryError" in got.result.stderr or got.result.verdict.outcome is Outcome.OOM


def test_many_small_processes_that_are_large_together_end_as_oom(bare_host, attack, tight):
    """12 x 24 MiB under 128 MiB: no process passes RLIMIT_AS, the sampler sees the sum."""
    got = attack(bare_host, "malloc_forks", limits=dataclasses.replace(tight, wall_ms=5_000))
    assert got.result.verdict.outcome is Outcome.OOM
    assert got.result.verdict.peak > 128 * MEBIBYTE


def test_a_busy_loop_ends_as_cpu(bare_host, attack, tight):
    got = attack(bare_host, "spin", limits=dataclasses.replace(tight, cpu_ms=300))
    assert got.result.verdict.outcome is Outcome.CPU


def test_busy_children_end_as_cpu_together(bare_host, attack, tight):
    limits = dataclasses.replace(tight, cpu_ms=400)
    assert attack(bare_host, "spin_forks", limits=limits).result.verdict.outcome is Outcome.CPU


def test_a_sleeper_ends_as_time(bare_host, attack, tight):
    got = attack(bare_host, "sleep", limits=dataclasses.replace(tight, wall_ms=300))
    assert got.result.verdict.outcome is Outcome.TIME


def test_the_kernels_own_cpu_limit_ends_a_jail_that_nobody_watches(
    bare_host, host, attack_spec, tight
):
    for ground in (bare_host, host):
        limits = dataclasses.replace(tight, cpu_ms=1000)
        jail = ground.start(attack_spec("spin", limits=limits))
        while jail.poll() is None:
            select.select([jail], [], [], 10)
        assert jail.judge().outcome is Outcome.CPU
        jail.close()


def test_a_gigabyte_of_output_ends_as_output(bare_host, attack):
    assert attack(bare_host, "flood").result.verdict.outcome is Outcome.OUTPUT


def test_a_daemon_does_not_outlive_its_jail(bare_host, attack):
    assert attack(bare_host, "daemon")["daemon"]


def test_a_full_disk_is_fs(bare_host, attack):
    got = attack(bare_host, "disk_fill")
    assert got["fill"]["errno"] == errno.ENOSPC


def test_present_use_is_seen_from_outside(bare_host):
    inside, feed = os.pipe()
    answer, outside = os.pipe()
    script = "head -c 5242880 /dev/zero >/tmp/x; echo there; read line"
    jail = bare_host.start(JailSpec(argv=("sh", "-c", script), stdin=inside, stdout=outside))
    os.close(inside)
    os.close(outside)
    assert os.read(answer, 100) == b"there\n"
    usage = jail.usage()
    os.close(feed)
    os.close(answer)
    jail.close()
    assert 5 * MEBIBYTE <= usage.disk_bytes < 6 * MEBIBYTE
    assert usage.memory_bytes > 0
    assert usage.pids >= 2, "nsjail and the shell"
