"""``python -m gristmill.ledger.settlement --state DIR --ledger ADDRESS --config FILE``."""

import sys

from gristmill.ledger.settlement.process import serve
from gristmill.ledger.settlement.settings import from_process
from gristmill.wire.process import run_service


def main() -> int:
    """Run a settlement with this process's options; an exit code."""
    return run_service("settlement", from_process, serve)


if __name__ == "__main__":
    sys.exit(main())
