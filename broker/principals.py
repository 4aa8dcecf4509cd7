"""Who may speak to this broker: the principals of its state folder, read again when they change.

A file has a line of JSON for each (``wire/registry.py``), and is replaced whole by whoever decides:
``principals`` by an operator of this host (``--new-token``), ``followed`` by the link to the
registry, whose word counts where both have a key. A broker that finds no registry goes on with what
it has.
"""

import logging
import os
import pathlib
import secrets
import threading
from collections.abc import Callable, Iterable

import msgspec

from gristmill.wire import limits
from gristmill.wire.curve import curve_public
from gristmill.wire.errors import RemoteError
from gristmill.wire.keys import BROKER_KEY, load_key
from gristmill.wire.registry import LIMIT_MAX, NO_LIMITS, SCOPES, Limits, Principal, Role
from gristmill.wire.tokens import Token, new_token
from gristmill.wire.units import parse_bytes

log = logging.getLogger("gristmill.broker.principals")

FILE_NAME = "principals"  #: of this host
FOLLOWED_NAME = "followed"  #: as the registry told them, see registry_link
LIMITS_NAME = "limits"  #: what an operator of this host set for keys of either file
_NAMES_TOLD = 10
#: which roles may connect to a port at all; what they may say there is each port's verb table
PORTS: dict[str, frozenset[Role]] = {
    "front": frozenset({"client", "operator", "portal"}),
    "back": frozenset({"worker"}),
}
#: why a principal is not heard, by its state: code, and words behind its name
_REFUSED = {
    "pending": ("NODE_PENDING", "is enrolled, and waits for an operator's approval"),
    "rejected": ("NODE_REFUSED", "was rejected"),
    "quarantined": ("NODE_PENDING", "is quarantined, and waits for its release"),
    "banned": ("NODE_REFUSED", "is banned"),
    "expired": ("KEY_EXPIRED", "was not approved in time"),
    "revoked": ("KEY_REVOKED", "was revoked"),
}
_decode = msgspec.json.Decoder(Principal).decode
_decode_limits = msgspec.json.Decoder(dict[str, Limits]).decode


class Principals:
    """See the module's text. The doorman's thread uses it, too.

    Args:
        fixed: principals of the settings, whatever the file says of their keys.
    """

    def __init__(self, folder: pathlib.Path, fixed: Iterable[Principal] = ()) -> None:
        self._paths = [folder / FILE_NAME, folder / FOLLOWED_NAME]
        self._limits = folder / LIMITS_NAME
        self._fixed = {one.public: one for one in fixed}
        self._lock = threading.Lock()
        self._seen: list[tuple[int, int, int] | None] = []  # of no file: read the first time
        self._on_refused: Callable[[str, Principal, str], None] | None = None
        self._by_public: dict[str, Principal] = {}
        self._by_curve: dict[bytes, Principal] = {}
        self._changed: set[str] = set()
        self.look()

    def look(self) -> set[str]:
        """Read the file if it changed; public keys of which anything is new since the last look."""
        self._read()
        with self._lock:
            changed, self._changed = self._changed, set()
        return changed

    def _read(self) -> None:
        """A file that makes no sense is logged, and what was known stays, until it is mended."""
        with self._lock:
            seen = [_stamp(path) for path in (*self._paths, self._limits)]
            if seen == self._seen:
                return
            self._seen = seen
            try:
                told = [one for path in self._paths for one in read(path)]
                found = {one.public: one for one in told} | self._fixed
                for public, own in read_limits(self._limits).items():
                    if public in found:
                        found[public] = msgspec.structs.replace(found[public], limits=own)
            except (RemoteError, OSError) as error:
                log.error("the principals cannot be read, those of before stay: %s", error)
                return
            before, self._by_public = self._by_public, found
            self._by_curve = {curve_public(public): one for public, one in found.items()}
            changed = {
                public
                for public in before.keys() | found.keys()
                if before.get(public) != found.get(public)
            }
            self._changed |= changed
            log.info("principals=%d changed=%d", len(found), len(changed))

    def find(self, public: str) -> Principal | None:
        """The principal of this key."""
        return self._by_public.get(public)

    def all(self) -> list[Principal]:
        """Every principal, by tenant and name."""
        return sorted(self._by_public.values(), key=lambda one: (one.tenant, one.name, one.public))

    def who(self, port: str, key: bytes, may_read: bool = True) -> str:
        """For the doorman: the public key of a CURVE key that may connect here, else nothing.

        Who is expired or revoked may connect, to be told so. ``may_read``: look for a new key in
        the file.
        """
        if may_read and key not in self._by_curve:
            self._read()  # it may be new
        found = self._by_curve.get(key)
        return found.public if found is not None and found.role in PORTS.get(port, ()) else ""

    def admit(self, public: str, utc_ms: int) -> Principal:
        """The principal, if it may speak now.

        Raises:
            RemoteError: with the reason; ``UNAUTHORISED`` for a key that is not known any more.
        """
        found = self.find(public)
        if found is None:
            raise RemoteError("UNAUTHORISED", f"the key {public:.16}... is not known here")
        if found.state in _REFUSED:
            code, words = _REFUSED[found.state]
            reason = f": {found.reason}" if found.reason else ""
            told = f"{found.name!r} {words}{reason}"
        elif found.expires_ms and found.expires_ms <= utc_ms:
            code, told = "KEY_EXPIRED", f"the key of {found.name!r} ended at its time"
        else:
            return found
        self.note_refused(code, found, told)
        raise RemoteError(code, told)

    def note_refused(self, code: str, who: Principal, why: str) -> None:
        """Somebody who is known was refused something: the audit log has it."""
        if self._on_refused is not None:
            self._on_refused(code, who, why)

    def tell_refused(self, hear: Callable[[str, Principal, str], None]) -> None:
        """``hear`` (code, who, why) of each refusal of somebody who is known."""
        self._on_refused = hear

    def nodes(self) -> list[Principal]:
        """All principals with the role of a worker."""
        return [one for one in self._by_public.values() if one.role == "worker"]


