"""A grid over TCP with a registry, and nodes that become part of it as a stranger's would."""

import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from grid_rig import free_port, gristmill, until
from registry_rig import RegistryProcess

from gristmill.broker.principals import make_token
from gristmill.cli.grid import Grid
from gristmill.client import Client
from gristmill.wire.keys import BROKER_KEY, load_key


class Enrolled:
    """See the module's text. ``operator``: a token; its acts go through the broker."""

    def __init__(self, grid: Grid, desk: RegistryProcess) -> None:
        self.grid = grid
        self.desk = desk
        self.operator = make_token(grid.state / "broker", "local", True)
        self.workers: dict[str, subprocess.Popen[bytes]] = {}

    def say(self, *words: str, code: int = 0) -> str:
        """What an operator types somewhere else, with their token."""
        done = gristmill(self.grid, *words, token=self.operator)
        assert done.returncode == code, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def folder(self, name: str) -> pathlib.Path:
        return self.grid.state / f"node-{name}"

    def ask_in(self, name: str, *more: str) -> str:
        """The node registers with a token that an operator gave it, and waits for nobody."""
        token = gristmill(self.grid, "node", "token", name, *more, token=self.operator).stdout
        done = self.node_says(name, token, "--no-wait")
        assert done.returncode == 1, done.stderr
        return token

    def node_says(self, name: str, token: str, *more: str) -> "subprocess.CompletedProcess[str]":
        """``gristmill node enrol`` on the node's own machine."""
        words = ("node", "enrol", "--token-file", "-", "--state", str(self.folder(name)), *more)
        return gristmill(self.grid, *words, stdin=token)

    def let_in(self, name: str, *more: str) -> None:
        """Token, registration, approval: it may come for its canary."""
        token = self.ask_in(name)
        self.say("node", "approve", name, *more)
        done = self.node_says(name, token)
        assert done.returncode == 0, done.stderr

    def start(self, name: str, *more: str) -> None:
        """Its worker, which knows its broker from the enrolment."""
        command = [sys.executable, "-P", "-m", "gristmill.worker", "--die-with-parent"]
        command += ["--state", str(self.folder(name)), "--memory", "2GiB", *more]
        with open(self.folder(name).with_suffix(".log"), "ab") as log:
            self.workers[name] = subprocess.Popen(command, stdout=log, stderr=log)

    def end(self, name: str) -> int:
        """Its exit code, when it ends by itself."""
        return self.workers.pop(name).wait(timeout=60)

    def log(self, name: str) -> str:
        return self.folder(name).with_suffix(".log").read_text()

    def states(self) -> dict[str, str]:
        """Of the workers that the broker sees."""
        with Client(self.grid.address, token=self.operator) as client:
            return {row.name: row.state for row in client.workers()}

    def state_of(self, name: str) -> str:
        """In the registry."""
        return self.desk.node(name).principal.state

    def close(self) -> None:
        for process in self.workers.values():
            process.kill()
            process.wait()


@contextmanager
def enrolled_grid(folder: pathlib.Path) -> Iterator[Enrolled]:
    """No worker is there at the beginning."""
    ports = [f"tcp://127.0.0.1:{free_port()}" for _ in range(2)]
    with tempfile.TemporaryDirectory(prefix="gm-") as run:
        desk = RegistryProcess(folder / "registry", pathlib.Path(run))
        options = {"broker": ["--registry", desk.address]}
        grid = Grid(
            folder / "grid", pathlib.Path(run) / "grid", workers=0, options=options,
            front=ports[0], back=ports[1],
        )  # fmt: skip
        public = load_key(grid.state / "broker" / BROKER_KEY).verify_key.encode().hex()
        desk.start("--broker", f"{ports[1]}={public}", "--vanished", "10m")
        with grid:
            made = Enrolled(grid, desk)
            try:
                until("the broker follows", lambda: "follows" in desk.log.read_text())
                yield made
            finally:
                made.close()
                for name in sorted(one.name for one in grid.state.glob("node-*.log")):
                    print(f"--- {name}\n{(grid.state / name).read_text()[-2_000:]}")
                print(f"--- broker\n{grid.log('broker').read_text()[-6_000:]}")
                desk.close()
