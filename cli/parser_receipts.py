"""The verbs ``receipt``, ``verify`` and ``audit``. See ``parser.py``."""

import re
from typing import Any

from gristmill.cli.parser import Verbs, add_verb, typed

_PIN = re.compile(r"(ledger|broker)=([0-9a-f]{64})")


def add(verbs: Verbs) -> None:
    """Adds the verbs."""
    receipt = add_verb(
        verbs,
        "receipt",
        "receipts",
        "Write a job's receipts, signed and with their proofs, as a file that stands alone",
    )
    receipt.add_argument(
        "job",
        metavar="JOB",
        help="a job, j17, one of its subtasks, j17/3, or one receipt of a statement, j17#40",
    )
    receipt.add_argument("-o", "--out", metavar="FILE", help="write here instead of stdout")
    _wait(receipt)
    verify = add_verb(
        verbs,
        "verify",
        "receipts",
        "Check a receipt file, offline; exit 1 with the field that is false",
        has_grid=False,
    )
    verify.add_argument("file", metavar="FILE", help="of 'gristmill receipt'; - for stdin")
    _key(verify)
    audit = verbs.add_parser(
        "audit",
        help="Hold a job's bill against its receipts; read and verify the log of operators' acts",
        description="What was charged is what was proven, and what was decided is what is written.",
    )
    actions = audit.add_subparsers(dest="action", metavar="ACTION", title="actions", required=True)
    prove = add_verb(
        actions,
        "prove",
        "receipts",
        "Show that a job's receipts, each of them proven, are its charges; exit 1 if not",
    )
    prove.add_argument("job", metavar="JOB", help="a job, such as j17")
    _key(prove)
    _wait(prove)
    from gristmill.cli import parser_registry

    parser_registry.add_actions_of_audit(actions)


def _key(parser: Any) -> None:
    parser.add_argument(
        "--key",
        action="append",
        type=typed(_pin),
        default=[],
        metavar="KIND=KEY",
        help="trust this public key of the ledger or the broker only (kind=64 hex digits)",
    )


def _wait(parser: Any) -> None:
    parser.add_argument("--wait", action="store_true", help="until the last epoch is closed")


def _pin(text: str) -> tuple[str, str]:
    match = _PIN.fullmatch(text)
    if match is None:
        told = f"{text!r:.80} is no key; write it as ledger=KEY or broker=KEY, 64 hex digits"
        raise ValueError(told)
    return match[1], match[2]
