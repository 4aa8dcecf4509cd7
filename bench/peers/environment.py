"""A virtual environment for each peer, made on demand and kept: ``bench/peers/.venvs/<name>``.

Made without pip (ours installs into it, with ``--python``), so a new one costs nothing but the
peer's own packages. What cannot be installed is a reason in words, never an exception.
"""

import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import venv

VENVS = pathlib.Path(__file__).parent / ".venvs"
INSTALL_S = 600.0
_URL = re.compile(r"\b[a-z+]+://\S+|\bhost='[^']*'|\b[\w.-]+\.(?:org|com|net|io)\b\S*")


class UnavailableError(Exception):
    """A peer that cannot be had here; its text is the reason, for the report."""


@dataclasses.dataclass(frozen=True)
class Environment:
    """Where a peer's Python is, and what is to be in it.

    Attributes:
        name: of the folder.
        requirements: for pip; empty for our own Python.
    """

    name: str
    requirements: tuple[str, ...]
    folder: pathlib.Path = VENVS

    @property
    def python(self) -> pathlib.Path:
        """The interpreter that runs the peer."""
        if not self.requirements:
            return pathlib.Path(sys.executable)
        return self.folder / self.name / "bin" / "python"

    @property
    def is_ready(self) -> bool:
        """It is there, with these requirements and this version of Python."""
        stamp = self.folder / self.name / "installed"
        return not self.requirements or (stamp.exists() and stamp.read_text() == self._stamp())

    def _stamp(self) -> str:
        return "\n".join([sys.version.split()[0], str(self.folder.resolve()), *self.requirements])

    def make(self) -> None:
        """Install the peer unless it is there.

        Raises:
            UnavailableError: pip's own reason, without addresses.
        """
        if self.is_ready:
            return
        target = self.folder / self.name
        shutil.rmtree(target, ignore_errors=True)
        venv.create(target, with_pip=False, symlinks=True)
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--quiet"]
        pip += ["--disable-pip-version-check", "--no-input", *self.requirements]
        try:
            done = subprocess.run(
                pip, capture_output=True, text=True, timeout=INSTALL_S, stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": ""},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise UnavailableError(f"pip took over {INSTALL_S:.0f} s") from None
        if done.returncode:
            raise UnavailableError(f"pip install: {reason_of(done.stderr)}")
        (target / "installed").write_text(self._stamp())


def reason_of(stderr: str) -> str:
    """What pip said last that matters, in one line, without the address of a registry."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no reason given"]
    return _URL.sub("(address)", errors[-1].removeprefix("ERROR:").strip())[:300]
