"""Writes what systemd needs for a grid on this host: units, users, folders, settings, one key.

All or nothing is decided before the first byte is written: a file that is there with other content
is a refusal that names it, and ``--force`` writes over it. Settings (``/etc/gristmill/*.env``) and
the broker's key are a person's and are never written over.
"""

import contextlib
import dataclasses
import os
import secrets
import stat
from collections.abc import Sequence
from pathlib import Path

from gristmill.wire.errors import RemoteError
from gristmill.wire.keys import load_key

FOLDER = Path(__file__).parent
UNITS = "etc/systemd/system"
BROKER_KEY = "etc/credstore/gristmill-broker.key"
#: where our file goes, below the root
TARGETS = {
    "gristmill.target": f"{UNITS}/gristmill.target",
    "gristmill-broker.service": f"{UNITS}/gristmill-broker.service",
    "gristmill-ledger.service": f"{UNITS}/gristmill-ledger.service",
    "gristmill-store.service": f"{UNITS}/gristmill-store.service",
    "gristmill-worker@.service": f"{UNITS}/gristmill-worker@.service",
    "gristmill.sysusers.conf": "etc/sysusers.d/gristmill.conf",
    "gristmill.tmpfiles.conf": "etc/tmpfiles.d/gristmill.conf",
    "broker.env": "etc/gristmill/broker.env",
    "ledger.env": "etc/gristmill/ledger.env",
    "store.env": "etc/gristmill/store.env",
    "worker.env": "etc/gristmill/worker.env",
}
#: what the units hide from their processes (ProtectHome=, PrivateTmp=)
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
CHOOSE_PYTHON = (
    "python3 -m venv /opt/gristmill && /opt/gristmill/bin/pip install 'gristmill[all]', then "
    "/opt/gristmill/bin/gristmill deploy install"
)
#: after the files are there
NEXT = (
    "systemd-sysusers && systemd-tmpfiles --create gristmill.conf && systemctl daemon-reload && "
    "systemctl enable --now gristmill.target gristmill-ledger gristmill-store gristmill-broker "
    "gristmill-worker@1"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One file: ``act`` is ``write``, ``same`` (it is there), ``keep`` (a person's) or ``differs``.

    ``text`` is empty for a key, which is made where it is missing.
    """

    path: Path
    act: str
    text: str


def text_of(name: str, python: str, broker_key: str) -> str:
    """One of our files as it is written.

    Raises:
        RemoteError: ``INVALID_SPEC``: no file of ours has this name.
    """
    if name not in TARGETS:
        raise RemoteError(
            "INVALID_SPEC", f"{name!r} is not shipped", f"known are {', '.join(TARGETS)}"
        )
    text = (FOLDER / name).read_text()
    return text.replace("@PYTHON@", python).replace("@BROKER_KEY@", broker_key)


def check_python(python: str) -> None:
    """The interpreter can be run by the users of the units, whose view of the host is narrower.

    Raises:
        RemoteError: ``INVALID_SPEC``: which folder stands in the way, and what to type.
    """
    path = Path(os.path.abspath(python))
    if any(part.isspace() or part in "%$\"'\\" for part in str(path)):
        raise RemoteError(
            "INVALID_SPEC", f"{path} has characters that a unit cannot take", CHOOSE_PYTHON
        )
    if not os.access(path, os.X_OK):
        raise RemoteError("INVALID_SPEC", f"{path} is not an interpreter", CHOOSE_PYTHON)
    for start in dict.fromkeys((path, path.resolve())):
        hidden = next((at for at in HIDDEN if start.is_relative_to(at)), None)
        if hidden:
            raise RemoteError(
                "INVALID_SPEC",
                f"{start} is below {hidden}, which the units' processes cannot see",
                CHOOSE_PYTHON,
            )
        for above in start.parents:
            if not above.stat().st_mode & stat.S_IXOTH:
                raise RemoteError(
                    "INVALID_SPEC",
                    f"{above} has mode {above.stat().st_mode & 0o777:04o}: the users of the units "
                    f"cannot reach {start}",
                    f"chmod o+x {above}, or: {CHOOSE_PYTHON}",
                )


def plan(root: Path, python: str) -> list[Step]:
    """What there is to do, and what stands in the way; changes nothing."""
    key_path = root / BROKER_KEY
    broker_key = ""
    if key_path.exists():
        broker_key = load_key(key_path).verify_key.encode().hex()
    steps = [Step(key_path, "keep" if broker_key else "write", "")]
    for name, target in TARGETS.items():
        path = root / target
        text = text_of(name, python, broker_key)
        try:
            found = path.read_text()
        except FileNotFoundError:
            act = "write"
        except (OSError, UnicodeDecodeError):
            act = "differs"
        else:
            act = "same" if found == text else "keep" if name.endswith(".env") else "differs"
        steps.append(Step(path, act, text))
    return steps


def install(root: Path, python: str, *, is_forced: bool) -> list[Step]:
    """Write it; what was done.

    Raises:
        RemoteError: ``FORBIDDEN``: a file is there with other content, or we may not write.
    """
    steps = plan(root, python)
    differing = [step.path for step in steps if step.act == "differs"]
    if differing and not is_forced:
        raise RemoteError(
            "FORBIDDEN",
            f"there with other content: {', '.join(map(str, differing))}; nothing was written",
            "compare with 'gristmill deploy show NAME'; --force writes over them",
        )
    try:
        if steps[0].act == "write":
            load_key(steps[0].path)
            steps[1:] = plan(root, python)[1:]  # with its public half
        for step in steps[1:]:
            if step.act in ("write", "differs"):
                _write(step.path, step.text)
    except OSError as error:
        raise RemoteError(
            "FORBIDDEN",
            f"cannot write {error.filename}: {error.strerror}",
            "run it as root, or give --root DIR",
        ) from None
    return steps


def told(steps: Sequence[Step]) -> list[tuple[str, str]]:
    """(act, path) of each, in the words for a person."""
    words = {"write": "written", "differs": "replaced", "same": "unchanged", "keep": "kept"}
    return [(words[step.act], str(step.path)) for step in steps]


def _write(path: Path, text: str) -> None:
    """Beside it first: systemd never reads half a unit."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with os.fdopen(handle, "w") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
