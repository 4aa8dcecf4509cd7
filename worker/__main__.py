"""``python -m gristmill.worker``: check what was asked and this host, then be an agent."""

import argparse
import importlib.metadata
import os
import pathlib
import platform
import resource
import secrets
import sys

import psutil  # type: ignore[import-untyped]

from gristmill.sandbox.errors import SandboxError
from gristmill.sandbox.host import Host, prepare_host
from gristmill.sandbox.probe import probe_host
from gristmill.wire.errors import EXIT_CANNOT_JAIL, RemoteError
from gristmill.wire.keys import WORKER_KEY, load_key
from gristmill.wire.limits import PROTOCOL
from gristmill.wire.process import die_with_parent, ended_by, keep_freed_memory
from gristmill.wire.supervision import supervisor_of
from gristmill.wire.worker import Hello
from gristmill.worker.agent import Agent, say, tell_ready
from gristmill.worker.self_test import check_clock, check_disk
from gristmill.worker.settings import WorkerSettings, read_settings

STARTING_S = 90.0  #: under a service manager a broker that is not there may come within this


def main() -> int:
    """Run the worker; its exit code."""
    args = _parser().parse_args()
    if args.die_with_parent:
        die_with_parent()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a slot has six descriptors
    keep_freed_memory()
    given = {name: value for name, value in vars(args).items() if value is not None}
    ready_fd = given.pop("ready_fd", None)
    del given["die_with_parent"]
    supervisor = supervisor_of(os.environ)
    try:
        settings = read_settings(given, os.environ)
        settings.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = load_key(settings.state / WORKER_KEY)
    except RemoteError as error:
        return ended_by(error)
    supervisor.status("tries this host: its disk, its clock, real jails")
    try:
        check_clock()
        check_disk(settings.state)
        host = _prepare(settings)
    except SandboxError as error:
        say(f"CANNOT_JAIL: this host cannot run jails: {error}")
        say("  -> run 'gristmill doctor' for the whole check")
        supervisor.status(f"CANNOT_JAIL: {error}")
        return EXIT_CANNOT_JAIL
    try:
        hello = _hello(settings, key.verify_key.encode().hex(), host)
        supervisor.starting(f"waits for the broker at {settings.broker}", STARTING_S)
        agent = Agent(settings, key, hello, host, supervisor)

        def on_open() -> None:
            say(f"ready worker {settings.name} {settings.broker}")
            supervisor.ready(f"{settings.slots} slots for {settings.broker}")
            if ready_fd is not None:
                tell_ready(ready_fd)

        return agent.run(on_open)
    finally:
        if host is not None:
            host.close()


def _prepare(settings: WorkerSettings) -> Host | None:
    """The ground for jails, tried; None when the worker admits only work without them.

    Raises:
        SandboxError: there is none; nothing else is offered in its place.
    """
    if "trusted" in settings.tiers:
        say(
            f"tier 'trusted' is on: jobs of that tier run as uid {os.geteuid()} with no jail "
            "at all",
            is_loud=True,
        )
    if settings.tiers == ("trusted",):
        return None
    host = prepare_host(settings.state / "jails", has_cgroups=settings.cgroups)
    try:
        report = probe_host(host)
        if not report.is_able:
            raise SandboxError("; ".join(report.reasons), "; ".join(report.remedies))
    except BaseException:
        host.close()
        raise
    if not report.cgroup_version and settings.needs_cgroups:
        host.close()
        raise SandboxError(
            f"it must have cgroups, and has none: {report.cgroup_reason or 'switched off'}",
            report.cgroup_remedy,
        )
    if not report.cgroup_version:
        why = f"{report.cgroup_reason}; next: {report.cgroup_remedy}"
        say(f"no cgroup: rlimits and /proc stand in, and results say so ({why})")
    return host


def _hello(settings: WorkerSettings, node: str, host: Host | None) -> Hello:
    memory = settings.memory or psutil.virtual_memory().total
    cpus_milli = int(settings.cpus * 1000) or settings.slots * 1000
    metering = "cgroup" if host is not None and host.place.version else "proc"
    return Hello(
        protocol=PROTOCOL,
        name=settings.name,
        node=node,
        instance=secrets.token_bytes(16),
        slots=settings.slots,
        cpus_milli=cpus_milli,
        memory_bytes=memory,
        disk_bytes=psutil.disk_usage(str(settings.state)).free,
        labels=settings.labels,
        tiers=list(settings.tiers),
        pythons=[f"{sys.version_info.major}.{sys.version_info.minor}"],
        metering=metering,
        version=_version(),
    )


def _version() -> str:
    try:
        return importlib.metadata.version("gristmill")
    except importlib.metadata.PackageNotFoundError:
        return f"unpackaged-{platform.python_version()}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gristmill worker",
        description="Take leases from a broker and run them in jails. Every option is also read "
        "from GRISTMILL_WORKER_NAME, with the option's name in capitals.",
    )
    parser.add_argument("--broker", help="the broker's address for workers")
    parser.add_argument(
        "--broker-key", metavar="HEX", help="the broker's public key; needed over tcp://"
    )
    parser.add_argument("--name", help="of this worker, unique in its grid")
    parser.add_argument("--slots", type=int, help="leases that run at once; default: cpus")
    parser.add_argument("--state", type=pathlib.Path, help="folder of worker.key and caches")
    parser.add_argument("--tiers", help="admitted, comma-separated; default strict,job,batch")
    parser.add_argument("--label", action="append", dest="labels", metavar="KEY=VALUE")
    parser.add_argument("--cpus", type=float, help="on offer; default: one a slot")
    parser.add_argument("--memory", help="on offer, as 8G; default: all of the host's")
    parser.add_argument("--grace", help="a drain lets subtasks run for this long; default 30s")
    parser.add_argument("--cache", help="input blobs kept on disk, as 4G; default 1G")
    parser.add_argument("--spares", type=int, help="jails kept ready for new jobs; default 4")
    parser.add_argument("--parked", type=int, help="idle jails kept of open jobs; default 8")
    parser.add_argument(
        "--no-cgroups",
        dest="cgroups",
        action="store_false",
        default=None,
        help="rlimits stand in for cgroups",
    )
    parser.add_argument(
        "--needs-cgroups",
        action="store_true",
        default=None,
        help="end with a reason, rather than do without, where this host delegates none",
    )
    parser.add_argument("--ready-fd", type=int, help="a descriptor that gets READY")
    parser.add_argument("--die-with-parent", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
