"""What isolation costs: tier ``job`` beside a bare fork and wait, ``strict`` beside a bare nsjail.

One slot, so that what is compared runs one after another: ``fork`` is done by a process that has
the modules of a slot's, outside any jail and inside one of ours; ``nsjail`` starts with the same
name spaces, mounts and seccomp policy as our jails and runs ``true``, or a Python that does
nothing. ``sandbox.run`` is our own layer over nsjail, with cgroup, meters and verdict. Wall time is
of one subtask after another; CPU is of all processes, the start of the next job's mother included.
``--n`` subtasks of tier ``job``, ``--jails`` jails.
"""

import dataclasses
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

from harness import floor, forks
from harness.measure import Runs, arguments, percentile
from harness.ours import Bill, Spent, measured_map

from gristmill.cli.grid import Grid
from gristmill.client import Client
from gristmill.sandbox.argv import CONFIG_FD, LOG_FD, build_argv, config_text
from gristmill.sandbox.errors import SandboxError
from gristmill.sandbox.host import Host, prepare_host
from gristmill.sandbox.interpreter import RUNTIME_AT, find_interpreter, runtime_binds
from gristmill.sandbox.run import run
from gristmill.sandbox.spec import Bind, JailSpec
from gristmill.wire.outcome import Outcome
from gristmill.worker.starter import MODULES

FORKS = pathlib.Path(forks.__file__)
FORKS_AT = "/run/bench/forks.py"
TRUE = JailSpec(argv=("/bin/true",))
SPARES = 5  #: a worker has four
SETTLE_S = 1.0
SLOW_S = 0.9  #: nsjail that missed its child's end sleeps a second: counted, not averaged away


def forks_outside(count: int) -> dict[str, float]:
    """Bare forks of a process like a slot's."""
    done = subprocess.run(
        [sys.executable, "-P", str(FORKS), str(count)], stdout=subprocess.PIPE, check=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def forks_inside(host: Host, count: int) -> dict[str, float]:
    """The same in a jail: what name spaces, seccomp and the cgroup add to a fork."""
    python = find_interpreter()
    spec = JailSpec(
        argv=(python.executable, "-I", "-B", FORKS_AT, str(count), RUNTIME_AT),
        binds=(
            *python.binds, *runtime_binds(python, MODULES), Bind(str(FORKS), FORKS_AT),
        ),
    )  # fmt: skip
    result = run(host, spec)
    assert result.verdict.outcome is Outcome.OK, (result.verdict, result.stderr)
    found: dict[str, float] = json.loads(result.stdout)
    return found


def python_spec() -> JailSpec:
    """A jail with an interpreter that ends at once."""
    python = find_interpreter()
    return JailSpec(argv=(python.executable, "-I", "-B", "-S", "-c", "0"), binds=python.binds)


def walls(seconds: list[float], cpu_us: float) -> dict[str, float]:
    """Figures of starts one after another."""
    ordered = sorted(seconds)
    return {
        "p50_ms": percentile(ordered, 0.5) * 1e3,
        "p99_ms": percentile(ordered, 0.99) * 1e3,
        "cpu_us": cpu_us / len(ordered),
        "slow": sum(each > SLOW_S for each in ordered),
    }


class BareJail:
    """nsjail with the command line of our jails, and nothing of ours around it."""

    def __init__(self, host: Host) -> None:
        self._host = host
        log, config = os.memfd_create("log"), os.memfd_create("config")
        for fd, number in ((log, LOG_FD), (config, CONFIG_FD)):
            os.dup2(fd, number)
            os.close(fd)

    def starts(self, spec: JailSpec, count: int) -> dict[str, float]:
        """Start and wait, ``count`` times, as our own user: nobody could not reach a 0700 home."""
        me = dataclasses.replace(spec, outside_uid=os.geteuid(), outside_gid=os.getegid())
        os.truncate(CONFIG_FD, 0)
        os.pwrite(CONFIG_FD, config_text(spec), 0)
        folder = self._host.state_dir
        argv = build_argv(
            me, self._host.nsjail, str(folder / "policy.kafel"), str(folder / "etc"),
            self._host.is_root, False,
        )  # fmt: skip
        seconds, before = [], resource.getrusage(resource.RUSAGE_CHILDREN)
        null = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in range(3)]
        for _ in range(count):
            began = time.perf_counter()
            pid = os.posix_spawn(argv[0], argv, {}, file_actions=null)
            status = os.waitpid(pid, 0)[1]
            seconds.append(time.perf_counter() - began)
            assert status == 0, os.pread(LOG_FD, 1 << 20, 0).replace(b"\0", b"").decode()
            os.truncate(LOG_FD, 0)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return walls(seconds, cpu_s * 1e6)


