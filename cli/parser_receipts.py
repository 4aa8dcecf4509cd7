"""The options of ``receipt``, ``verify`` and ``audit``, for ``cli/parser.py``."""

import argparse
import re
from collections.abc import Callable
from typing import Any

_PIN = re.compile(r"(ledger|broker)=([0-9a-f]{64})")
_KEY_HELP = "trust this public key of the ledger or the broker only (kind=64 hex digits)"


def add(verbs: Any, verb: Callable[..., Any]) -> None:
    """Adds the verbs; ``verb`` makes one of the command."""
    receipt = verb(
        verbs,
        "receipt",
        "receipts",
        "Write a job's receipts, signed and with their proofs, as a file that stands alone",
    )
    receipt.add_argument("job", metavar="JOB", help="a job, j17, or one of its subtasks, j17/3")
    receipt.add_argument("-o", "--out", metavar="FILE", help="write here instead of stdout")
    _wait(receipt)
    verify = verb(
        verbs,
        "verify",
        "receipts",
        "Check a receipt file, offline; exit 1 with the field that is false",
        has_grid=False,
    )
    verify.add_argument("file", metavar="FILE", help="of 'gristmill receipt'; - for stdin")
    verify.add_argument(
        "--key", action="append", type=_pin, default=[], metavar="KIND=KEY", help=_KEY_HELP
    )
    audit = verbs.add_parser(
        "audit",
        help="Hold a job's bill against its receipts",
        description="What was charged is what was proven, or the difference is named.",
    )
    actions = audit.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    prove = verb(
        actions,
        "prove",
        "receipts",
        "Show that a job's receipts, each of them proven, are its charges; exit 1 if not",
    )
    prove.add_argument("job", metavar="JOB", help="a job, such as j17")
    prove.add_argument(
        "--key", action="append", type=_pin, default=[], metavar="KIND=KEY", help=_KEY_HELP
    )
    _wait(prove)


def _wait(parser: Any) -> None:
    parser.add_argument("--wait", action="store_true", help="until the last epoch is closed")


def _pin(text: str) -> tuple[str, str]:
    match = _PIN.fullmatch(text)
    if match is None:
        told = f"{text!r:.80} is no key; write it as ledger=KEY or broker=KEY, 64 hex digits"
        raise argparse.ArgumentTypeError(told)
    return match[1], match[2]
