"""Where the broker is when nobody says it."""

import os


def run_folder() -> str:
    """The 0700 folder of sockets of a grid on this machine."""
    if folder := os.environ.get("GRISTMILL_RUN"):
        return folder
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return os.path.join(runtime, "gristmill")
    return f"/tmp/gristmill-{os.getuid()}"


def default_address() -> str:
    """``$GRISTMILL_ADDRESS``, else the front of the grid that ``gristmill up`` starts."""
    return os.environ.get("GRISTMILL_ADDRESS") or f"ipc://{run_folder()}/front"
