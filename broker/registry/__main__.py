"""``python -m gristmill.broker.registry --state DIR --control ADDRESS --enrolment ADDRESS``."""

import sys

from gristmill.broker.registry.app import serve
from gristmill.broker.registry.settings import from_process
from gristmill.wire.process import run_service


def main() -> int:
    """Run a registry with this process's options; an exit code."""
    return run_service("registry", from_process, serve)


if __name__ == "__main__":
    sys.exit(main())
