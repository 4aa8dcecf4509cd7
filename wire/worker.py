"""The worker dialogue (docs/rfc/0001): one idea, *synchronise*.

The worker says what it has (``Report``), the broker says what it should have and when to speak
next (``Orders``). Renewal, completion, cancel, recall and drain are this one pair. Body frames
follow the header in the order in which the header's lists name them.
"""

import zlib
from typing import Literal

import msgspec

from gristmill.wire.frames import HeaderDecoder, Integer
from gristmill.wire.spec import JobSpec, Tariff

Run = tuple[Integer, Integer]  #: (start, length) of consecutive subtask indices


class Message(msgspec.Struct, array_like=True, frozen=True, tag_field="type", gc=False):
    """Base of the dialogue's messages."""


# ---------------------------------------------------------------- what the worker has


class Held(msgspec.Struct, array_like=True, frozen=True):
    """A lease on the worker.

    ``done``: subtasks whose results were handed to the socket; ``started``: index now running, -1
    before the first.
    """

    lease_id: Integer
    slot: Integer
    started: Integer
    done: Integer


class Claim(msgspec.Struct, array_like=True, frozen=True):
    """What a broker that was started again must know of a lease to adopt it.

    ``runs``: those of ``job`` for which no result was acked, of attempt ``attempt``; also of a
    lease that is over but for acks. ``budget_ucredits`` as granted, ``age_ms`` ago.
    """

    lease_id: Integer
    slot: Integer
    started: Integer
    job: Integer
    attempt: Integer
    runs: list[Run]
    budget_ucredits: Integer
    age_ms: Integer


class ResultHead(msgspec.Struct, array_like=True, frozen=True):
    """One result: ``count`` subtasks from ``first``, contiguous and all of one lease.

    ``number``: made by the worker, in sequence from 1 in its session: the ack names it. Frames,
    in this
    order: values (one value for each subtask that ended OK, in index order; absent when none did),
    meter, failures, logs; absent ones are empty frames, so there are always four. ``codec`` of the
    values, beginning with ``@`` when they lie in the store. ``cpu_us``, ``peak_kib``: readings
    of the
    whole range taken outside the jail by ``metering`` (``cgroup``, ``proc`` or ``wait4``);
    ``is_estimated``: split over subtasks by wall time, if at all. ``signature``: of the
    receipt, 64 bytes, empty
    until the worker has a key.
    """

    number: Integer
    lease_id: Integer
    job: Integer
    first: Integer
    count: Integer
    codec: str
    wall_us: Integer
    cpu_us: Integer
    peak_kib: Integer
    metering: str
    is_estimated: bool = False
    signature: bytes = b""


RESULT_FRAMES = 4


class Returned(msgspec.Struct, array_like=True, frozen=True):
    """Runs of a lease that the worker hands back unspent; the lease ends for them here.

    ``cause``: ``recalled``, ``drained``, ``stopped`` (cancelled or out of budget), ``jail``
    (the jail died
    under another subtask) or ``set-up``.
    """

    lease_id: Integer
    runs: list[Run]
    cause: Literal["recalled", "drained", "stopped", "jail", "set-up"]
    detail: str = ""


class SlotReading(msgspec.Struct, array_like=True, frozen=True):
    """Live telemetry of one slot, read outside the jail."""

    slot: Integer
    job: Integer
    subtask: Integer
    cpu_us: Integer
    memory_bytes: Integer
    disk_bytes: Integer
    pids: Integer


class HostReading(msgspec.Struct, array_like=True, frozen=True):
    """Live telemetry of the worker's host."""

    load1_milli: Integer
    cpu_percent: Integer
    memory_used_bytes: Integer
    memory_total_bytes: Integer
    disk_free_bytes: Integer
    slots: list[SlotReading] = []


class Hello(Message, frozen=True, tag=1):
    """First message of a session.

    ``node``: hex of the worker's Ed25519 public key, pinned to ``name`` at the first HELLO;
    ``instance``: 16 random bytes made at process start, so that a restarted worker is told from a
    second one of the same name. ``pythons``: versions that its environments offer, its own first.
    ``claims``: of leases in ``held``, and of those whose results wait for their ack.
    """

    protocol: Integer
    name: str
    node: str
    instance: bytes
    slots: Integer
    cpus_milli: Integer
    memory_bytes: Integer
    disk_bytes: Integer
    labels: dict[str, str]
    tiers: list[str]
    pythons: list[str]
    metering: str
    version: str
    held: list[Held] = []
    claims: list[Claim] = []


