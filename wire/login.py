"""The login of this user: an address and a token, kept where only the user can read them."""

import os
import pathlib
import secrets
from collections.abc import Mapping

import msgspec

from gristmill.wire.errors import RemoteError

FILE_NAME = "login.json"


class Login(msgspec.Struct, frozen=True):
    """A grid on TCP and the token with which its user connects."""

    address: str
    token: str

    def __repr__(self) -> str:
        return f"Login({self.address!r}, ...)"


def login_path(environment: Mapping[str, str]) -> pathlib.Path:
    """``XDG_CONFIG_HOME/gristmill/login.json``, else below ``~/.config``."""
    home = environment.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return pathlib.Path(home) / "gristmill" / FILE_NAME


def read_login(environment: Mapping[str, str]) -> Login | None:
    """What ``gristmill login`` kept, if anything.

    Raises:
        RemoteError: ``UNAUTHORISED``: others can read the file, or it is none.
    """
    path = login_path(environment)
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(1 << 16)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if mode & 0o077:
        raise RemoteError(
            "UNAUTHORISED",
            f"{path} has mode {mode & 0o777:04o}: others can read the token",
            f"chmod 600 {path}; if somebody may have read it, ask for another token",
        )
    try:
        return msgspec.json.decode(text, type=Login)
    except msgspec.DecodeError:
        raise RemoteError("UNAUTHORISED", f"{path} is no login", "gristmill login") from None


def write_login(environment: Mapping[str, str], login: Login) -> pathlib.Path:
    """Keep it, mode 0600, whole or not at all; the file."""
    path = login_path(environment)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(beside, flags, 0o600), "wb") as file:
            file.write(msgspec.json.encode(login) + b"\n")
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        told = f"cannot write {path}: {error.strerror}"
        raise RemoteError("INVALID_SPEC", told, "set XDG_CONFIG_HOME, or mend the folder") from None
    return path


def token_for(environment: Mapping[str, str], address: str, given: str | None) -> str:
    """``given``, else ``GRISTMILL_TOKEN``, else that of the login if it is for this address, or "".

    Raises:
        RemoteError: as ``read_login``.
    """
    if given is not None:
        return given
    if environment.get("GRISTMILL_TOKEN") or address.startswith("ipc://"):
        return environment.get("GRISTMILL_TOKEN", "")
    login = read_login(environment)
    return login.token if login is not None and login.address == address else ""
