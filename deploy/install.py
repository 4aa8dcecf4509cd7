"""Writes what systemd needs for a grid on this host: units, users, folders, settings, keys.

All or nothing is decided before the first byte is written: a file that is there with other content
is a refusal that names it, and ``--force`` writes over it. Settings (``/etc/gristmill/*.env``) and
keys are a person's and are never written over; ``keys.env`` alone follows from the keys.

A host has a whole grid, or workers for a broker elsewhere (``Site.broker``). Between two hosts go
public halves and addresses only, never a secret: the broker's key to the workers' host, each
worker's key to the broker's (``/etc/gristmill/allow``, a line for each).
"""

import contextlib
import dataclasses
import ipaddress
import os
import re
import secrets
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from gristmill.wire.errors import RemoteError
from gristmill.wire.ids import is_digest
from gristmill.wire.keys import load_key
from gristmill.wire.tokens import Token

FOLDER = Path(__file__).parent
UNITS = "etc/systemd/system"
CREDENTIALS = "etc/credstore"
BROKER_KEY = f"{CREDENTIALS}/gristmill-broker.key"
OPERATOR_TOKEN = f"{CREDENTIALS}/gristmill-operator.token"
SERVICES = (
    "broker",
    "ledger",
    "store",
    "registry",
    "operator",
)  #: with a key each; so has each worker
KEYS_ENV = "keys.env"
ALLOW = "etc/gristmill/allow"  #: who else the broker lets in, as its option --allow has it
FRONT_PORT, BACK_PORT, STORE_PORT, ENROLMENT_PORT = 7031, 7032, 7034, 7035
LOOPBACK = "127.0.0.1"
_ALLOW_TEXT = "# Whom the broker lets in beside who has a key on this host: worker:NAME=KEY.\n"
#: where our file goes, below the root
TARGETS = {
    "gristmill.target": f"{UNITS}/gristmill.target",
    "gristmill-broker.service": f"{UNITS}/gristmill-broker.service",
    "gristmill-ledger.service": f"{UNITS}/gristmill-ledger.service",
    "gristmill-store.service": f"{UNITS}/gristmill-store.service",
    "gristmill-registry.service": f"{UNITS}/gristmill-registry.service",
    "gristmill-worker@.service": f"{UNITS}/gristmill-worker@.service",
    "gristmill.sysusers.conf": "etc/sysusers.d/gristmill.conf",
    "gristmill.tmpfiles.conf": "etc/tmpfiles.d/gristmill.conf",
    KEYS_ENV: f"etc/gristmill/{KEYS_ENV}",
    "broker.env": "etc/gristmill/broker.env",
    "ledger.env": "etc/gristmill/ledger.env",
    "store.env": "etc/gristmill/store.env",
    "registry.env": "etc/gristmill/registry.env",
    "worker.env": "etc/gristmill/worker.env",
}
#: of these, what a host of workers has
OF_WORKERS = (
    "gristmill.target",
    "gristmill-worker@.service",
    "gristmill.sysusers.conf",
    "gristmill.tmpfiles.conf",
    KEYS_ENV,
    "worker.env",
)
#: what the units hide from their processes (ProtectHome=, PrivateTmp=)
HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")
CHOOSE_PYTHON = (
    "python3 -m venv /opt/gristmill && /opt/gristmill/bin/pip install 'gristmill[all]', then "
    "/opt/gristmill/bin/gristmill deploy install"
)
_PREPARE = (
    "systemd-sysusers && systemd-tmpfiles --create gristmill.conf && systemctl daemon-reload && "
    "systemctl enable --now gristmill.target"
)


