"""``python -m gristmill.ledger --state DIR --listen ADDRESS``."""

import sys

from gristmill.ledger.app import serve
from gristmill.ledger.settings import from_process
from gristmill.wire.process import run_service


def main() -> int:
    """Run a ledger with this process's options; an exit code."""
    return run_service("ledger", from_process, serve)


if __name__ == "__main__":
    sys.exit(main())
