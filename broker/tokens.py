"""Tokens of clients: who says who it is, over a link that does not say it.

A token reads ``gm_<id>_<secret>``. The state folder's ``tokens`` file has a line for each: id,
sha-256 of the whole token, tenant, ``operator`` or ``-``. Only the hash is kept; the file is read
again when it changes, so a line taken out counts at the next HELLO. Over ``ipc://`` a client
without a token is ``local``; over TCP a token is required as soon as there is any.
"""

import hashlib
import hmac
import os
import pathlib
import re
import secrets
from typing import NamedTuple

from gristmill.wire import limits
from gristmill.wire.errors import RemoteError

FILE_NAME = "tokens"
_SECRET_BYTES = 16


class Principal(NamedTuple):
    """Who a token stands for."""

    tenant: str
    is_operator: bool


class Tokens:
    """The tokens of a state folder."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._path = folder / FILE_NAME
        self._seen: tuple[int, int, int] | None = None
        self._lines: dict[str, tuple[str, Principal]] = {}

    @property
    def has_any(self) -> bool:
        """Whether the grid has tokens at all."""
        self._look()
        return bool(self._lines)

    def check(self, token: str) -> Principal:
        """Who a token stands for.

        Raises:
            RemoteError: ``UNAUTHORISED`` naming the token's id, never its secret.
        """
        self._look()
        match = re.fullmatch(r"gm_([a-z0-9]{1,40})_([0-9a-f]{32})", token)
        if match is None:
            raise RemoteError("UNAUTHORISED", "the token does not read gm_<id>_<secret>")
        found = self._lines.get(match[1])
        if found is None or not hmac.compare_digest(found[0], _hash(token)):
            raise RemoteError("UNAUTHORISED", f"token {match[1]} is unknown or its secret wrong")
        return found[1]

    def _look(self) -> None:
        try:
            about = os.stat(self._path)
        except FileNotFoundError:
            self._seen, self._lines = None, {}
            return
        seen = (about.st_ino, about.st_mtime_ns, about.st_size)
        if seen == self._seen:
            return
        lines = {}
        for line in self._path.read_text().splitlines():
            words = line.split()
            if len(words) == 4 and not line.startswith("#"):
                lines[words[0]] = (words[1], Principal(words[2], words[3] == "operator"))
        self._seen, self._lines = seen, lines


def make_token(folder: pathlib.Path, tenant: str, is_operator: bool) -> str:
    """A new token of a tenant; the only time that its secret is seen.

    Raises:
        RemoteError: ``INVALID_SPEC`` when the tenant's name cannot stand in the file.
    """
    if not re.fullmatch(r"[\w.@-]+", tenant) or len(tenant) > limits.NAME_CHARS_MAX:
        raise RemoteError(
            "INVALID_SPEC",
            f"tenant is {tenant!r:.60}: letters, digits, '.', '-', '_' and '@' only,"
            f" at most {limits.NAME_CHARS_MAX}",
        )
    name = secrets.token_hex(4)
    token = f"gm_{name}_{secrets.token_hex(_SECRET_BYTES)}"
    line = f"{name} {_hash(token)} {tenant} {'operator' if is_operator else '-'}\n"
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    with os.fdopen(os.open(folder / FILE_NAME, flags, 0o600), "a") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
    return token


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
