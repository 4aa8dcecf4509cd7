"""Other grids and pools in turn with gristmill: the same scenarios, the same minutes, two workers.

Each peer runs in its own virtual environment with the best setting that its documentation gives
(``contenders/with_*.py`` cite it), one at a time; gristmill runs before, between and after them.
CPU is of every process that a contender started, up to a moment after the last result, so that what
it does then is counted too. Inputs are sized to a run of a second or two. Every result is compared.
What cannot be installed or run is in the JSON with its reason.

``--only dask,ray``; ``--rounds 3``; ``--install`` only makes the virtual environments.
"""

import argparse
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterable
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from harness.measure import Runs, cpu_us_by_role, percentile

from peers.catalogue import OURS, PEERS, Peer
from peers.environment import VENVS, Environment, UnavailableError
from peers.process import START_S, ContenderError, ContenderProcess, adopt_orphans

SLOTS = 2
SCRATCH = "/tmp"  #: a socket's path has at most 107 bytes: Ray's need 70 of them
SETTLE_S = 0.3
IDLE_S = 1.5
QUICK = 0.1  #: of the length of a run
LATENCY_CALLS = 1_000
TRIES = 8
#: scenario: items of the first try, and at most
SIZES = {
    "batched": (50_000, 1_000_000),
    "each": (20, 100_000),
    "payload": (1_000, 10_000),
    "programs": (20, 5_000),
}
PAYLOAD_MB = 10 * 1024 / 1e6


def cpu_us() -> int:
    """Spent so far by everything below this process; its own share is no contender's."""
    return sum(spent for role, spent in cpu_us_by_role().items() if role != "client")


class Bench:
    """The contenders' turns, and what is known of them from earlier turns of the same run."""

    def __init__(
        self, runs: Runs, seconds_max: float, pace: float = 1.0, venvs: pathlib.Path = VENVS
    ) -> None:
        self.runs = runs
        self.pace = pace
        self.venvs = venvs
        self.deadline = time.monotonic() + seconds_max
        self.sizes: dict[tuple[str, str], int] = {}
        self.turn = 0

    @property
    def is_over(self) -> bool:
        """The time of the whole run is used up."""
        return time.monotonic() > self.deadline

    def take_turn(self, peer: Peer, rounds: int, scenarios: Iterable[str]) -> None:
        """One contender from start to end; what fails is recorded and the next one comes."""
        self.turn += 1
        environment = Environment(peer.slug, peer.requirements, self.venvs)
        try:
            environment.make()
            if self.is_over:
                raise UnavailableError("the time of this run was up before its turn")
        except UnavailableError as error:
            self.skip(peer, str(error))
            return
        with tempfile.TemporaryDirectory(
            prefix="peers-", dir=SCRATCH, ignore_cleanup_errors=True
        ) as scratch:
            process = ContenderProcess(environment.python, peer.script, pathlib.Path(scratch))
            try:
                up = process.order("start", START_S, slots=SLOTS, scratch=scratch)
                self.runs.line["contenders"][peer.name]["versions"] = up["versions"]
                self.runs.add(peer.name, scenario="start", turn=self.turn, seconds=up["start_s"])
                for scenario in scenarios:
                    if reason := up["unable"].get(scenario):
                        self.skip(peer, reason, scenario)
                    else:
                        self.scenario(process, peer, scenario, rounds)
                if self.turn <= 2 or peer is not OURS:
                    self.idle(peer)
            except ContenderError as error:
                self.skip(peer, str(error))
            finally:
                process.end()

    def skip(self, peer: Peer, reason: str, scenario: str = "all") -> None:
        """Why there is no figure."""
        self.runs.add(peer.name, scenario=scenario, turn=self.turn, skipped=reason)

    def idle(self, peer: Peer) -> None:
        """What it costs to have it there, a while after its last work."""
        time.sleep(IDLE_S)
        before, began = cpu_us(), time.monotonic()
        time.sleep(IDLE_S)
        spent = (cpu_us() - before) / (time.monotonic() - began)
        self.runs.add(peer.name, scenario="idle", turn=self.turn, cpu_us_per_s=spent)

    def scenario(self, process: ContenderProcess, peer: Peer, scenario: str, rounds: int) -> None:
        """Sized once in a run of the bench, then measured ``rounds`` times."""
        try:
            if scenario == "latency":
                self.latency(process, peer)
                return
            n = self.size(process, peer, scenario)
            for number in range(rounds):
                if number and self.is_over:
                    break
                self.add(peer, scenario, n, *self.once(process, scenario, n))
        except ContenderError as error:
            self.skip(peer, str(error), scenario)
            if process.is_gone:
                raise

    def once(
        self, process: ContenderProcess, scenario: str, n: int, seconds_max: float = 0.0
    ) -> tuple[dict[str, Any], int]:
        """(the answer, CPU in us) of one run whose results were compared."""
        process.order("prepare", scenario=scenario, n=n)
        before = cpu_us()
        answer = process.order("run", seconds_max=seconds_max)
        time.sleep(SETTLE_S)
        spent = cpu_us() - before
        process.order("check")
        return answer, spent

    def size(self, process: ContenderProcess, peer: Peer, scenario: str) -> int:
        """Items for a run of about so many seconds; the tries warm the contender up.

        A later turn starts from the size of the last one: one try more.
        """
        key, wanted_s = (peer.name, scenario), peer.seconds * self.pace
        n, largest = SIZES[scenario]
        if scenario == "batched" and self.pace == 1.0:
            n = max(n, peer.batch_first)
        is_first = key not in self.sizes
        n = self.sizes.get(key, n)
        if is_first:
            self.once(process, scenario, n)  # the first of its kind is slow: it says nothing
        for _ in range(TRIES if is_first else 1):
            seconds = self.once(process, scenario, n)[0]["seconds"]
            if n == largest or seconds > wanted_s / 2:
                break
            n = min(largest, int(n * min(10.0, wanted_s / seconds)))
        if seconds > 2 * wanted_s and is_first:
            n = max(1, int(n * wanted_s / seconds))
        self.sizes[key] = n
        return n

    def add(self, peer: Peer, scenario: str, n: int, answer: dict[str, Any], spent: int) -> None:
        """One run of many items."""
        rate = n / answer["seconds"]
        figures = {"n": n, "seconds": answer["seconds"], "rate": rate, "cpu_us": spent / n}
        if scenario == "payload":
            figures["mb_s"] = rate * PAYLOAD_MB
        self.runs.add(peer.name, scenario=scenario, turn=self.turn, **figures)

    def latency(self, process: ContenderProcess, peer: Peer) -> None:
        """Calls one after another: as many as the time allows."""
        answer, spent = self.once(process, "latency", LATENCY_CALLS, 2 * peer.seconds * self.pace)
        times = sorted(answer["times"])
        self.runs.add(
            peer.name,
            scenario="latency",
            turn=self.turn,
            n=len(times),
            p50_ms=percentile(times, 0.5) * 1e3,
            p99_ms=percentile(times, 0.99) * 1e3,
            cpu_us=spent / answer["calls"],
        )