def parse_allow(text: str) -> Principal:
    """A principal of the settings: ``operator=KEY``, ``client:TENANT=KEY``, ``worker:NAME=KEY``.

    Raises:
        ValueError: the message shows what is accepted.
    """
    who, _, public = text.strip().rpartition("=")
    role, _, name = who.partition(":")
    if role not in ("operator", "client", "worker") or bool(name) == (role == "operator"):
        raise ValueError(
            f"{text!r:.100} lets nobody in; write operator=KEY, client:TENANT=KEY or"
            " worker:NAME=KEY"
        )
    try:
        curve_public(public)
    except RemoteError:
        raise ValueError(f"{public!r:.80} is no key of 64 hex characters") from None
    tenant = name if role == "client" else "local"
    return Principal(public, role, name or role, tenant, "active", scopes=list(SCOPES))  # type: ignore[arg-type]


def read(path: pathlib.Path) -> list[Principal]:
    """The principals of a file; none if there is no file.

    Raises:
        RemoteError: ``INVALID_SPEC`` naming the line that makes no sense.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(_decode(line))
            curve_public(found[-1].public)
        except (msgspec.DecodeError, RemoteError) as error:
            told = f"{path}, line {number}: {error}"
            raise RemoteError(
                "INVALID_SPEC", told, "restore the file, or take the line out"
            ) from None
    return found


def write(path: pathlib.Path, principals: Iterable[Principal]) -> None:
    """Replace the file whole, on the disk."""
    _replace(path, [msgspec.json.encode(one) for one in principals])


def _replace(path: pathlib.Path, lines: Iterable[bytes]) -> None:
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(beside, flags, 0o600), "wb") as file:
            for line in lines:
                file.write(line + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def make_token(
    folder: pathlib.Path, tenant: str, is_operator: bool, broker: str = "", **more: object
) -> str:
    """A new token, good at the broker of this folder from now on: for who has the folder anyway.

    ``broker``: its public key, where that is not in the folder. ``more``: other fields of the
    principal.

    Raises:
        RemoteError: ``INVALID_SPEC`` when the tenant's name is none, or the broker's key elsewhere.
    """
    if not tenant.isprintable() or "/" in tenant or not 0 < len(tenant) <= limits.NAME_CHARS_MAX:
        raise RemoteError(
            "INVALID_SPEC",
            f"tenant is {tenant!r:.60}: at most {limits.NAME_CHARS_MAX} printable characters,"
            " no '/'",
        )
    if not broker:
        if (folder / "journal.db").exists() and not (folder / BROKER_KEY).exists():
            raise RemoteError(
                "INVALID_SPEC",
                f"the key of this broker is not in {folder}: it has it as a credential",
                "give its public key: --broker-key HEX (GRISTMILL_STORE_KEY in keys.env)",
            )
        broker = load_key(folder / BROKER_KEY).verify_key.encode().hex()
    token: Token = new_token(secrets.token_hex(4), broker)
    role: Role = "operator" if is_operator else "client"
    made = Principal(token.public, role, token.name, tenant, "active", scopes=list(SCOPES))
    made = msgspec.structs.replace(made, **more)
    path = folder / FILE_NAME
    write(path, [*read(path), made])
    return token.text


def read_limits(path: pathlib.Path) -> dict[str, Limits]:
    """Public key to what an operator of this host set for it; nothing if there is no file.

    Raises:
        RemoteError: ``INVALID_SPEC``: the file makes no sense.
    """
    try:
        return _decode_limits(path.read_bytes())
    except FileNotFoundError:
        return {}
    except msgspec.DecodeError as error:
        told = f"{path}: {error}"
        raise RemoteError("INVALID_SPEC", told, "restore the file, or remove it") from None


def set_limits(folder: pathlib.Path, name: str, own: Limits) -> Principal:
    """Other limits for the key of this name, or public key; the broker follows within a second.

    Raises:
        RemoteError: ``INVALID_SPEC``: there is none, or more than one.
    """
    rows = [one for file in (FILE_NAME, FOLLOWED_NAME) for one in read(folder / file)]
    found = {one.public: one for one in rows if name in (one.name, one.public)}
    if len(found) != 1:
        there = ", ".join(sorted({one.name for one in rows})[:_NAMES_TOLD]) or "none"
        many = f"{len(found)} keys are" if found else "no key is"
        raise RemoteError(
            "INVALID_SPEC",
            f"{many} named {name!r:.80}; there are: {there}",
            "give the whole public key, as 'gristmill limits --json' shows it",
        )
    ((public, who),) = found.items()
    kept = read_limits(folder / LIMITS_NAME)
    kept.pop(public, None)
    if own != NO_LIMITS:
        kept[public] = own
    _replace(folder / LIMITS_NAME, [msgspec.json.encode(kept)])
    return msgspec.structs.replace(who, limits=own)


def parse_limits(text: str) -> Limits:
    """``requests_per_s=100,bytes_per_s=8M``; what is not named is the broker's.

    Raises:
        RemoteError: ``INVALID_SPEC`` that names every bad part, and what there is.

    >>> parse_limits("requests_per_s=100,bytes_per_s=8M").bytes_per_s
    8388608
    """
    values: dict[str, int] = {}
    bad = []
    for part in filter(None, map(str.strip, text.split(","))):
        field, _, value = part.partition("=")
        try:
            if field not in Limits.__struct_fields__:
                raise ValueError(field)
            values[field] = parse_bytes(value) if field.startswith("bytes") else _whole(value)
            if not 0 <= values[field] <= LIMIT_MAX:
                raise ValueError(value)
        except (ValueError, RemoteError):
            bad.append(part[:80])
    if bad:
        raise RemoteError(
            "INVALID_SPEC",
            f"no limits: {', '.join(map(repr, bad))}; there are"
            f" {', '.join(Limits.__struct_fields__)}, each a number from 0 (the broker's own)",
            "for instance requests_per_s=100,bytes_per_s=8M",
        )
    return Limits(**values)


def _whole(text: str) -> int:
    """Of digits 0 to 9 only."""
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(text)
    return int(text)


def add_node(folder: pathlib.Path, name: str, public: str, owner: str = "local") -> None:
    """A node that may work at the broker of this folder: for who has the folder anyway."""
    path = folder / FILE_NAME
    kept = [one for one in read(path) if one.public != public]
    write(path, [*kept, Principal(public, "worker", name, owner, "active")])


def _stamp(path: pathlib.Path) -> tuple[int, int, int] | None:
    try:
        about = os.stat(path)
    except FileNotFoundError:
        return None
    return about.st_ino, about.st_mtime_ns, about.st_size
