"""Hosts for jails, the attack program, and a neighbour that must go on whatever is tried."""

import dataclasses
import json
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from warm_rig import WarmHost

from gristmill.sandbox.host import Host, prepare_host
from gristmill.sandbox.interpreter import Interpreter, find_interpreter
from gristmill.sandbox.jail import Jail
from gristmill.sandbox.limits import MEBIBYTE, Limits
from gristmill.sandbox.probe import probe
from gristmill.sandbox.run import Result, run
from gristmill.sandbox.spec import Bind, JailSpec

ATTACKS = Path(__file__).with_name("attacks.py")

#: Small enough that every attack is quick, large enough that an honest program runs.
TIGHT = Limits(
    wall_ms=20_000,
    cpu_ms=10_000,
    memory_bytes=128 * MEBIBYTE,
    pids_max=24,
    output_bytes_max=MEBIBYTE,
    file_bytes_max=8 * MEBIBYTE,
    scratch_bytes=16 * MEBIBYTE,
    scratch_files_max=500,
)


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A directory that other users may pass (pytest's own are 0700), gone at the end."""
    path = Path(tempfile.mkdtemp(prefix="gristmill-test-"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def able(scratch: Path) -> None:
    report = probe(scratch / "probe")
    if not report.is_able:
        pytest.skip(f"no jails here: {report.reasons} {report.remedies}")


@pytest.fixture(scope="session")
def host(able: None, scratch: Path) -> Iterator[Host]:
    """A host with cgroups."""
    with prepare_host(scratch / "host") as made:
        if made.place.version == 0:
            pytest.skip(f"no cgroups: {made.place.reason}")
        yield made


@pytest.fixture(scope="session")
def bare_host(able: None, scratch: Path) -> Iterator[Host]:
    """A host that does without cgroups."""
    with prepare_host(scratch / "bare", has_cgroups=False) as made:
        yield made


@pytest.fixture(scope="session")
def best_host(able: None, scratch: Path) -> Iterator[Host]:
    """With cgroups where there are any: for walls that do not depend on them."""
    with prepare_host(scratch / "best") as made:
        yield made


@pytest.fixture(scope="session")
def python() -> Interpreter:
    """The Python that runs these tests, with its virtual environment."""
    return find_interpreter()


@dataclasses.dataclass
class Attacked:
    """A finished attack: what it printed, line by line, and its result."""

    result: Result
    lines: list[dict[str, Any]]

    def errors(self) -> dict[str, int]:
        return {line["what"]: line["errno"] for line in self.lines}

    def __getitem__(self, what: str) -> dict[str, Any]:
        return next(line for line in self.lines if line["what"] == what)


@pytest.fixture
def stand_in(scratch: Path) -> Callable[[str, str], str]:
    """Makes a program of a name and some Python, to stand in nsjail's place; gives its path."""

    def make(name: str, code: str) -> str:
        path = scratch / name
        # The path of a Python may have a space, a first line may not: sh reads the second line as
        # a command and never comes to the third; for Python they are one string.
        path.write_text(
            f"#!/bin/sh\n'''exec' '{sys.executable}' -IS \"$0\" \"$@\"\n' '''\n"
            f"import os, signal, sys\n{code}\n"
        )
        path.chmod(0o755)
        return str(path)

    return make


@pytest.fixture(scope="session")
def tight() -> Limits:
    return TIGHT


@pytest.fixture
def mark() -> Iterator[str]:
    """A word in the environment of what a test jails: after the test no process may have it."""
    word = f"mark-{uuid.uuid4().hex}"
    yield word
    assert marked(word) == []


def marked(word: str) -> list[str]:
    """Command lines of live processes with a word in their environment or arguments."""
    found = []
    for pid in Path("/proc").iterdir():
        try:
            said = (pid / "cmdline").read_bytes()
            if pid.name != str(os.getpid()) and word.encode() in (
                said + (pid / "environ").read_bytes()
            ):
                found.append(said.decode(errors="replace"))
        except OSError:
            continue
    return found


@pytest.fixture
def processes_of() -> Callable[[str], list[str]]:
    return marked


@pytest.fixture
def attack_spec(python: Interpreter, mark: str) -> Callable[..., JailSpec]:
    """The jail of an attack; ``limits`` are TIGHT unless given, ``binds`` are added."""

    def make(name: str, *arguments: str, **changes: Any) -> JailSpec:
        binds = (*python.binds, Bind(str(ATTACKS), "/attacks.py"), *changes.pop("binds", ()))
        limits = changes.pop("limits", TIGHT)
        argv = (python.executable, "-I", "-S", "/attacks.py", name, *arguments)
        env = {"MARK": mark}
        return JailSpec(argv=argv, binds=binds, limits=limits, env=env, **changes)

    return make


@pytest.fixture(scope="session")
def warm(able: None, scratch: Path) -> Iterator[WarmHost]:
    """Jails that mothers make."""
    with prepare_host(scratch / "warm") as host:
        if host.place.version == 0:
            pytest.skip(f"no cgroups: {host.place.reason}")
        made = WarmHost(host)
        yield made
        made.close()


@pytest.fixture
def attack(attack_spec: Callable[..., JailSpec]) -> Callable[..., Attacked]:
    """Run one attack in a jail of its own."""

    def start(host: Host | WarmHost, name: str, *arguments: str, **changes: Any) -> Attacked:
        result = run(cast(Host, host), attack_spec(name, *arguments, **changes))
        lines = [json.loads(line) for line in result.stdout.splitlines() if line[:1] == b"{"]
        return Attacked(result, lines)

    return start


class Echo:
    """A jail running cat: a neighbour that must go on whatever happens beside it."""

    def __init__(self, host: Host) -> None:
        inside, self._feed = os.pipe()
        self._answer, outside = os.pipe()
        limits = Limits(wall_ms=600_000)
        spec = JailSpec(argv=("cat",), stdin=inside, stdout=outside, limits=limits)
        self.jail: Jail = host.start(spec)
        os.close(inside)
        os.close(outside)

    def answers(self) -> bool:
        os.write(self._feed, b"still there?\n")
        return os.read(self._answer, 100) == b"still there?\n"

    def close(self) -> None:
        self.jail.close()
        os.close(self._feed)
        os.close(self._answer)


@pytest.fixture(scope="module")
def neighbour(best_host: Host) -> Iterator[Echo]:
    echo = Echo(best_host)
    yield echo
    assert echo.jail.poll() is None
    echo.close()
