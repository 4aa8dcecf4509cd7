"""Addresses of a store, and how one listens on them.

``unix:///path``, ``http://127.0.0.1:PORT``, or ``https://HOST:PORT#KEY`` for other hosts, which
know the store by its public key; without ``#KEY`` where the store itself is told to listen.
"""

import os
import pathlib
import re
import socket

from gristmill.wire.errors import RemoteError

UNIX = "unix://"
_SEND_BYTES = 1 << 20  #: on their way on a unix socket: who sends and who takes wake less often
_PATH_BYTES_MAX = 107  #: sun_path
_HTTP = re.compile(r"http://(\[[0-9a-f:]+\]|[^:/\[\]]+):([0-9]{1,5})/?")
_HTTPS = re.compile(r"https://(\[[0-9a-f:]+\]|[^:/\[\]#]+):([0-9]{1,5})/?(?:#([0-9a-f]{64}))?")


def parse_address(address: str) -> tuple[str, int]:
    """(path of a unix socket, -1) or (host, port).

    Raises:
        RemoteError: ``INVALID_SPEC``.
    """
    if address.startswith(UNIX + "/"):
        path = address.removeprefix(UNIX)
        if len(os.fsencode(path)) > _PATH_BYTES_MAX:
            raise RemoteError(
                "INVALID_SPEC",
                f"{address} has a path of {len(path)} characters; a socket's may have "
                f"{_PATH_BYTES_MAX}",
                "choose a shorter folder with --state or XDG_RUNTIME_DIR",
            )
        return path, -1
    match = _HTTP.fullmatch(address) or _HTTPS.fullmatch(address)
    if match is None or int(match[2]) > 65_535:
        raise RemoteError(
            "INVALID_SPEC",
            f"{address!r} is no store's address; write unix:///path, http://127.0.0.1:7034 or"
            " https://HOST:7034#KEY",
        )
    return match[1].strip("[]"), int(match[2])


def key_of(address: str) -> str:
    """The public key of a store on another host, hex; nothing for a store on this host.

    Raises:
        RemoteError: ``INVALID_SPEC``: it is on another host, and has no key.
    """
    if not address.startswith("https://"):
        return ""
    match = _HTTPS.fullmatch(address)
    if match is None or not match[3]:
        raise RemoteError(
            "INVALID_SPEC",
            f"{address!r} has no key of the store; write https://HOST:7034#KEY",
            "python -m gristmill.store --print-key",
        )
    return match[3]


def listen(address: str) -> tuple[socket.socket, str]:
    """A listening socket, and the address with the port that it got.

    Raises:
        RemoteError: ``NOT_LOOPBACK`` for TCP elsewhere, or a unix socket in a folder that others
            may enter; ``INVALID_SPEC`` when somebody listens there already.
    """
    host, port = parse_address(address)
    if port < 0:
        return _listen_unix(pathlib.Path(host)), address
    is_secured = address.startswith("https://")
    if not is_secured and not (
        host in ("localhost", "::1") or re.fullmatch(r"127(\.[0-9]{1,3}){3}", host)
    ):
        raise RemoteError(
            "NOT_LOOPBACK", f"{address} is not on loopback", "https://HOST:PORT, or 127.0.0.1"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        raise _taken(address, error) from None
    shown = f"[{host}]" if ":" in host else host
    scheme = "https" if is_secured else "http"
    return listener, f"{scheme}://{shown}:{listener.getsockname()[1]}"


def widen(connection: socket.socket) -> None:
    """Let more bytes be on their way on a unix socket, as far as the host allows."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)


def _listen_unix(path: pathlib.Path) -> socket.socket:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.parent.stat()
    if found.st_mode & 0o077 or found.st_uid != os.geteuid():
        raise RemoteError(
            "NOT_LOOPBACK", f"{path.parent} is open to other users", f"chmod 700 {path.parent}"
        )
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket() and _is_dead(path):
            path.unlink()
        listener.bind(str(path))
        listener.listen(256)
    except OSError as error:
        listener.close()
        raise _taken(f"{UNIX}{path}", error) from None
    return listener


def _is_dead(path: pathlib.Path) -> bool:
    """Whether a socket was left behind by a process that is gone."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
    return False


def _taken(address: str, error: OSError) -> RemoteError:
    return RemoteError(
        "INVALID_SPEC",
        f"cannot listen on {address}: {error.strerror or error}",
        "end the process that has it, or choose another address with --listen",
    )
