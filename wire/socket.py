"""The one way in which every process here sets up a ZeroMQ address.

TCP is accepted on loopback only where there are no keys, and ipc only under a directory that is
ours alone.
"""

import os
import re

from gristmill.wire.errors import RemoteError

IPC_PATH_BYTES_MAX = 107  #: sun_path


def check_listen_address(address: str, has_keys: bool = False, for_group: bool = False) -> str:
    """The address itself, if a process may listen on it.

    ``has_keys``: it knows who connects. ``for_group``: the folder's group may, too.

    Raises:
        RemoteError: ``NOT_LOOPBACK`` for TCP elsewhere than loopback or an ipc directory open to
            others; ``INVALID_SPEC`` for anything that is no address.
    """
    if address.startswith("ipc://"):
        path = address.removeprefix("ipc://")
        if len(os.fsencode(path)) > IPC_PATH_BYTES_MAX:
            raise RemoteError(
                "INVALID_SPEC",
                f"{address} has a path of {len(path)} characters; limit {IPC_PATH_BYTES_MAX}",
                "choose a shorter folder with --state or XDG_RUNTIME_DIR",
            )
        folder = os.path.dirname(path) or "."
        others = 0o027 if for_group else 0o077
        if os.path.isdir(folder) and os.stat(folder).st_mode & others:
            raise RemoteError(
                "NOT_LOOPBACK", f"{folder} is open to other users", f"chmod 700 {folder}"
            )
        return address
    match = re.fullmatch(r"tcp://(\[[0-9a-f:]+\]|[^:]+):([0-9]{1,5}|\*)", address)
    if not match:
        raise RemoteError(
            "INVALID_SPEC",
            f"{address!r} is not an address; write ipc:///path or tcp://HOST:7031",
        )
    host = match[1]
    if has_keys:
        return address
    if not (host == "localhost" or host == "[::1]" or re.fullmatch(r"127(\.[0-9]{1,3}){3}", host)):
        raise RemoteError("NOT_LOOPBACK", f"{address} is not on loopback")
    return address
