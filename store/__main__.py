"""``python -m gristmill.store --state DIR --listen ADDRESS --key HEX``."""

import sys

from gristmill.store.app import serve
from gristmill.store.settings import from_process
from gristmill.wire.errors import RemoteError
from gristmill.wire.process import forbid_unpickling, told_once


def main() -> int:
    """Run a store with this process's options; an exit code."""
    forbid_unpickling("store")
    try:
        settings = from_process(sys.argv[1:])
    except RemoteError as error:
        print(told_once(str(error)), file=sys.stderr)
        return error.spec.exit_code
    return serve(settings)


if __name__ == "__main__":
    sys.exit(main())
