"""Every error code that crosses a process boundary.

Meaning, retryable or not, HTTP status, exit code, next move.

docs/errors.md is generated from ``CODES``; a code without a row here cannot be raised.
"""

from typing import NamedTuple

from gristmill.wire.errors_chain import CHAIN_ROWS

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_UNREACHABLE, EXIT_AUTH, EXIT_POLICY = 0, 1, 2, 3, 4, 5
EXIT_UNPICKLED = 70  #: EX_SOFTWARE: something in a process that must not unpickled a class
EXIT_MEMORY = 71  #: EX_OSERR: a process ended itself at its memory limit; start it again at once
EXIT_CANNOT_JAIL = 78  #: EX_CONFIG: this host cannot run jails and the worker does not pretend


class ErrorSpec(NamedTuple):  # no dataclass: these take a jail 10 ms to import
    """One error code and what everybody concerned does about it."""

    code: str
    meaning: str
    is_retryable: bool
    http_status: int
    exit_code: int
    next_move: str


def _table(*rows: tuple[str, str, bool, int, int, str]) -> dict[str, ErrorSpec]:
    return {row[0]: ErrorSpec(*row) for row in rows}


CODES: dict[str, ErrorSpec] = _table(
    # what a person or a program asked for
    (
        "UNKNOWN_JOB",
        "no job of that id was ever accepted for this tenant",
        False,
        404,
        EXIT_USAGE,
        "list your jobs with 'gristmill status'",
    ),
    (
        "EXPIRED",
        "the job's results were kept until their expiry and are gone",
        False,
        410,
        EXIT_FAILED,
        "submit the job again; its bill and its receipts remain",
    ),
    (
        "INVALID_SPEC",
        "one or more fields of the request are wrong; all of them are named",
        False,
        422,
        EXIT_USAGE,
        "correct the named fields and submit again",
    ),
    (
        "PARCEL_TOO_LARGE",
        "a parcel is over its limit of bytes or items",
        False,
        413,
        EXIT_USAGE,
        "send inputs above 192 KiB through the store; the client library does so by itself",
    ),
    (
        "PARCEL_ORDER",
        "a parcel does not follow on the last one, or disagrees with one sent before",
        False,
        409,
        EXIT_USAGE,
        "send parcels in order; repeat one only with the same content",
    ),
    (
        "UPLOAD_CLOSED",
        "the job takes no more inputs: it has ended, or its client was silent for longer than a "
        "session lasts",
        False,
        409,
        EXIT_FAILED,
        "read what it has with 'gristmill result JOB' and submit the rest as a new job",
    ),
    (
        "SUBMISSION_CONFLICT",
        "the same submission id came with another content; the first difference is named",
        False,
        409,
        EXIT_USAGE,
        "take a new key for a new request, or repeat the old one as it was",
    ),
    (
        "UNPICKLABLE",
        "a function or an input cannot be serialised",
        False,
        422,
        EXIT_USAGE,
        "the message names the object; create it inside the function instead of capturing it",
    ),
    (
        "NO_COMMAND",
        "the command does not exist in the jail",
        False,
        422,
        EXIT_FAILED,
        "give its absolute path, or ship it as an input file",
    ),
    (
        "INFEASIBLE",
        "no worker could ever run this request; the binding constraint and the nearest worker "
        "are named",
        True,
        409,
        EXIT_POLICY,
        "lower the request as the message says, or add a worker that satisfies it",
    ),
    (
        "PYTHON_MISMATCH",
        "the client's Python and the workers' differ in their minor version",
        False,
        409,
        EXIT_POLICY,
        "use the workers' version, or start workers with yours; the message names both",
    ),
    (
        "TIER_REFUSED",
        "no worker's policy admits the tier that the job asks for",
        False,
        403,
        EXIT_POLICY,
        "ask for tier 'job', or start a worker that admits this tier",
    ),
    (
        "DECOMPOSE_FAILED",
        "the decomposer crashed or returned no valid list; nothing was created or charged",
        True,
        422,
        EXIT_FAILED,
        "read its output with 'gristmill logs' and correct the request",
    ),
    (
        "DECOMPOSE_TIMEOUT",
        "the decomposer passed its deadline; nothing was created or charged",
        True,
        504,
        EXIT_FAILED,
        "submit again, with a longer --decompose-timeout or a smaller request",
    ),
    (
        "DECOMPOSE_TOO_LARGE",
        "the decomposer returned more subtasks than the limit",
        False,
        422,
        EXIT_USAGE,
        "split the request",
    ),
    (
        "UNSAFE_RESULT",
        "a result would need unpickling and this client does not trust its fleet",
        False,
        409,
        EXIT_POLICY,
        "return plain values (numbers, text, bytes, lists, dicts), or connect with trust='fleet'",
    ),
    # limits and money
    (
        "QUEUE_FULL",
        "the queue is at its cap; its depth and drain rate are given",
        True,
        429,
        EXIT_POLICY,
        "wait for the queue to drain, or raise the broker's limit",
    ),
    (
        "QUOTA",
        "the tenant is at its limit of jobs, slots or disk",
        True,
        429,
        EXIT_POLICY,
        "wait for jobs to end, fetch or drop old results, or ask the operator for more",
    ),
    (
        "INSUFFICIENT_CREDITS",
        "the tenant's available credits do not cover the job's cap",
        True,
        402,
        EXIT_POLICY,
        "lower the cap with --cap, or buy credits",
    ),
    (
        "CAP_REACHED",
        "the job spent its whole cap and was stopped",
        False,
        402,
        EXIT_FAILED,
        "submit what is left with a higher --cap",
    ),
    (
        "LEDGER_DOWN",
        "the ledger does not answer; running jobs go on, new ones wait",
        True,
        503,
        EXIT_UNREACHABLE,
        "wait, or look at the ledger process; the job starts by itself when it is back",
    ),
    (
        "LEDGER_CONFLICT",
        "what was asked contradicts the ledger; it was refused and nothing changed",
        False,
        409,
        EXIT_FAILED,
        "compare it with what the message names; an outbox, with the ledger's alarm of that number",
    ),
    (
        "UNKNOWN_INTENT",
        "no payment intent of that id, or no invoice of that reference, is this tenant's",
        False,
        404,
        EXIT_USAGE,
        "list your purchases with 'gristmill credits list'",
    ),
    (
        "UNKNOWN_RENTAL",
        "no rental of that id is this tenant's, or it is not deep enough in the chain yet",
        False,
        404,
        EXIT_USAGE,
        "wait until its lock is confirmed; agree to a rental before you lock for it",
    ),
    (
        "RENTAL_BUSY",
        "a job holds credits of the rental, or it was not ended before its last voucher",
        True,
        409,
        EXIT_POLICY,
        "wait until its jobs have ended, then say it again",
    ),
    (
        "SETTLEMENT_DOWN",
        "the settlement is not there: nothing reaches the chain now",
        True,
        503,
        EXIT_UNREACHABLE,
        "wait, or look at the settlement process; jobs go on without it",
    ),
    (
        "PAYMENTS_DOWN",
        "nobody sells credits this way now: the treasury is not there, or not set up for it",
        True,
        503,
        EXIT_UNREACHABLE,
        "wait, or choose another --with; 'gristmill credits offers' tells what is sold",
    ),
    (
        "STORE_DOWN",
        "the store does not answer",
        True,
        503,
        EXIT_UNREACHABLE,
        "wait, or look at the store process",
    ),
    (
        "STORE_FULL",
        "the store has no room; the attempt is not charged",
        True,
        507,
        EXIT_FAILED,
        "free room in the store or raise its limit",
    ),
    (
        "BLOB_MISSING",
        "the store has no blob of that digest",
        False,
        404,
        EXIT_FAILED,
        "upload it again",
    ),
    (
        "BLOB_CORRUPT",
        "the bytes do not have the digest that was promised",
        True,
        422,
        EXIT_FAILED,
        "upload it again",
    ),
    # the chain
    *CHAIN_ROWS,
    # who is who
    (
        "REJOIN",
        "the session is unknown or over",
        True,
        401,
        EXIT_UNREACHABLE,
        "say HELLO again and go on",
    ),
    (
        "RECOVERING",
        "the broker was started a moment ago and still reads its journal",
        True,
        503,
        EXIT_UNREACHABLE,
        "wait: clients and workers go on by themselves when it is through",
    ),
    (
        "RATE_LIMITED",
        "this key asked for more than its rate allows; nothing of it is taken for the time that "
        "is named",
        True,
        429,
        EXIT_POLICY,
        "wait: the client library does so by itself; ask the operator for more if it is too little",
    ),
    (
        "UNAUTHORISED",
        "the credential is missing, wrong or expired",
        False,
        401,
        EXIT_AUTH,
        "check GRISTMILL_TOKEN and the address",
    ),
    (
        "KEY_EXPIRED",
        "the time of this key or token is over",
        False,
        401,
        EXIT_AUTH,
        "ask the operator for a new one",
    ),
    (
        "KEY_REVOKED",
        "this key or token was revoked",
        False,
        401,
        EXIT_AUTH,
        "ask the operator for a new one",
    ),
    (
        "NODE_PENDING",
        "this node is enrolled and not active now",
        True,
        403,
        EXIT_AUTH,
        "wait: it is taken when an operator approves or releases it",
    ),
    (
        "NODE_REFUSED",
        "this node was rejected or banned",
        False,
        403,
        EXIT_AUTH,
        "ask the operator why",
    ),
    (
        "FORBIDDEN",
        "this principal may not do that",
        False,
        403,
        EXIT_AUTH,
        "ask the operator for the right",
    ),
    (
        "IDENTITY_CONFLICT",
        "another key has this name, or this key another name; whoever came first keeps its place",
        False,
        409,
        EXIT_POLICY,
        "take another name, or ask the operator: gristmill node rotate NAME, or node revoke NAME",
    ),
    (
        "TOKEN_USED",
        "the single-use token was used before, by another key; the node of that name is flagged",
        False,
        409,
        EXIT_AUTH,
        "tell the operator; a new one comes from 'gristmill node token NAME'",
    ),
    (
        "TOKEN_EXPIRED",
        "the token's time is over",
        False,
        401,
        EXIT_AUTH,
        "ask the operator for a new one",
    ),
    (
        "TOKEN_REVOKED",
        "the token was revoked, or a newer one took its place",
        False,
        401,
        EXIT_AUTH,
        "ask the operator for the newer one",
    ),
    (
        "UNKNOWN_NODE",
        "no node or token of that name is known to the registry",
        False,
        404,
        EXIT_USAGE,
        "list them with 'gristmill node list --enrolled' or 'gristmill token list'",
    ),
    (
        "WRONG_STATE",
        "that cannot be done to a node in the state that it is in; what can be done is named",
        False,
        409,
        EXIT_POLICY,
        "see 'gristmill node list --enrolled'",
    ),
    (
        "STALE_DECISION",
        "the decision was about an older version; the newer one is shown, with who made it",
        False,
        409,
        EXIT_POLICY,
        "look at the newer version, and decide about that one",
    ),
    (
        "NODE_VANISHED",
        "the node that waits for approval is silent; when it was last seen is named",
        True,
        409,
        EXIT_POLICY,
        "start 'gristmill node enrol' there again, then approve it",
    ),
    (
        "SECOND_OPERATOR",
        "this grid wants another operator's approval as well",
        False,
        403,
        EXIT_POLICY,
        "ask another operator to approve it",
    ),
    (
        "SELF_TEST_FAILED",
        "the node's own check of itself failed; each fault has its remedy",
        False,
        422,
        EXIT_CANNOT_JAIL,
        "run 'gristmill doctor' on the node",
    ),
    (
        "RATE_LIMITED",
        "this source asks more often than the port allows",
        True,
        429,
        EXIT_POLICY,
        "wait some seconds, then ask again",
    ),
    (
        "REGISTRY_DOWN",
        "the registry does not answer, or cannot write; brokers go on with what they know",
        True,
        503,
        EXIT_UNREACHABLE,
        "look at the registry process, then say it again: what was done is not done twice",
    ),
    (
        "NAME_TAKEN",
        "a live worker of another key has this name; it keeps its place",
        False,
        409,
        EXIT_POLICY,
        "start the worker under another --name",
    ),
    (
        "UNKNOWN_CLASS",
        "the node's label 'class' names a class for which the grid has no tariff",
        False,
        422,
        EXIT_POLICY,
        "start the worker with a known --label class=NAME, or the broker with --tariff NAME=...",
    ),
    (
        "NOT_LOOPBACK",
        "an address open to others, where there are no keys",
        False,
        403,
        EXIT_USAGE,
        "use ipc:// in a folder of yours, or give keys",
    ),
    (
        "PROTOCOL",
        "the two sides speak different versions",
        False,
        400,
        EXIT_USAGE,
        "install the same release on both sides; the message names both",
    ),
    (
        "MALFORMED",
        "a frame does not decode, or breaks a limit; the connection goes on",
        False,
        400,
        EXIT_USAGE,
        "compare with docs/rfc; the message names the field",
    ),
    (
        "SUPERSEDED",
        "the message names a lease that is no longer current; its content is kept and not used",
        False,
        409,
        EXIT_OK,
        "nothing: the subtask runs or ran elsewhere",
    ),
    (
        "UNREACHABLE",
        "the broker does not answer",
        True,
        503,
        EXIT_UNREACHABLE,
        "check the address; start a grid with 'gristmill up'",
    ),
    (
        "CANNOT_JAIL",
        "this host cannot run jails",
        False,
        500,
        EXIT_CANNOT_JAIL,
        "run 'gristmill doctor'",
    ),
    (
        "ALREADY_RUNNING",
        "a grid is already running in this folder; its pid is named",
        True,
        409,
        EXIT_POLICY,
        "submit to it, end it with Ctrl-C, or start a second one with --state DIR --run DIR",
    ),
    (
        "JOB_FAILED",
        "the job ended with failed subtasks",
        False,
        200,
        EXIT_FAILED,
        "see 'gristmill status JOB'",
    ),
    (
        "CANCELLED",
        "the job was cancelled",
        False,
        200,
        EXIT_FAILED,
        "submit it again if it was not meant",
    ),
    (
        "INTERNAL",
        "we did wrong; the process logged it with this id and goes on or restarts",
        True,
        500,
        EXIT_FAILED,
        "report it with the id",
    ),
)


class RemoteError(Exception):
    """The peer did wrong, or refuses: answered with its code, counted, never fatal.

    Args:
        code: a key of ``CODES``.
        message: names the thing, the limit and the actual value.
        hint: the next command to type; by default the code's own next move.
    """

    def __init__(self, code: str, message: str = "", hint: str = "") -> None:
        self.spec = CODES[code]
        self.code = code
        self.message = message or self.spec.meaning
        self.hint = hint or self.spec.next_move
        super().__init__(f"{code}: {self.message}\n  -> {self.hint}")
