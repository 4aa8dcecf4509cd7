"""``python -m gristmill.store --state DIR --listen ADDRESS --key HEX``."""

import sys

from gristmill.store.app import serve
from gristmill.store.settings import from_process
from gristmill.wire.process import run_service


def main() -> int:
    """Run a store with this process's options; an exit code."""
    return run_service("store", from_process, serve)


if __name__ == "__main__":
    sys.exit(main())
