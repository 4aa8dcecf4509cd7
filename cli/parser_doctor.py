"""The options of ``gristmill doctor``."""

from gristmill.cli.parser import Verbs, add_verb


def add(verbs: Verbs) -> None:
    """``gristmill doctor``."""
    parser = add_verb(
        verbs,
        "doctor",
        "doctor",
        "Say what this host can do, what is missing and the remedy; exit 78 if it cannot jail",
        more="Exit 1 for any other fault. A remedy is one line for a shell.",
    )
    parser.add_argument("--state", metavar="DIR", help="look at this folder (GRISTMILL_STATE)")
    parser.add_argument("--run", metavar="DIR", help="look for sockets here (GRISTMILL_RUN)")
    parser.add_argument(
        "--listen",
        metavar="ADDRESS",
        action="append",
        help="also try this address, which a process is to listen on; repeat it for others",
    )
