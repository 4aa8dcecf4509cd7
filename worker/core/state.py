"""The worker's state: a session, jobs, slots with their leases, results that wait for their ack."""

import dataclasses
from collections import deque
from typing import Literal

from gristmill.wire.limits import REPORT_MS, TTL_MS
from gristmill.wire.worker import (
    Hello,
    HostReading,
    JobOpening,
    LeaseGrant,
    ResultHead,
    Returned,
    Run,
)
from gristmill.worker.core.effects import KillCause

Cause = Literal["recalled", "drained", "stopped", "jail", "set-up"]
Frames4 = tuple[bytes, bytes, bytes, bytes]

#: Jails that did not start, one after another, before the worker gives up.
SETUP_TRIES_MAX = 3
#: A jail's process has this long to say that it is up.
START_MS_MAX = 60_000
#: What the slot's own wall clock may be late, in tiers where it has one.
WALL_GRACE_MS = 2_000
#: Loading a function or packing results may take this long when the wall limit is shorter.
BETWEEN_MS_MIN = 30_000
HELLO_FIRST_MS, HELLO_LAST_MS = 200, 5_000
#: A name that is taken is asked for again for this long: its owner may be a killed agent.
NAME_PATIENCE_MS, NAME_RETRY_MS = 2 * TTL_MS, 500
#: an operator looks at this node: HELLO again after so long
PENDING_RETRY_MS = 2_000
#: So many of our messages may make no sense to the broker while nothing gets on: one may have been
#: damaged on its way, but what we say wrong we would say wrong for ever.
MALFORMED_MAX = 3
#: Results that no later answer acknowledges for this long: the session is begun again.
STALL_MS = 15_000
#: A lease that the slot was given and has not begun to work on for this long: importing what its
#: function needs may take a while.
TAKE_MS_MAX = 60_000
#: A killed jail is gone within this, unless the kernel or what waits for it does not get on.
END_MS_MAX = 5_000
#: Our jails are ended this fraction of a ttl before the broker may give their leases away.
LAPSE_SHARE = 16
#: A process that stood still for this fraction of a ttl is hung.
HUNG_SHARE = 2
#: After the grace of a drain, how long results may still wait for their acks.
LAST_ACKS_MS = 3_000


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """What does not change. ``hello``: as for HELLO, its ``held`` empty.

    ``grace_ms``: how long a drain lets subtasks run. ``seed``: of the jitter of HELLO's pauses.
    """

    hello: Hello
    grace_ms: int = 30_000
    seed: int = 1


@dataclasses.dataclass(slots=True)
class Lease:
    """A lease in hand. ``remaining``: runs without a result that were not returned.

    ``cause``: why it is being handed back, empty while it runs. ``stop_outcome``: of the subtask
    that runs when the broker stops the lease, -1 if it did not. ``fed``: the slot has it.
    ``since_ms``: when it came.
    """

    grant: LeaseGrant
    frames: tuple[bytes, ...]
    remaining: list[Run]
    is_fed: bool = False
    cause: Cause | None = None
    stop_outcome: int = -1
    done: int = 0
    cpu_us: int = 0
    wall_us: int = 0
    billed: int = 0
    since_ms: int = 0

    @property
    def lease_id(self) -> int:
        """The fence."""
        return self.grant.lease_id


Phase = Literal["empty", "starting", "ready", "ending"]


@dataclasses.dataclass(slots=True)
class Slot:
    """A place for one jail and its leases, first come first served.

    ``run``: (lease, index, done) that was seen last, since ``run_since_ms``, when the jail had used
    ``run_cpu_us``. ``ghosts``: leases that are over while the slot may still have them; True where
    it may have subtasks that were handed back.
    ``is_used``: a jail of tier ``strict`` that has had its one subtask. ``seen_ms``: when the slot
    was last seen in order, see ``slots.is_alive``.
    """

    number: int
    phase: Phase = "empty"
    jail: int = 0
    job: int = 0
    leases: list[Lease] = dataclasses.field(default_factory=list)
    kill_cause: KillCause | None = None
    is_used: bool = False
    since_ms: int = 0
    seen_ms: int = 0
    run: tuple[int, int, int] = (0, -1, 0)
    run_since_ms: int = 0
    run_cpu_us: int = 0
    started: tuple[int, int] = (0, -1)
    ghosts: dict[int, bool] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(slots=True)
class Pending:
    """A result until its ack.

    ``opening``: of its job; ``grant``, ``since_ms``: of its lease, without the inputs.

    ``report``: number of the report that it was last sent in.
    """

    head: ResultHead
    frames: Frames4
    opening: JobOpening
    grant: LeaseGrant
    since_ms: int
    is_sent: bool = False
    report: int = 0


@dataclasses.dataclass(slots=True)
class Job:
    """An open job. ``mark``: of the grants of its opening."""

    opening: JobOpening
    mark: int
    is_closed: bool = False


SessionPhase = Literal["none", "greeting", "open", "ended"]


@dataclasses.dataclass(slots=True)
class State:
    """Everything; made by ``new_state``.

    ``lapse_at_ms``: until when our jails may run. ``sent``: full reports that were not answered,
    number to time. ``taken``: the last leases that came in this session, in order; broker ids are
    never used twice. ``spawner_seen_ms``: when the process that starts jails was last seen moving.
    ``malformed``: refusals of our words since they last got us anywhere.
    """

    setting: Setting
    slots: list[Slot]
    phase: SessionPhase = "none"
    session: bytes = b""
    broker: str = ""
    report_ms: int = REPORT_MS
    ttl_ms: int = TTL_MS
    hello_at_ms: int = 0
    hello_sent_ms: int = 0
    hello_pause_ms: int = HELLO_FIRST_MS
    jitter: int = 0
    report_number: int = 0
    report_at_ms: int = 0
    sent: dict[int, int] = dataclasses.field(default_factory=dict)
    taken: dict[int, None] = dataclasses.field(default_factory=dict)
    answered_ms: int = 0
    lapse_at_ms: int = 0
    acked_at_ms: int = 0
    result_number: int = 0
    results: deque[Pending] = dataclasses.field(default_factory=deque)
    unsent: int = 0
    returned: list[Returned] = dataclasses.field(default_factory=list)
    jobs: dict[int, Job] = dataclasses.field(default_factory=dict)
    reading: HostReading | None = None
    next_jail: int = 1
    setup_failures: int = 0
    spawner_seen_ms: int = -1
    drain_reason: str = ""
    drain_until_ms: int = -1
    exit_code: int = 0
    has_told_silence: bool = False
    name_taken_ms: int = 0
    has_told_pending: bool = False
    malformed: int = 0

    @property
    def is_draining(self) -> bool:
        """No more leases, please."""
        return bool(self.drain_reason)

    @property
    def lapse_margin_ms(self) -> int:
        """How long before the broker we give up our right to run: a kill takes a moment."""
        return self.ttl_ms // LAPSE_SHARE


def new_state(setting: Setting) -> State:
    """The state of a worker that has said nothing yet."""
    slots = [Slot(number) for number in range(setting.hello.slots)]
    return State(setting, slots, jitter=setting.seed)
