"""forge on contracts/, and what it says as values.

``npm ci --ignore-scripts --prefix contracts`` installs it. Each kind of run compiles into a folder
of its own under contracts/out: runs of other lanes do not change the files of this one.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
from typing import NamedTuple

FOLDER = pathlib.Path(__file__).parents[2] / "contracts"
FORGE = FOLDER / "node_modules/@foundry-rs/forge-linux-amd64/bin/forge"
INSTALL = "npm ci --ignore-scripts --prefix contracts"
TIMEOUT_S = 900


class Outcome(NamedTuple):
    """One test of forge: ``kind`` is ``unit``, ``fuzz`` or ``invariant``.

    ``runs`` are inputs of a fuzz test or sequences of an invariant, ``calls`` the calls in these.
    """

    name: str
    kind: str
    has_passed: bool
    reason: str
    runs: int = 0
    calls: int = 0


class Part(NamedTuple):
    """How many of some lines or branches were reached."""

    hit: int
    found: int

    @property
    def percent(self) -> float:
        """100 where there is nothing to reach."""
        return 100.0 * self.hit / self.found if self.found else 100.0


class Covered(NamedTuple):
    """What the tests reached of one file, and the lines of branches that they did not."""

    lines: Part
    branches: Part
    functions: Part
    missed: tuple[int, ...]


def missing() -> str:
    """What keeps forge from running here; empty for nothing."""
    if not shutil.which("node"):
        return "no Node on this host: apt-get install nodejs npm"
    if not FORGE.is_file() or not (FOLDER / "node_modules" / "solc").is_dir():
        return f"forge is not installed: {INSTALL}"
    return ""


def forge(kind: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Runs it with ``FOUNDRY_*`` settings; compiled files of one ``kind`` are kept for the next.

    A run whose tests fail is no error here.
    """
    place = f"out/{kind}"
    (FOLDER / place).mkdir(parents=True, exist_ok=True)
    folders = {
        "FOUNDRY_OUT": place,
        "FOUNDRY_CACHE_PATH": f"{place}/cache",
        "FOUNDRY_SNAPSHOTS": f"{place}/snapshots",
    }
    kept = {name: value for name, value in os.environ.items() if name in ("HOME", "PATH", "TMPDIR")}
    return subprocess.run(
        [str(FORGE), *arguments],
        cwd=FOLDER,
        env=kept | folders | settings,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


def outcomes(said: str) -> list[Outcome]:
    """Of ``forge test --json``. ValueError: it said something else, for example of the compiler."""
    try:
        suites = json.loads(said)
    except json.JSONDecodeError as error:
        raise ValueError(f"forge did not answer with JSON but with: {said[-2000:]}") from error
    return [
        _outcome(f"{suite.rpartition(':')[2]}.{name.partition('(')[0]}", test)
        for suite, tests in suites.items()
        for name, test in tests["test_results"].items()
    ]


def _outcome(name: str, test: dict) -> Outcome:
    (kind, counts) = next(iter(test["kind"].items()))
    has_passed = test["status"] == "Success"
    reason = test["reason"] or ""
    runs, calls = counts.get("runs", 0), counts.get("calls", 0)
    return Outcome(name, kind.lower(), has_passed, reason, runs, calls)


def coverage(lcov: str) -> dict[str, Covered]:
    """Of ``forge coverage --report lcov``, by file as in contracts/."""
    found = {}
    for record in lcov.split("end_of_record"):
        if not (file := re.search(r"^SF:(.+)$", record, re.MULTILINE)):
            continue
        counts = {key: int(value) for key, value in re.findall(r"(?m)^([A-Z]+):(\d+)$", record)}
        never = re.findall(r"(?m)^BRDA:(\d+),\d+,\d+,(?:-|0)$", record)
        found[file[1]] = Covered(
            Part(counts["LH"], counts["LF"]),
            Part(counts["BRH"], counts["BRF"]),
            Part(counts["FNH"], counts["FNF"]),
            tuple(sorted({int(line) for line in never})),
        )
    return found


def described(contract: str) -> tuple[set[str], set[str]]:
    """Signatures in the interface of a contract of src/, and those that have NatSpec (a notice, or
    what a developer is told), as the last build of ``tests`` says.

    A function with parameters or results has it only if each of them is described, too; a getter of
    a variable needs its notice alone. What OpenZeppelin brings is not asked for.
    """
    file = FOLDER / "out" / "tests" / f"{contract}.sol" / f"{contract}.json"
    # As a string: what forge took apart has lost events and errors.
    said = json.loads(json.loads(file.read_text())["rawMetadata"])["output"]
    source = "".join(path.read_text() for path in sorted((FOLDER / "src").glob("*.sol")))
    public, told = set(), set()
    for entry in said["abi"]:
        name, kind = entry.get("name", ""), entry["type"]
        if kind not in ("function", "event", "error"):
            continue
        variable = re.search(rf"public (?:immutable |constant )?{name}\b", source)
        function = re.search(rf"function {name}\(", source)
        if not (variable or function or re.search(rf"(?:event|error) {name}\(", source)):
            continue
        types = ",".join(_type(each) for each in entry["inputs"])
        signature = f"{name}({types})"
        public.add(signature)
        notice = said["userdoc"].get(f"{kind}s".replace("functions", "methods"), {}).get(signature)
        more = said["devdoc"]["methods"].get(signature, {})
        given = {each["name"] for each in entry["inputs"]}
        if (notice or "details" in more) and (not function or given <= set(more.get("params", {}))):
            told.add(signature)
    return public, told


def _type(value: dict) -> str:
    """As in a signature: a struct is the tuple of its fields."""
    if not value["type"].startswith("tuple"):
        return str(value["type"])
    fields = ",".join(_type(each) for each in value["components"])
    return f"({fields}){value['type'].removeprefix('tuple')}"


def snapshots(kind: str) -> dict[str, int]:
    """Gas by ``contract: operation`` that the last run of ``kind`` noted."""
    noted = {}
    for file in sorted((FOLDER / "out" / kind / "snapshots").glob("*.json")):
        for operation, gas in json.loads(file.read_text()).items():
            noted[f"{file.stem}: {operation}"] = int(gas)
    return noted
