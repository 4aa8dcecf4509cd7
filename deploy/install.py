"""Writes what systemd needs for a grid on this host: units, users, folders, settings, keys.

All or nothing is decided before the first byte is written: a file that is there with other content
is a refusal that names it, and ``--force`` writes over it. Settings (``/etc/gristmill/*.env``) and
keys are a person's and are never written over; ``keys.env`` alone follows from the keys.
"""

import contextlib
import dataclasses
import os
import secrets
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from gristmill.wire.errors import RemoteError
from gristmill.wire.keys import load_key
from gristmill.wire.tokens import Token

FOLDER = Path(__file__).parent
UNITS = "etc/systemd/system"
CREDENTIALS = "etc/credstore"
BROKER_KEY = f"{CREDENTIALS}/gristmill-broker.key"
OPERATOR_TOKEN = f"{CREDENTIALS}/gristmill-operator.token"
SERVICES = ("broker", "ledger", "operator")  #: with a key each; so has each worker
KEYS_ENV = "keys.env"
#: where our file goes, below the root
TARGETS = {
    "gristmill.target": f"{UNITS}/gristmill.target",
    "gristmill-broker.service": f"{UNITS}/gristmill-broker.service",
    "gristmill-ledger.service": f"{UNITS}/gristmill-ledger.service",
    "gristmill-store.service": f"{UNITS}/gristmill-store.service",
    "gristmill-worker@.service": f"{UNITS}/gristmill-worker@.service",
    "gristmill.sysusers.conf": "etc/sysusers.d/gristmill.conf",
    "gristmill.tmpfiles.conf": "etc/tmpfiles.d/gristmill.conf",
    KEYS_ENV: f"etc/gristmill/{KEYS_ENV}",
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
class Site:
    """What the files are made for: an interpreter, this host's name, and the workers on it."""

    python: str
    host: str
    workers: tuple[str, ...] = ("1",)

    def keys(self) -> dict[str, str]:
        """What each key is for, to its file in the folder of credentials."""
        names = (*SERVICES, *(f"worker-{name}" for name in self.workers))
        return {name: f"{CREDENTIALS}/gristmill-{name}.key" for name in names}


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One file: ``act`` is ``write``, ``same`` (it is there), ``keep`` (a person's) or ``differs``.

    ``text`` is empty for a key, which is made where it is missing.
    """

    path: Path
    act: str
    text: str


def text_of(name: str, site: Site, publics: Mapping[str, str]) -> str:
    """One of our files as it is written; ``publics``: what each key is for, to its public half.

    Raises:
        RemoteError: ``INVALID_SPEC``: no file of ours has this name.
    """
    if name not in TARGETS:
        raise RemoteError(
            "INVALID_SPEC", f"{name!r} is not shipped", f"known are {', '.join(TARGETS)}"
        )
    text = (FOLDER / name).read_text().replace("@PYTHON@", site.python)
    for service in SERVICES:
        text = text.replace(f"@{service.upper()}_KEY@", publics.get(service, ""))
    workers = [
        f"worker:{site.host}-{key.removeprefix('worker-')}={public}"
        for key, public in sorted(publics.items())
        if key not in SERVICES
    ]
    allowed = ",".join([f"operator={publics.get('operator', '')}", *workers])
    return text.replace("@BROKER_ALLOW@", allowed)


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


def known_keys(root: Path) -> dict[str, str]:
    """What each key that is there is for, to its public half: also of workers of earlier times."""
    found = {}
    folder = root / CREDENTIALS
    for path in sorted(folder.glob("gristmill-*.key")) if folder.is_dir() else []:
        name = path.name.removeprefix("gristmill-").removesuffix(".key")
        if name in SERVICES or name.startswith("worker-"):
            found[name] = load_key(path).verify_key.encode().hex()
    return found


def plan(root: Path, site: Site) -> list[Step]:
    """What there is to do, and what stands in the way; changes nothing."""
    publics = known_keys(root)
    steps = [
        Step(root / target, "keep" if name in publics else "write", "")
        for name, target in site.keys().items()
    ]
    token = root / OPERATOR_TOKEN
    steps.append(Step(token, "keep" if token.exists() else "write", ""))
    for name, target in TARGETS.items():
        path = root / target
        text = text_of(name, site, publics)
        try:
            found = path.read_text()
        except FileNotFoundError:
            act = "write"
        except (OSError, UnicodeDecodeError):
            act = "differs"
        else:
            act = "same" if found == text else _act_of(name)
        steps.append(Step(path, act, text))
    return steps


def _act_of(name: str) -> str:
    """What is done to a file that is there with other content."""
    if name == KEYS_ENV:
        return "write"
    return "keep" if name.endswith(".env") else "differs"


def install(root: Path, site: Site, *, is_forced: bool) -> list[Step]:
    """Write it; what was done.

    Raises:
        RemoteError: ``FORBIDDEN``: a file is there with other content, or we may not write.
    """
    steps = plan(root, site)
    differing = [step.path for step in steps if step.act == "differs"]
    if differing and not is_forced:
        raise RemoteError(
            "FORBIDDEN",
            f"there with other content: {', '.join(map(str, differing))}; nothing was written",
            "compare with 'gristmill deploy show NAME'; --force writes over them",
        )
    try:
        made = [step for step in steps if not step.text]
        for step in made:
            if step.act == "write" and step.path.suffix == ".key":
                load_key(step.path)
        if made[-1].act == "write":
            _write(made[-1].path, _operator_token(root), 0o600)
        steps = [*made, *plan(root, site)[len(made) :]]  # with the public halves
        for step in steps[len(made) :]:
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


def _operator_token(root: Path) -> str:
    """The operator's key as a token for the broker."""
    key = load_key(root / f"{CREDENTIALS}/gristmill-operator.key")
    broker = load_key(root / BROKER_KEY).verify_key.encode().hex()
    return f"{Token('operator', key, broker).text}\n"


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    """Beside it first: systemd never reads half a unit."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with os.fdopen(handle, "w") as file:
            file.write(text)
            os.fchmod(file.fileno(), mode)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