@dataclasses.dataclass(frozen=True, slots=True)
class Site:
    """What the files are made for: an interpreter, this host's name, and the workers on it.

    ``address``: the IP address at which this host's broker is for others. ``broker`` and
    ``broker_key``: of a broker elsewhere; this host has workers alone. ``allow``: who else this
    host's broker lets in, ``worker:NAME=KEY``.
    """

    python: str
    host: str
    workers: tuple[str, ...] = ("1",)
    address: str = LOOPBACK
    broker: str = ""
    broker_key: str = ""
    allow: tuple[str, ...] = ()

    @property
    def services(self) -> tuple[str, ...]:
        """What of this host has a key beside its workers."""
        return () if self.broker else SERVICES

    def keys(self) -> dict[str, str]:
        """What each key is for, to its file in the folder of credentials."""
        names = (*self.services, *(f"worker-{name}" for name in self.workers))
        return {name: f"{CREDENTIALS}/gristmill-{name}.key" for name in names}

    def targets(self) -> dict[str, str]:
        """Those of ``TARGETS`` that this host has."""
        return {name: TARGETS[name] for name in (OF_WORKERS if self.broker else TARGETS)}

    def next_command(self) -> str:
        """After the files are there."""
        rooms = () if self.broker else ("ledger", "store", "registry", "broker")
        units = [f"gristmill-{room}" for room in rooms]
        return " ".join([_PREPARE, *units, *(f"gristmill-worker@{one}" for one in self.workers)])

    def settings(self) -> dict[str, str]:
        """What of the settings files depends on the site: placeholder to text."""
        here = _in_url(self.address)
        scheme = "http" if here == LOOPBACK else "https"
        return {
            "@ADDRESS@": here,
            "@BROKER@": self.broker or f"tcp://{here}:{BACK_PORT}",
            "@STORE@": f"{scheme}://{here}:{STORE_PORT}",
        }


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
    for placeholder, value in site.settings().items():
        text = text.replace(placeholder, value)
    publics = {**publics, "broker": site.broker_key} if site.broker else publics
    for service in SERVICES:
        text = text.replace(f"@{service.upper()}_KEY@", publics.get(service, ""))
    if name == KEYS_ENV and site.broker:  # of the others nobody is here
        lines = text.splitlines(keepends=True)
        text = "".join(line for line in lines if line.startswith(("#", "GRISTMILL_WORKER_")))
    allowed = [f"operator={publics.get('operator', '')}", *workers_of(site, publics), *site.allow]
    return text.replace("@BROKER_ALLOW@", ",".join(allowed))


def workers_of(site: Site, publics: Mapping[str, str]) -> list[str]:
    """This host's workers as a broker's ``--allow`` has them."""
    return [
        f"worker:{site.host}-{key.removeprefix('worker-')}={public}"
        for key, public in sorted(publics.items())
        if key.startswith("worker-")
    ]


def check_site(root: Path, site: Site) -> None:
    """The site makes sense, and is of the same kind as what is there.

    Raises:
        RemoteError: ``INVALID_SPEC``, with what to type.
    """
    try:
        is_one = not ipaddress.ip_address(site.address.strip("[]")).is_unspecified
    except ValueError:
        is_one = False
    if not is_one:  # others are told it: it is not that of every network
        raise RemoteError(
            "INVALID_SPEC",
            f"--address is {site.address!r:.80}; it must be an IP address of this host",
            "ip -brief address",
        )
    if bool(site.broker) != bool(site.broker_key):
        missing, given = ("broker-key", "broker") if site.broker else ("broker", "broker-key")
        raise RemoteError(
            "INVALID_SPEC",
            f"--{given} is given, --{missing} is not: workers connect to an address, and only to "
            "who has this key",
            "'gristmill deploy install' on the broker's host tells both",
        )
    if not site.broker:
        _check_kind(root, site)
        return
    match = re.fullmatch(r"tcp://(\[[0-9a-f:]+\]|[A-Za-z0-9.-]+):([0-9]{1,5})", site.broker)
    if not match or not 0 < int(match[2]) < 65_536:
        raise RemoteError(
            "INVALID_SPEC",
            f"--broker is {site.broker!r:.80}; write tcp://HOST:{BACK_PORT}",
            "'gristmill deploy install' on the broker's host tells it",
        )
    if site.allow or site.address != LOOPBACK:
        raise RemoteError(
            "INVALID_SPEC",
            "--allow and --address are of the broker's host; --broker makes this a host of workers",
        )
    if not is_digest(site.broker_key):
        raise RemoteError(
            "INVALID_SPEC",
            f"--broker-key is {site.broker_key!r:.80}; it must be 64 hex characters",
            "'gristmill deploy install' on the broker's host tells it",
        )
    if (root / BROKER_KEY).exists():
        raise RemoteError(
            "INVALID_SPEC",
            f"this host has a broker of its own ({root / BROKER_KEY}): its workers work for it",
            "leave --broker and --broker-key out",
        )


def as_there(root: Path, site: Site) -> Site:
    """The site with what was not said taken from what is there: an upgrade needs no option."""
    if not (root / BROKER_KEY).exists():
        found = _value(root / TARGETS[KEYS_ENV], "GRISTMILL_WORKER_BROKER_KEY")
        broker = _value(root / TARGETS["worker.env"], "GRISTMILL_WORKER_BROKER")
        if found and broker and not site.broker and not site.broker_key:
            return dataclasses.replace(site, broker=broker, broker_key=found)
        return site
    front = _value(root / TARGETS["broker.env"], "GRISTMILL_BROKER_FRONT")
    match = re.fullmatch(r"tcp://([0-9.]+|\[[0-9a-f:]+\]):[0-9]+", front)
    if not match or site.broker or site.address != LOOPBACK:
        return site
    return dataclasses.replace(site, address=match[1])