class Report(Message, frozen=True, tag=2):
    """What the worker has.

    ``is_full``: ``held`` and ``reading`` are complete (a renewal); otherwise the report only brings
    results or returned runs. ``slots_alive``: slots seen alive by the agent's loop; only their
    leases are renewed. ``open_jobs`` of a full report: (job, ``grants_mark`` of the opening that it
    has) of the jobs that are open here, lowest first, at most ``OPEN_JOBS_TOLD_MAX``; a broker that
    knows better says the close or the opening again.
    """

    session: bytes
    number: Integer
    is_full: bool
    slots_alive: list[Integer]
    held: list[Held]
    results: list[ResultHead]
    returned: list[Returned]
    is_draining: bool = False
    reading: HostReading | None = None
    open_jobs: list[tuple[Integer, Integer]] = []


class Goodbye(Message, frozen=True, tag=3):
    """The worker ends; whatever it held and did not return counts as drained."""

    session: bytes
    reason: str


class Piece(msgspec.Struct, array_like=True, frozen=True):
    """What a subtask has written to ``stream`` (0: stdout, 1: stderr) from byte ``offset`` on.

    Offsets count from the attempt's first byte (where subtasks share a process: from what the last
    result took). A piece that comes again may be longer than before.
    """

    lease_id: Integer
    index: Integer
    stream: Integer
    offset: Integer


class Lines(Message, frozen=True, tag=4):
    """What running subtasks write; one body frame for each piece. Never answered, may be lost."""

    session: bytes
    pieces: list[Piece]


WorkerMessage = Hello | Report | Goodbye | Lines
decode_worker: HeaderDecoder[Hello | Report | Goodbye | Lines] = HeaderDecoder(WorkerMessage)


# ---------------------------------------------------------------- what the worker should have


class JobOpening(msgspec.Struct, array_like=True, frozen=True):
    """A job that the worker is about to get leases of; one body frame follows.

    The function's bytes, empty for a command or a stored function. ``put_grant``: a grant to store
    outputs for this tenant; ``get_grant``: to read blobs of this tenant.
    """

    job: int
    tenant: str
    spec: JobSpec
    tariff: Tariff
    put_grant: str
    get_grant: str


def grants_mark(opening: JobOpening) -> int:
    """By which a full report tells the grants that a worker has from those that it should have."""
    return zlib.crc32(f"{opening.put_grant} {opening.get_grant}".encode())


class ParcelHead(msgspec.Struct, array_like=True, frozen=True):
    """A parcel; one body frame follows."""

    job: int
    first: int
    count: int
    codec: str


class LeaseGrant(msgspec.Struct, array_like=True, frozen=True):
    """A slot's right to ``runs`` of ``job``, attempt ``attempt`` of each.

    ``parcels`` cover the runs; each has one body frame. ``budget_ucredits``: the agent stops at it.
    Renewed by reports; ``ttl_ms`` of the orders counts.
    """

    lease_id: int
    slot: int
    job: int
    attempt: int
    runs: list[Run]
    budget_ucredits: int
    parcels: list[ParcelHead]


class Welcome(Message, frozen=True, tag=1):
    """Answer to HELLO.

    ``session``: 16 random bytes that every later message carries. ``store``: the store's address.
    ``stop``: leases of ``Hello.held`` that are no longer current.
    """

    session: bytes
    worker: int
    broker: str
    report_ms: int
    ttl_ms: int
    store: str
    stop: list[int] = []


class Orders(Message, frozen=True, tag=2):
    """What the worker should have.

    ``acked``: every result up to this number is committed, superseded ones included: forget them.
    Body frames: one for each of ``openings``, then one for each parcel of each of ``leases``.
    ``recall``: hand back what has not started of these leases. ``stop``: kill what runs of these
    leases; the subtask at ``started`` gets the outcome (an ``Outcome`` number), the rest is
    returned. ``close``: jobs that will get no more leases: end their jails. ``answers``: number of
    the report that this answers, 0 for unasked orders; only an answer extends the worker's own
    right to run (it stops its jails one ttl after it *sent* the last answered report).
    """

    answers: int
    acked: int
    openings: list[JobOpening]
    leases: list[LeaseGrant]
    recall: list[int]
    stop: list[tuple[int, int]]
    close: list[int]
    report_ms: int
    ttl_ms: int
    is_drain: bool = False


class Refused(Message, frozen=True, tag=3):
    """The worker's message was not accepted.

    ``REJOIN`` and ``RATE_LIMITED`` ask for a new HELLO, anything else ends the worker. ``session``:
    that of the message with REJOIN; when it is not the worker's present one, there is nothing to
    join again. ``retry_after_ms`` of ``RATE_LIMITED``: until then nothing of this key is taken.
    """

    code: str
    message: str
    hint: str
    session: bytes = b""
    retry_after_ms: int = 0


BrokerToWorker = Welcome | Orders | Refused
decode_orders: HeaderDecoder[Welcome | Orders | Refused] = HeaderDecoder(BrokerToWorker)
