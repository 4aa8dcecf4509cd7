"""``python -m gristmill.ledger.payments --state DIR --ledger ADDRESS [--config FILE]``."""

import sys

from gristmill.ledger.payments.settings import from_process
from gristmill.ledger.payments.treasury import serve
from gristmill.wire.process import run_service


def main() -> int:
    """Run a treasury with this process's options; an exit code."""
    return run_service("treasury", from_process, serve)


if __name__ == "__main__":
    sys.exit(main())