def sandbox_starts(host: Host, spec: JailSpec, count: int) -> dict[str, float]:
    """Our own jails without a grid."""
    seconds, spent = [], Spent()
    for _ in range(count):
        began = time.perf_counter()
        result = run(host, spec)
        seconds.append(time.perf_counter() - began)
        assert result.verdict.outcome is Outcome.OK, result.verdict
    return walls(seconds, spent.each(1)["cpu_us"])


def strict(client: Client, count: int, is_command: bool) -> dict[str, Any]:
    """A jail for each of ``count`` subtasks: a function, or the command ``true``.

    Spares are made for what was asked for last, so a few come first: what is measured then starts
    as many jails as it uses.
    """
    if not is_command:
        measured_map(client, floor.no_op, list(range(SPARES)), tier="strict")
        time.sleep(SETTLE_S)
        return measured_map(client, floor.no_op, list(range(count)), tier="strict")
    list(client.run(["/bin/true"], each=["x"] * SPARES, each_stdin=True, tier="strict"))
    time.sleep(SETTLE_S)
    bill, spent = Bill(client), Spent()
    began = time.perf_counter()
    outputs = list(client.run(["/bin/true"], each=["x"] * count, each_stdin=True, tier="strict"))
    seconds = time.perf_counter() - began
    cpu = spent.each(count)
    assert [output.exit_code for output in outputs] == [0] * count
    return {
        "rate": count / seconds,
        "seconds": seconds,
        **cpu,
        "billed_ucredits": bill.settle(count),
    }


def one_round(options: Any, runs: Runs, host: Host, bare: BareJail, client: Client) -> None:
    """Each contender once, floors first and last."""
    for what, found in (
        ("outside", forks_outside(options.n)),
        ("in a jail", forks_inside(host, options.n)),
    ):
        for kind in ("fork", "fork_reply"):
            runs.add(
                f"{kind.replace('_', ' and ')} {what}",
                wall_us=found[f"{kind}_wall_us"],
                cpu_us=found[f"{kind}_cpu_us"],
                size_kib=found["size_kib"],
            )
    ours = measured_map(client, floor.no_op, list(range(options.n)), tier="job")
    runs.add("gristmill job", wall_us=1e6 / ours["rate"], **ours)
    runs.add("nsjail true", **bare.starts(TRUE, options.jails))
    runs.add("nsjail python", **bare.starts(python_spec(), options.jails))
    runs.add("sandbox.run true", **sandbox_starts(host, TRUE, options.jails))
    runs.add("sandbox.run python", **sandbox_starts(host, python_spec(), options.jails))
    for what, is_command in (("gristmill strict true", True), ("gristmill strict", False)):
        figures = strict(client, options.jails, is_command)
        runs.add(what, wall_us=1e6 / figures["rate"], p50_ms=1e3 / figures["rate"], **figures)
    runs.add("nsjail true", **bare.starts(TRUE, options.jails))


def main() -> None:
    """Floors, us, the floor again, in turn."""
    options = arguments(
        __doc__ or "", quick={"n": 20, "jails": 2, "rounds": 1}, n=1_000, jails=100, rounds=3
    )
    runs = Runs("jails", vars(options))
    folder = pathlib.Path(tempfile.mkdtemp(prefix="gristmill-jails-"))
    try:
        with (
            prepare_host(folder / "host") as host,
            Grid.temporary(workers=1, slots=1) as grid,
            Client(grid.address) as client,
        ):
            bare = BareJail(host)
            measured_map(client, floor.no_op, list(range(20)), tier="job")  # its jail is up
            for _ in range(options.rounds):
                one_round(options, runs, host, bare, client)
            assert client.balance().sum_ucredits == 0
    except SandboxError as error:
        raise SystemExit(f"no jails here: {error}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    job, fork = "gristmill job", "fork outside"
    of = {
        "job_wall_over_fork": (job, fork, "wall_us"),
        "job_cpu_over_fork": (job, fork, "cpu_us"),
        "job_cpu_over_fork_in_jail": (job, "fork in a jail", "cpu_us"),
        "strict_wall_over_nsjail": ("gristmill strict", "nsjail true", "p50_ms"),
        "strict_cpu_over_nsjail": ("gristmill strict", "nsjail true", "cpu_us"),
        "strict_true_wall_over_nsjail": ("gristmill strict true", "nsjail true", "p50_ms"),
    }
    runs.finish(
        **{
            name: round(runs.median(ours, figure) / runs.median(base, figure), 2)
            for name, (ours, base, figure) in of.items()
        },
        job_wall_us=runs.median(job, "wall_us"),
        job_cpu_us=runs.median(job, "cpu_us"),
        strict_wall_ms=runs.median("gristmill strict", "p50_ms"),
        strict_cpu_us=runs.median("gristmill strict", "cpu_us"),
    )


if __name__ == "__main__":
    main()
