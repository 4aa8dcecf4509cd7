"""``python -m gristmill.ledger --state DIR --listen ADDRESS``."""

import sys

from gristmill.ledger.app import serve
from gristmill.ledger.settings import from_process
from gristmill.wire.errors import RemoteError
from gristmill.wire.process import forbid_unpickling, told_once


def main() -> int:
    """Run a ledger with this process's options; an exit code."""
    forbid_unpickling("ledger")
    try:
        settings = from_process(sys.argv[1:])
    except RemoteError as error:
        print(told_once(str(error)), file=sys.stderr)
        return error.spec.exit_code
    return serve(settings)


if __name__ == "__main__":
    sys.exit(main())
