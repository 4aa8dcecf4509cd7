"""``python -m gristmill.broker.registry --state DIR --control ADDRESS --enrolment ADDRESS``."""

import sys

from gristmill.broker.registry.app import serve
from gristmill.broker.registry.settings import from_process
from gristmill.wire.errors import RemoteError
from gristmill.wire.process import forbid_unpickling


def main() -> int:
    """Run a registry with this process's options; an exit code."""
    forbid_unpickling("registry")
    try:
        settings = from_process(sys.argv[1:])
    except RemoteError as error:
        print(error, file=sys.stderr)
        return error.spec.exit_code
    return serve(settings)


if __name__ == "__main__":
    sys.exit(main())
