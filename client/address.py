"""Where the broker is when nobody says it."""

import os

from gristmill.wire.login import read_login


def run_folder() -> str:
    """The 0700 folder of sockets of a grid on this machine."""
    if folder := os.environ.get("GRISTMILL_RUN"):
        return folder
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return os.path.join(runtime, "gristmill")
    return f"/tmp/gristmill-{os.getuid()}"


def default_address() -> str:
    """``$GRISTMILL_ADDRESS``, else that of ``gristmill login``, else that of ``gristmill up``."""
    if address := os.environ.get("GRISTMILL_ADDRESS"):
        return address
    login = read_login(os.environ)
    return login.address if login is not None else f"ipc://{run_folder()}/front"