def chosen(only: str) -> list[Peer]:
    """The peers of ``--only``, or all.

    Raises:
        SystemExit: an unknown name.
    """
    names = [name.strip().lower() for name in only.split(",") if name.strip()]
    known = {peer.slug: peer for peer in PEERS}
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"peers: no {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in names] if names else list(PEERS)


def install(peers: list[Peer]) -> None:
    """Make the virtual environments, and say what cannot be had."""
    for peer in peers:
        environment = Environment(peer.slug, peer.requirements)
        said = "there already" if environment.is_ready else "installed"
        try:
            environment.make()
        except UnavailableError as error:
            said = f"skipped: {error}"
        print(f"  {peer.name:20} {said}", file=sys.stderr)


def summary(runs: Runs) -> dict[str, float]:
    """Medians of what every contender did."""
    found: dict[str, float] = {}
    for contender in runs.line["contenders"]:
        for scenario, figures in {
            "batched": ("rate", "cpu_us"),
            "each": ("rate", "cpu_us"),
            "latency": ("p50_ms", "p99_ms"),
            "payload": ("mb_s",),
            "programs": ("rate", "cpu_us"),
        }.items():
            for figure in figures:
                values = sorted(
                    run[figure]
                    for run in runs.line["runs"]
                    if run["what"] == contender and run["scenario"] == scenario and figure in run
                )
                if values:
                    key = f"{contender} {scenario} {figure}"
                    found[key.replace(" ", "_")] = round(percentile(values, 0.5), 3)
    return found


def main() -> None:
    """Gristmill, a peer, gristmill, the next peer, and gristmill at the end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", default="", help="names of peers, with commas")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each scenario")
    parser.add_argument("--budget", type=int, default=450, help="seconds; later turns are skipped")
    parser.add_argument("--quick", action="store_true", help="tiny runs: does it work at all")
    parser.add_argument("--results", default="", help="folder of the JSON line")
    parser.add_argument("--install", action="store_true", help="make the environments, no run")
    options = parser.parse_args()
    peers = chosen(options.only)
    if options.install:
        install(peers)
        return
    adopt_orphans()
    settings = {"rounds": 1 if options.quick else options.rounds, "slots": SLOTS}
    settings |= {"budget": options.budget}
    runs = Runs("peers", {**settings, "quick": options.quick, "results": options.results})
    runs.line["contenders"] = {
        peer.name: {"setting": peer.setting, "docs": peer.docs, "does": peer.does}
        for peer in (OURS, *peers)
    }
    bench = Bench(runs, options.budget, QUICK if options.quick else 1.0)
    ours = -(-2 * settings["rounds"] // (len(peers) + 1))
    for before, after in zip([None, *peers], [*peers, None], strict=True):
        if before is not None:
            bench.take_turn(before, settings["rounds"], before.scenarios)
        wanted = {name for peer in (before, after) if peer for name in peer.scenarios}
        bench.take_turn(OURS, ours, [name for name in OURS.scenarios if name in wanted])
    runs.finish(**summary(runs))


if __name__ == "__main__":
    main()
