"""``python -m gristmill.ledger.payments --state DIR --ledger ADDRESS [--config FILE]``."""

import sys

from gristmill.ledger.payments.settings import from_process
from gristmill.ledger.payments.treasury import serve
from gristmill.wire.errors import RemoteError
from gristmill.wire.process import forbid_unpickling


def main() -> int:
    """Run a treasury with this process's options; an exit code."""
    forbid_unpickling("treasury")
    try:
        settings = from_process(sys.argv[1:])
    except RemoteError as error:
        print(error, file=sys.stderr)
        return error.spec.exit_code
    return serve(settings)


if __name__ == "__main__":
    sys.exit(main())
