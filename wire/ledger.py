"""The ledger dialogue (docs/rfc/0003): the broker's outbox in, acks by sequence out.

Questions for bills.

The outbox is one sequence per broker: entries are applied in order, once each; an entry that comes
again is acked again.
"""

from typing import Any, Literal

import msgspec

from gristmill.wire import chain, payments
from gristmill.wire.frames import HeaderDecoder, Integer


class Message(msgspec.Struct, array_like=True, frozen=True, tag_field="type", gc=False):
    """Base of the dialogue's messages."""


class Hold(msgspec.Struct, array_like=True, frozen=True, tag="hold"):
    """Reserve a job's cap. ``ref``: ``<broker>/<job>``, the idempotency key of the hold.

    ``rental``: out of this rental of the tenant's (hex of its id), not out of its account.
    """

    ref: str
    tenant: str
    amount_ucredits: int
    rental: str = ""


class Release(msgspec.Struct, array_like=True, frozen=True, tag="release"):
    """The job ended: void what is left of its hold."""

    ref: str


class Contribution(msgspec.Struct, array_like=True, frozen=True, tag="contribution"):
    """One accepted range of one lease: what was done, by whom, what it costs.

    The billed unit is (job, replica, index, attempt): the ledger refuses an overlap with what
    it has. ``ref``: the job's
    hold. ``subtasks`` of ``count`` are billed (own doing); ``amount_ucredits`` is the whole
    bill, of which ``toll_ucredits``
    is kept and the rest is the node's. ``signature``: the worker's, over the receipt
    (wire/receipts.py), of which the fields from ``work`` on are what is not among the others:
    ``work``: sha-256 of what was run; ``outcome_digest``: of the result's frames; the worker's own
    readings, of which ``wall_us`` and ``cpu_us`` are what is billed; the tariff of the node's class
    and the memory that was reserved. ``countersignature``: the broker's, over all of it.
    """

    ref: str
    tenant: str
    node: str
    lease_id: int
    first: int
    count: int
    attempt: int
    subtasks: int
    failed: int
    wall_us: int
    cpu_us: int
    peak_kib: int
    metering: str
    is_estimated: bool
    amount_ucredits: int
    toll_ucredits: int
    ended_ms: int
    replica: int = 0
    signature: bytes = b""
    work: bytes = b""
    outcome_digest: bytes = b""
    signed_wall_us: int = 0
    signed_cpu_us: int = 0
    cpu_second_ucredits: int = 0
    subtask_ucredits: int = 0
    gib_second_ucredits: int = 0
    memory_bytes: int = 0
    node_class: str = ""
    countersignature: bytes = b""


class Key(msgspec.Struct, array_like=True, frozen=True, tag="key"):
    """From ``from_ms`` on this public key (hex, Ed25519) speaks for ``name``.

    Pinned by the broker: its own (``broker``) before anything it countersigned, and each node's
    (``node``, whose name is ``BROKER/WORKER``) at its first HELLO.
    """

    kind: Literal["broker", "node"]
    name: str
    public: str
    from_ms: int


Entry = Hold | Release | Contribution | Key


class Post(Message, frozen=True, tag=1):
    """Entries ``first .. first + len(entries)`` of the broker's outbox, in order, from 1."""

    broker: str
    first: Integer
    entries: list[Hold | Release | Contribution | Key]


USAGE_KEYS = ("tenant", "node", "job", "day")


def parse_by(text: str) -> list[str]:
    """What a bill is split by: one or more of ``USAGE_KEYS``, parted by commas, in any order.

    Raises:
        ValueError: another word, or one twice; the message shows what is accepted.

    >>> parse_by("tenant,day")
    ['tenant', 'day']
    """
    keys = [key.strip() for key in text[:80].split(",")]
    if len(set(keys)) != len(keys) or any(key not in USAGE_KEYS for key in keys):
        raise ValueError(
            f"{text!r:.80} is not some of {', '.join(USAGE_KEYS)}, each once, parted by commas"
        )
    return keys


