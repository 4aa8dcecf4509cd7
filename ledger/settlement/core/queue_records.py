"""What goes in and out of the nonce queue: intents, attempts, receipts, events and effects."""

from typing import Literal

import msgspec

State = Literal[
    "queued",
    "signed",
    "unknown",
    "broadcast",
    "mined",
    "confirmed",
    "failed",
    "replaced",
    "superfluous",
]
FINAL: frozenset[str] = frozenset({"confirmed", "failed", "replaced", "superfluous"})
CANCEL_GAS = 21_000  #: a transfer of nothing to ourselves


class Limits(msgspec.Struct, frozen=True):
    """What the queue may do.

    ``in_flight_max``: nonces that are given and not final. ``pending_max``: intents that are not
    final before there is an alarm. ``bump_blocks``: without being mined, before a higher fee.
    ``fee_cap_wei``: for a unit of gas. ``fee_day_wei``: for everything in a day (UTC).
    ``gas_percent``: of the estimate, and ``gas_extra`` on top, as the limit of a transaction: what
    is nought when it is mined, and was not when it was tried, costs 17,100 more for each figure.
    """

    in_flight_max: int = 16
    pending_max: int = 1_000
    bump_blocks: int = 3
    fee_cap_wei: int = 200 * 10**9
    fee_day_wei: int = 10**18
    gas_percent: int = 125
    gas_extra: int = 50_000


class Attempt(msgspec.Struct, frozen=True):
    """A signed transaction; all attempts of an intent have its nonce, so one of them counts."""

    hash: bytes
    raw: bytes
    gas: int
    max_fee_wei: int
    tip_wei: int
    is_cancel: bool
    block: int  #: the head when it was signed


class Receipt(msgspec.Struct, frozen=True):
    """Where an attempt was mined. ``paid_wei``: for its gas."""

    hash: bytes
    block: int
    block_hash: bytes
    is_reverted: bool
    paid_wei: int


class Intent(msgspec.Struct):
    """Something that shall happen on the chain once. ``purpose``: its key.

    ``number``: its place among all. ``nonce``: -1 until it has one, then the same for ever.
    """

    purpose: str
    target: bytes
    call: bytes
    number: int
    nonce: int = -1
    state: State = "queued"
    attempts: list[Attempt] = []
    receipt: Receipt | None = None
    reason: str = ""
    is_unwanted: bool = False

    @property
    def is_final(self) -> bool:
        """Nothing more can become of it, but by a re-org deeper than K."""
        return self.state in FINAL

    @property
    def is_in_flight(self) -> bool:
        """It has a nonce that is not final."""
        return self.nonce >= 0 and self.state not in FINAL


class Lane(msgspec.Struct):
    """One account's queue. ``next_nonce``: -1 before the chain was asked, once."""

    limits: Limits
    next_nonce: int = -1
    intents: dict[str, Intent] = {}
    open: dict[str, None] = {}  #: purposes that are not final, by number
    day: int = 0
    spent_wei: int = 0  #: in ``day``, by what is final
    halted: str = ""
    waiting: dict[str, str] = {}  #: topic to why something is not sent, told once
    is_crowded: bool = False
    # What was asked of the shell and is forgotten with the process:
    asking: dict[str, None] = {}
    signing: dict[str, None] = {}
    head: int = 0
    base_fee_wei: int = 0
    tip_wei: int = 0


# ---------------------------------------------------------------- events


class Asked(msgspec.Struct, frozen=True):
    """Somebody wants this done; the same purpose again is the same intent."""

    purpose: str
    target: bytes
    call: bytes


class Unwanted(msgspec.Struct, frozen=True):
    """It is not needed any more."""

    purpose: str
    why: str


class Looked(msgspec.Struct, frozen=True):
    """What a node said in one turn.

    ``head``: the last block of our log of blocks; ``node_head``: the node's, which may lag.
    ``confirmed``: the last block that is K deep in our log. ``nonce``: transactions of
    our account at the head, ``nonce_confirmed``: up to that block. ``receipts``: of our attempts,
    those in blocks that our log contradicts left out. ``known``: the last attempts that the
    node has, mined or not.
    """

    head: int
    node_head: int
    base_fee_wei: int
    tip_wei: int
    confirmed: int
    nonce: int
    nonce_confirmed: int
    receipts: dict[bytes, Receipt]
    known: frozenset[bytes]


class PreflightDone(msgspec.Struct, frozen=True):
    """The call was tried at the head: it takes ``gas``, or reverts with a ``reason``."""

    purpose: str
    gas: int
    reason: str = ""


class Signed(msgspec.Struct, frozen=True):
    """The signer answered."""

    purpose: str
    attempt: Attempt


class Sent(msgspec.Struct, frozen=True):
    """How a node took an attempt; ``unknown``: it did not answer, so nobody knows."""

    purpose: str
    hash: bytes
    how: Literal["accepted", "known", "unknown", "nonce_used", "underpriced", "refused"]
    text: str = ""


class Explained(msgspec.Struct, frozen=True):
    """Why a mined transaction reverted, decoded."""

    purpose: str
    reason: str


class Halted(msgspec.Struct, frozen=True):
    """Nothing is sent until an operator says go."""

    why: str


class Released(msgspec.Struct, frozen=True):
    """An operator said go."""


class Restarted(msgspec.Struct, frozen=True):
    """The process began; what was being sent when the last one ended is unknown."""


class Rewound(msgspec.Struct, frozen=True):
    """A re-org deeper than K: what was final above ``block`` is not."""

    block: int


Event = (
    Asked
    | Unwanted
    | Looked
    | PreflightDone
    | Signed
    | Sent
    | Explained
    | Halted
    | Released
    | Restarted
    | Rewound
)

# ---------------------------------------------------------------- effects


class Save(msgspec.Struct, frozen=True):
    """Write it; everything behind it in the list waits until it is on disk."""

    intent: Intent


class SaveLane(msgspec.Struct, frozen=True):
    """Write the lane's own figures."""

    next_nonce: int
    day: int
    spent_wei: int


class Preflight(msgspec.Struct, frozen=True):
    """Try the call at the head: ``PreflightDone``, or nothing when nobody answers."""

    purpose: str


class Sign(msgspec.Struct, frozen=True):
    """Have it signed: ``Signed``."""

    purpose: str
    nonce: int
    is_cancel: bool
    gas: int
    max_fee_wei: int
    tip_wei: int
    block: int


class Send(msgspec.Struct, frozen=True):
    """Give an attempt to a node: ``Sent``."""

    purpose: str
    attempt: Attempt


class Explain(msgspec.Struct, frozen=True):
    """Find out why it reverted: ``Explained``."""

    purpose: str
    block: int


class Ended(msgspec.Struct, frozen=True):
    """It is final: ``state`` is one of ``FINAL``."""

    purpose: str
    state: State


class Say(msgspec.Struct, frozen=True):
    """A line in the log; an alarm wants somebody."""

    text: str
    is_alarm: bool = False


Effect = Save | SaveLane | Preflight | Sign | Send | Explain | Ended | Say


def told_state(intent: Intent, head: int, depth: int) -> str:
    """For a person: ``pending (2 of 12)`` until it is ``depth`` deep, never success before."""
    if intent.state == "mined" and intent.receipt is not None:
        deep = min(depth - 1, max(0, head - intent.receipt.block + 1))
        return f"pending ({deep} of {depth})"
    if intent.state == "unknown":
        return "UNKNOWN"
    told: str = intent.state
    return f"{told}: {intent.reason}" if intent.reason else told
