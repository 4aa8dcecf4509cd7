"""All that a client's core knows: a session, requests, uploads and subscriptions."""

import dataclasses
from collections import deque
from typing import Any, Literal

from gristmill.wire import limits
from gristmill.wire.client import Hello, Submit

RESEND_MS = 1_000  #: first pause before a request is said again; it doubles to RESEND_MS_MAX
RESEND_MS_MAX = 8_000
GREET_MS = 250  #: between HELLOs that nobody answers
QUIET_MS = 3_000  #: first silence of a subscription after which it is said again; it doubles
QUIET_MS_MAX = 24_000
ACK_MS = 1_000  #: at the latest then the broker hears which results were taken
STALL_MS = 3_000  #: parcels without an acknowledgement for this long are said again
TELL_SHARE = 3  #: after this part of the patience a silence is told, after all of it given up
LATE_MS = 500  #: a turn later than this was not ours to take: we were stopped, or starved
HOLD_MS_MIN = 50  #: who is over its rate waits at least this long
HOLD_TELL_MS = 10_000  #: a wait within so long of the last one is of the same spell, told once
SILENCES = 3  #: pings without any word from the broker: greet again
NEVER = 1 << 62

RequestKind = Literal["app", "submit", "claim", "count", "close", "subscribe"]


@dataclasses.dataclass(slots=True)
class Pending:
    """A request without an answer. ``key``: token, upload or job, by kind.

    ``message`` has neither session nor number yet; a subscription's is made anew each time.
    """

    kind: RequestKind
    key: int
    message: Any
    frames: list[bytes]
    made_ms: int
    again_ms: int
    pause_ms: int = RESEND_MS


@dataclasses.dataclass(slots=True)
class KeptParcel:
    """A parcel until its acknowledgement."""

    first: int
    count: int
    codec: str
    frame: bytes


@dataclasses.dataclass(slots=True)
class Upload:
    """The inputs of one job on their way.

    ``parcels`` are those not acknowledged, in order; ``parcels[:sent]`` went out in this session.
    ``sent_bytes`` and ``bytes_allowed`` are cumulative since the job began. ``base``: inputs
    in earlier jobs of the same upload (see ``uploads.on_counted``); indices, ``count`` and
    ``committed`` are those of the present job. ``have``: inputs of a job that takes no more, -1
    while it does. After ``quiet_ms`` of waiting for credit it asks for it.
    """

    number: int
    message: Submit
    function: bytes
    may_continue: bool = False
    job: int = 0
    base: int = 0
    have: int = -1
    count: int = 0
    committed: int = 0
    bytes_allowed: int = 0
    acked_bytes: int = 0
    sent_bytes: int = 0
    sent: int = 0
    parcels: deque[KeptParcel] = dataclasses.field(default_factory=deque)
    is_ended: bool = False
    is_closing: bool = False
    moved_ms: int = 0
    stalls: int = 0
    quiet_ms: int = STALL_MS


@dataclasses.dataclass(slots=True)
class Subscription:
    """The results of one job on their way.

    ``after``: the last sequence handed on. ``acked``: the last that the consumer took;
    ``told_acked`` and ``told_ms``: what the broker was told of it, and when.
    ``got_bytes`` and ``granted_bytes`` are cumulative since the newest SUBSCRIBE;
    ``queued_bytes`` were handed on and not yet taken. ``is_fresh``: SUBSCRIBE was answered and
    nothing came since. ``retried_after``: where it was asked again because of a gap. ``moved_ms``:
    when something last came of it, and after ``quiet_ms`` without it is asked for again.
    """

    job: int
    after: int = 0
    acked: int = 0
    told_acked: int = 0
    told_ms: int = 0
    got_bytes: int = 0
    granted_bytes: int = 0
    queued_bytes: int = 0
    is_fresh: bool = False
    retried_after: int = -1
    is_final: bool = False
    moved_ms: int = 0
    quiet_ms: int = QUIET_MS


@dataclasses.dataclass(slots=True)
class State:
    """The client's side of one dialogue.

    ``timeout_ms``: silence after which everything that waits is given up. ``phase``:
    ``greeting`` until a Welcome, then ``open``; ``refused`` when the broker will not
    have us (then ``refusal`` says why), ``closed`` after the goodbye.
    """

    hello: Hello
    timeout_ms: int
    window_bytes: int = limits.OUTPUT_CREDIT_BYTES
    phase: Literal["greeting", "open", "refused", "closed"] = "greeting"
    refusal: tuple[str, str, str] = ("", "", "")
    session: bytes = b""
    is_linked: bool = False
    ping_ms: int = limits.CLIENT_PING_MS
    heard_ms: int = 0
    wanted_ms: int = 0  #: since when something waits
    said_ms: int = 0
    greeted_ms: int = -GREET_MS
    is_silence_told: bool = False
    is_recovery_told: bool = False
    held_until_ms: int = 0  #: over our rate: we say nothing but pings until then
    held_ms: int = -HOLD_TELL_MS  #: when that was last so
    holds: int = 0
    last_request: int = 0
    requests: dict[int, Pending] = dataclasses.field(default_factory=dict)
    uploads: dict[int, Upload] = dataclasses.field(default_factory=dict)
    upload_of_job: dict[int, int] = dataclasses.field(default_factory=dict)
    subscriptions: dict[int, Subscription] = dataclasses.field(default_factory=dict)
    next_ms: int = 0  #: when ``TimePassed`` is due