def _check_kind(root: Path, site: Site) -> None:
    """A host of workers does not become a broker's because an option was forgotten."""
    found = _value(root / TARGETS[KEYS_ENV], "GRISTMILL_WORKER_BROKER_KEY")
    if found and not (root / BROKER_KEY).exists():
        broker = _value(root / TARGETS["worker.env"], "GRISTMILL_WORKER_BROKER") or "ADDRESS"
        workers = "".join(f" --worker {name}" for name in site.workers)
        raise RemoteError(
            "INVALID_SPEC",
            f"this host's workers work for the broker at {broker}; it has none of its own",
            f"gristmill deploy install --broker {broker} --broker-key {found}{workers}",
        )


def check_settings(root: Path, site: Site) -> None:
    """Settings that are there, and are never written over, agree with what was asked for.

    Raises:
        RemoteError: ``FORBIDDEN`` with each line that a person must change.
    """
    wanted = {}
    if site.broker:
        wanted["worker.env", "GRISTMILL_WORKER_BROKER"] = site.broker
    elif site.address != LOOPBACK:
        here = _in_url(site.address)
        for name, port in (("FRONT", FRONT_PORT), ("BACK", BACK_PORT)):
            wanted["broker.env", f"GRISTMILL_BROKER_{name}"] = f"tcp://{here}:{port}"
        enrolment = f"tcp://{here}:{ENROLMENT_PORT}"
        wanted["registry.env", "GRISTMILL_REGISTRY_ENROLMENT"] = enrolment
        store = f"https://{here}:{STORE_PORT}"
        wanted["broker.env", "GRISTMILL_BROKER_STORE"] = store
        wanted["store.env", "GRISTMILL_STORE_LISTEN"] = store
    other = []
    for (file, name), value in wanted.items():
        path = root / TARGETS[file]
        found = _value(path, name)
        if path.exists() and found != value:
            other.append((path, f"{name}={value}", found or "nothing"))
    if other:
        raise RemoteError(
            "FORBIDDEN",
            "; ".join(f"{path} has {found} for {line}" for path, line, found in other)
            + "; settings are a person's, nothing was written",
            "change it there, then again",
        )


def _value(path: Path, name: str) -> str:
    """A setting of a file, or nothing."""
    lines = _text(path).splitlines()
    found = [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]
    return found[-1].strip() if found else ""


def _text(path: Path) -> str:
    """Of a file, or nothing."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _in_url(address: str) -> str:
    bare = address.strip("[]")
    return f"[{bare}]" if ":" in bare else bare


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


def workers_there(root: Path) -> list[str]:
    """The workers that have keys; where nothing is installed yet, one is to have."""
    publics = known_keys(root)
    names = [name.removeprefix("worker-") for name in publics if name.startswith("worker-")]
    return names or ([] if "broker" in publics else ["1"])


def allowed(root: Path) -> list[str]:
    """Whom the broker of this host lets in beside who has a key here."""
    lines = [line.strip() for line in _text(root / ALLOW).splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def plan(root: Path, site: Site) -> list[Step]:
    """What there is to do, and what stands in the way; changes nothing.

    Raises:
        RemoteError: as ``check_site`` and ``check_settings``.
    """
    check_site(root, site)
    check_settings(root, site)
    publics = known_keys(root)
    before = allowed(root)
    more = [line for line in dict.fromkeys(site.allow) if line not in before]
    site = dataclasses.replace(site, allow=(*before, *more))
    steps = [
        Step(root / target, "keep" if name in publics else "write", "")
        for name, target in site.keys().items()
    ]
    if not site.broker:
        token = root / OPERATOR_TOKEN
        steps.append(Step(token, "keep" if token.exists() else "write", ""))
    if site.allow:
        text = _text(root / ALLOW) or _ALLOW_TEXT
        text = f"{text.rstrip()}\n" + "".join(f"{line}\n" for line in more)
        steps.append(Step(root / ALLOW, "write" if more else "same", text))
    for name, target in site.targets().items():
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
            elif step.act == "write":
                _write(step.path, _operator_token(root), 0o600)
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


def elsewhere(root: Path, site: Site) -> str:
    """What is typed on another host, if there is one; after the files are there."""
    publics = known_keys(root)
    if site.broker:
        options = " ".join(f"--allow {one}" for one in workers_of(site, publics))
        return f"gristmill deploy install {options} && systemctl restart gristmill-broker"
    here = _in_url(site.address)
    if here == LOOPBACK:
        return ""
    return (
        f"gristmill deploy install --broker tcp://{here}:{BACK_PORT} "
        f"--broker-key {publics.get('broker', 'KEY')}"
    )


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