class AskUsage(Message, frozen=True, tag=2):
    """The bill of a tenant (empty: everybody); ``ref`` limits it to a job.

    ``by``: what it is split by, see ``parse_by``.
    """

    request: Integer
    tenant: str
    by: str
    ref: str = ""


class AskBalance(Message, frozen=True, tag=3):
    """Balances of a tenant's accounts; an empty tenant asks for all accounts.

    ``seen``: the tag of an answer that is known already: the next one comes when there is another,
    or after ``WATCH_MS``.
    """

    request: Integer
    tenant: str
    seen: str = ""


WATCH_MS = 2_000  #: the longest that a question waits for another balance


class AskStatement(Message, frozen=True, tag=20):
    """Entries of an account behind transfer ``after``, up to ``upto`` (0: all that there are now).

    A page of wire/statement.py; the next pages are asked for with its ``upto``.
    """

    request: Integer
    account: str
    after: Integer = 0
    upto: Integer = 0


class AskReceipts(Message, frozen=True, tag=7):
    """Receipts of a tenant's hold ``ref``, with what proves them: a page (wire/epochs.py).

    ``index``: only those that this subtask is in; -1 for all. ``after``: of the page before, 0 for
    the first. ``number``: only the receipt of this number among the broker's entries.
    """

    request: Integer
    tenant: str
    ref: str
    index: Integer = -1
    after: Integer = 0
    number: Integer = 0


class Fund(Message, frozen=True, tag=4):
    """Operator: mint credits from ``world`` to a tenant; ``ref`` is the idempotency key."""

    request: Integer
    tenant: str
    amount_ucredits: int
    ref: str


class Ping(Message, frozen=True, tag=5):
    """Are you there; answered by ACKED."""

    broker: str


class Leg(msgspec.Struct, array_like=True, frozen=True):
    """One transfer of a linked group; ``id``: 16 bytes made by the sender, its idempotency key."""

    id: bytes
    debit: str
    credit: str
    amount_ucredits: int


class Transfer(Message, frozen=True, tag=6):
    """Operator: move credits between accounts that exist, all legs or none.

    A correction is a new transfer: none is ever changed.
    """

    request: Integer
    legs: list[Leg]


ToLedger = (
    Post
    | AskUsage
    | AskBalance
    | Fund
    | Ping
    | Transfer
    | AskReceipts
    | AskStatement
    | payments.Sell
    | payments.CreateIntent
    | payments.AskIntents
    | payments.CancelIntent
    | payments.ConfirmIntent
    | payments.DecideIntent
    | payments.ReportInvoice
    | payments.Observe
    | payments.AskOffers
    | chain.Said
    | chain.Question
    | chain.ShowVoucher
    | chain.VoucherRuling
)
decode_to_ledger: HeaderDecoder[Any] = HeaderDecoder(ToLedger)


class Verdict(msgspec.Struct, array_like=True, frozen=True):
    """What became of one outbox entry that needs an answer (holds, and anything refused).

    ``code`` is empty for yes, else a code of wire/errors.py with its message.
    """

    sequence: int
    ref: str
    code: str = ""
    message: str = ""


class Acked(Message, frozen=True, tag=1):
    """Every entry up to ``sequence`` is on disk (0 for none: entries begin at 1).

    ``verdicts`` of those that were holds or were refused.
    """

    broker: str
    sequence: int
    verdicts: list[Verdict] = []


class LedgerAnswer(Message, frozen=True, tag=2):
    """Answer to a question; ``body``.

    MessagePack of list[UsageRow] or BalanceAnswer of wire/client.py.
    """

    request: int
    body: msgspec.Raw


class LedgerRefused(Message, frozen=True, tag=3):
    """A question was refused."""

    request: int
    code: str
    message: str


FromLedger = Acked | LedgerAnswer | LedgerRefused | payments.IntentChanged | chain.ShowVoucher
decode_from_ledger: HeaderDecoder[Any] = HeaderDecoder(FromLedger)
