"""The workers' side: reports in, checked; events for the core out.

A report is checked whole before any of it counts. A result whose signature is wrong is handed to
the core under no lease, so that it is counted, kept as superseded, acked and never used.
"""

import hashlib
import logging
import os
from collections.abc import Callable

import msgspec

from gristmill.broker import canary, schema
from gristmill.broker.core import events as on
from gristmill.broker.core.on_workers import OWNER_LABEL
from gristmill.broker.execution import Execution
from gristmill.broker.gate import Gate, RateError, worker_rates
from gristmill.broker.journal import Journal
from gristmill.broker.lines import LineKeeper
from gristmill.broker.mailbox import Mailbox
from gristmill.broker.membership import Membership
from gristmill.broker.metrics import Metrics
from gristmill.broker.orders import OrderDesk
from gristmill.broker.ports import User, no_user
from gristmill.broker.principals import Principals
from gristmill.broker.sessions import Workers, WorkerSession
from gristmill.broker.settings import BrokerSettings
from gristmill.wire import limits
from gristmill.wire import worker as say
from gristmill.wire.errors import RemoteError
from gristmill.wire.failure import Failure, unpack_failures
from gristmill.wire.frames import encode
from gristmill.wire.ids import is_digest
from gristmill.wire.meter import Meter, unpack_meter
from gristmill.wire.receipts import is_signed, receipt_of
from gristmill.wire.registry import Principal
from gristmill.wire.spec import TIERS
from gristmill.wire.tariffs import CLASS_LABEL, check_class, tariff_of

log = logging.getLogger("gristmill.broker.back")

NODES_MAX = 1_000_000  #: names pinned to keys
LOCAL_OWNER = "local"  #: of nodes that are nobody's in particular: each is an owner of its own
_ENDED = ("rejected", "expired", "revoked", "banned")
_FRAMES = say.RESULT_FRAMES


class Back:
    """See the module's text.

    Args:
        nodes: worker names pinned to keys, from the journal.
        principals: who may speak here; None where everybody who can connect may.
        membership: what the registry decided about nodes; None without one.
        apply: steps the core with an event and does its effects.
        attempt_of: of a lease of a worker, by their numbers; None when it is over.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        mailbox: Mailbox,
        workers: Workers,
        desk: OrderDesk,
        execution: Execution,
        journal: Journal,
        nodes: dict[str, str],
        principals: Principals | None,
        membership: Membership | None,
        lines: LineKeeper,
        apply: Callable[[on.AnyEvent], None],
        attempt_of: Callable[[int, int], int | None],
        metrics: Metrics,
    ) -> None:
        self._settings = settings
        self._mailbox = mailbox
        self._workers = workers
        self._desk = desk
        self._execution = execution
        self._journal = journal
        self._nodes = nodes
        self._principals = principals
        self._membership = membership
        self._gate = Gate("back", principals, worker_rates(settings), metrics)
        self._lines = lines
        self._apply = apply
        self._attempt_of = attempt_of
        self._metrics = metrics
        self._last_ref = 0

    def receive(
        self, frames: list[bytes], now_ms: int, user: User = no_user, is_taken: bool = False
    ) -> None:
        """One message of the back socket; ``user``: of its connection, see ``mailbox``.

        ``is_taken``: a HELLO that waited for the disk.
        """
        self._metrics.back_messages += 1
        routing, token, known, wait_ms = frames[0], b"", "", 0
        if self._gate.is_shut(routing, now_ms):
            return
        try:
            if not 2 <= len(frames) <= limits.MESSAGE_FRAMES_MAX:
                raise RemoteError(
                    "MALFORMED",
                    f"a message of {len(frames)} frames; 2 to {limits.MESSAGE_FRAMES_MAX}",
                )
            message = say.decode_worker.decode(frames[1])
            if isinstance(message, say.Hello):
                check_hello(message)
                if not is_taken:
                    self._gate.take_stranger(frames, limits.HELLO_REQUESTS, user, now_ms)
                message = self._as_approved(message, user)
                check_class(message.labels, self._settings.tariff)
                if self._is_pinned(message):
                    self._on_hello(routing, message, now_ms)
                else:  # the pin is on disk before the worker hears of it
                    self._pin(message.name, message.node)
                    self._execution.when_durable(
                        lambda: self.receive(frames, now_ms, user, is_taken=True)
                    )
                return
            session = self._workers.find(message.session)
            if session is None or session.peer.routing != routing:
                token = message.session
                if session is not None and user() not in ("", session.hello.node):
                    told = f"it said the session of {session.hello.name!r}, which has another key"
                    self._gate.note(RemoteError("FORBIDDEN", told), "", user, now_ms)
                raise RemoteError("REJOIN")
            known = session.hello.node
            session.seen_ms = now_ms
            self._workers.touch(session, now_ms)
            session.seen_utc_ms = self._execution.inbox.utc_ms
            if isinstance(message, say.Report):
                self._on_report(session, message, frames)
            elif isinstance(message, say.Lines):
                self._lines.take(session.number, message, frames[2:])
            else:
                self.end_session(session, True, f"goodbye: {message.reason:.200}")
        except RemoteError as error:
            try:
                if error.code != "RATE_LIMITED":
                    self._gate.take_stranger(frames, 1, user, now_ms)
            except RateError as limited:
                error = limited
            self._gate.note(error, known, user, now_ms)
            if error.code == "MALFORMED":
                self._metrics.malformed += 1
            elif error.code == "REJOIN":
                self._metrics.rejoins += 1
            elif isinstance(error, RateError):
                wait_ms = error.retry_after_ms
                if not error.is_answered:
                    return
            else:
                self._metrics.refused += 1
            refused = say.Refused(error.code, error.message, error.hint, token, wait_ms)
            self._mailbox.answer(routing, [encode(refused)])

    # ------------------------------------------------------------ sessions

    def _on_hello(self, routing: bytes, message: say.Hello, now_ms: int) -> None:
        name = message.name
        pinned = self._nodes[name]
        if pinned != message.node:
            self._metrics.names_taken += 1
            raise RemoteError(
                "NAME_TAKEN",
                f"worker {name!r} has the key {pinned:.12}..., this one {message.node:.12}...",
            )
        live = self._workers.named(name)
        if live is not None:
            is_same = live.hello.instance == message.instance
            silent_ms = now_ms - live.seen_ms
            if not is_same and silent_ms <= live.ttl_ms:
                self._metrics.names_taken += 1
                raise RemoteError(
                    "NAME_TAKEN",
                    f"worker {name!r} is here already, heard {silent_ms} ms ago; it keeps its"
                    f" place until it is silent for {live.ttl_ms} ms",
                )
            self.end_session(live, False, "its session was replaced")
        if len(self._workers) >= limits.WORKERS_MAX:
            raise RemoteError(
                "QUEUE_FULL", f"{len(self._workers)} workers; the limit is {limits.WORKERS_MAX}"
            )
        settings = self._settings
        session = self._workers.join(
            routing, message, settings.worker_report_ms, settings.worker_ttl_ms, now_ms
        )
        if self._principals is not None and (found := self._principals.find(message.node)):
            session.terms = terms_of(found)
        session.seen_utc_ms = self._execution.inbox.utc_ms
        row = (name, session.seen_utc_ms)
        self._journal.record("live_workers", schema.ADD_LIVE, row, 64)
        log.info(
            "worker=%d name=%s node=%.12s slots=%d held=%d joined",
            session.number, name, message.node, message.slots, len(message.held),
        )  # fmt: skip
        self._apply(
            on.WorkerJoined(
                session.number, name, message.node, message.slots, message.cpus_milli,
                message.memory_bytes, message.labels, message.tiers, message.pythons,
                message.metering, message.held, message.claims,
            )
        )  # fmt: skip
        welcome = say.Welcome(
            session.token, session.number, self._journal.broker, session.report_ms,
            session.ttl_ms, settings.store_address, self._desk.take_stops(session),
        )  # fmt: skip
        self._mailbox.send(session.peer, [encode(welcome)])
        if self._membership is not None:
            self._membership.joined(session)

    def _as_approved(self, message: say.Hello, user: User) -> say.Hello:
        """The key of the connection is the node's, and its principal may work.

        What an operator approved of it (slots, class, whose it is) counts, not what it says.

        Raises:
            RemoteError: why not.
        """
        if self._principals is None:
            return message
        public = user()
        if message.node != public:
            raise RemoteError(
                "FORBIDDEN",
                f"worker {message.name!r} says that its key is {message.node:.12}...; its"
                f" connection has {public:.12}...",
            )
        found = self._principals.admit(public, self._execution.inbox.utc_ms)
        if found.name != message.name:
            raise RemoteError(
                "FORBIDDEN", f"this key is of the node {found.name!r}, not of {message.name!r}"
            )
        if found.state == "approved" and self._membership is None:
            raise RemoteError(
                "NODE_PENDING",
                f"{found.name!r} is approved, and no registry is there to try it",
            )
        labels = {key: text for key, text in message.labels.items() if key != OWNER_LABEL}
        if found.tenant != LOCAL_OWNER:
            labels[OWNER_LABEL] = found.tenant
        if found.node_class:
            labels[CLASS_LABEL] = found.node_class
        slots = min(message.slots, found.slots_max or message.slots)
        return msgspec.structs.replace(message, slots=slots, labels=labels)

    def end_refused(self, changed: set[str], now_ms: int) -> None:
        """Principals changed: workers that may not work any more end now."""
        self._gate.look(now_ms)
        if self._principals is None:
            return
        self._gate.change(changed, now_ms)
        utc_ms = self._execution.inbox.utc_ms
        for session in self._workers:
            public = session.hello.node
            found = self._principals.find(public)
            if public in changed or found is None or 0 < found.expires_ms <= utc_ms:
                try:
                    found = self._principals.admit(public, utc_ms)
                    if terms_of(found) != session.terms:
                        self.end_session(session, False, "what it is approved for has changed")
                except RemoteError as error:
                    self.end_session(session, False, error.message)

    def _is_pinned(self, message: say.Hello) -> bool:
        """Whether its name has a key; one that an operator took out of the grid holds no name."""
        pinned = self._nodes.get(message.name)
        if pinned is None or pinned == message.node or self._principals is None:
            return pinned is not None
        old = self._principals.find(pinned)
        return old is not None and old.name == message.name and old.state not in _ENDED

    def _pin(self, name: str, node: str) -> None:
        if len(self._nodes) >= NODES_MAX and name not in self._nodes:
            raise RemoteError(
                "QUEUE_FULL", f"{NODES_MAX} names of workers are pinned; that is the limit"
            )
        self._nodes[name] = node
        row = (name, node, self._execution.inbox.utc_ms)
        self._journal.record("nodes", schema.ADD_NODE, row, 256)
        self._execution.tell_key(name, node)

    def end_session(self, session: WorkerSession, is_clean: bool, cause: str) -> None:
        """The worker is gone: the core takes its leases back."""
        if self._workers.get(session.number) is session:
            self.forget_session(session, cause)
            self._apply(on.WorkerLost(session.number, is_clean, cause))

    def forget_session(self, session: WorkerSession, cause: str) -> None:
        """What it says next is answered with REJOIN."""
        log.info("worker=%d name=%s left: %s", session.number, session.hello.name, cause)
        self._workers.remove(session)
        self._journal.record("live_workers", schema.DROP_LIVE, (session.hello.name,), 64)
        self._desk.forget(session)
        self._mailbox.forget(session.peer)

    # ------------------------------------------------------------ reports

    def _on_report(self, session: WorkerSession, message: say.Report, frames: list[bytes]) -> None:
        heads = message.results
        if len(frames) - 2 != _FRAMES * len(heads):
            raise RemoteError(
                "MALFORMED",
                f"{len(frames) - 2} body frames for {len(heads)} results; each has {_FRAMES}",
            )
        if len(heads) > limits.RESULTS_PER_REPORT_MAX:
            raise RemoteError(
                "MALFORMED",
                f"{len(heads)} results; the limit is {limits.RESULTS_PER_REPORT_MAX}",
            )
        inbox, events = self._execution.inbox, []
        results = inbox.results
        inbox.clear_results()
        at = 2
        for head in heads:
            body = frames[at : at + _FRAMES]
            at += _FRAMES
            self._last_ref += 1
            event = self._check_result(session, head, body)
            results[self._last_ref] = (head, body)
            events.append(event)
        if len(message.open_jobs) > limits.OPEN_JOBS_TOLD_MAX:
            raise RemoteError(
                "MALFORMED",
                f"{len(message.open_jobs)} open jobs; the limit is {limits.OPEN_JOBS_TOLD_MAX}",
            )
        self._metrics.reports += 1
        apply = self._apply
        for event in events:
            apply(event)
        if message.is_full:
            session.reading = message.reading
            session.compare_grants(message.open_jobs)
            session.is_draining = message.is_draining
        apply(
            on.WorkerReported(
                session.number, message.number, message.is_full, message.slots_alive,
                message.held, message.returned, message.is_draining,
                [job for job, _ in message.open_jobs],
            )
        )  # fmt: skip
        inbox.clear_results()

    def _check_result(
        self, session: WorkerSession, head: say.ResultHead, body: list[bytes]
    ) -> on.ResultArrived:
        payload, meter_frame, failures_frame, logs = body
        size = len(payload) + len(meter_frame) + len(failures_frame) + len(logs)
        if size > limits.RESULT_FRAME_BYTES_MAX:
            raise RemoteError(
                "MALFORMED",
                f"result {head.number} has {size} bytes;"
                f" the limit is {limits.RESULT_FRAME_BYTES_MAX}",
            )
        if (
            not 1 <= head.count <= limits.RANGE_ITEMS_MAX
            or head.first < 0
            or (min(head.wall_us, head.cpu_us, head.peak_kib) < 0)
        ):
            raise RemoteError(
                "MALFORMED",
                f"result {head.number} has count {head.count} from {head.first}, wall"
                f" {head.wall_us}, cpu {head.cpu_us}, peak {head.peak_kib}",
            )
        meter: Meter = unpack_meter(meter_frame, head.count)
        failures: list[tuple[int, str]] = []
        if failures_frame:
            failures = [(at, _told(one)) for at, one in unpack_failures(failures_frame)]
        told = head
        if head.signature and not self._is_signed(session, head, body):
            self._metrics.signatures_bad += 1
            words = (
                f"result {head.number} of job {head.job}, lease {head.lease_id}, of worker"
                f" {session.hello.name!r}: its signature is not good"
            )
            bad = RemoteError("FORBIDDEN", words)
            self._gate.note(bad, session.hello.node, no_user, session.seen_ms)
            told = msgspec.structs.replace(head, lease_id=0)
        digest, dice = b"", 0
        facts = self._execution.jobs.get(head.job)
        if facts is not None and facts.tenant == canary.TENANT:
            answer = canary.said(head.codec, payload)
            digest = canary.digest_of(answer)
            if self._membership is not None:
                self._membership.hear(head.job, session.hello.node, answer)
        elif facts is not None and facts.spec.quorum:
            digest, dice = values_digest(head.codec, payload), roll()
        return on.ResultArrived(
            session.number, told, meter, self._last_ref, size, failures,
            self._execution.inbox.utc_ms, digest, dice,
        )  # fmt: skip

    def _is_signed(self, session: WorkerSession, head: say.ResultHead, body: list[bytes]) -> bool:
        facts = self._execution.jobs.get(head.job)
        attempt = self._attempt_of(session.number, head.lease_id)
        if facts is None or attempt is None:
            return True  # the job or the lease is over: the core will call it superseded
        tariff = tariff_of(facts.tariffs, session.node_class)
        receipt = receipt_of(
            self._journal.broker, head, body, attempt, facts.spec, tariff, session.node_class
        )
        self._execution.inbox.digests[self._last_ref] = receipt.outcome_digest
        return is_signed(receipt, head.signature, session.hello.node)


def terms_of(node: Principal) -> tuple[int, str, str]:
    """What its worker's session was begun with: a change of it begins another one."""
    return node.slots_max, node.node_class, node.tenant


def values_digest(codec: str, payload: bytes) -> bytes:
    """By which replicas are compared: of the values as they travel, 16 bytes."""
    return hashlib.blake2b(b"%s\0%s" % (codec.encode(), payload), digest_size=16).digest()


def roll() -> int:
    """32 bits that no worker can foresee."""
    return int.from_bytes(os.urandom(4))


def check_hello(message: say.Hello) -> None:
    """Raises ``PROTOCOL`` for another version, ``MALFORMED`` that names every bad field."""
    if message.protocol != limits.PROTOCOL:
        raise RemoteError(
            "PROTOCOL",
            f"the worker (gristmill {message.version:.40}) speaks protocol {message.protocol},"
            f" this broker speaks {limits.PROTOCOL}",
        )
    bad = []
    name, chars_max = message.name, limits.NAME_CHARS_MAX
    if not name or len(name) > chars_max or not name.isprintable():
        bad.append(f"name is {name!r:.60}, must be 1 to {chars_max} printable characters")
    if not is_digest(message.node):
        bad.append(f"node is {message.node!r:.80}, must be 64 hex characters")
    if len(message.instance) != 16:
        bad.append(f"instance has {len(message.instance)} bytes, must be 16")
    if not 1 <= message.slots <= limits.SLOTS_PER_WORKER_MAX:
        bad.append(f"slots is {message.slots}, must be 1 to {limits.SLOTS_PER_WORKER_MAX}")
    if message.cpus_milli < 1 or message.memory_bytes < 1:
        bad.append(f"cpus_milli is {message.cpus_milli}, memory_bytes {message.memory_bytes}")
    if not message.tiers or any(tier not in TIERS for tier in message.tiers):
        bad.append(f"tiers is {message.tiers!r:.80}, must be some of {', '.join(TIERS)}")
    texts = [*message.labels, *message.labels.values(), *message.pythons]
    if len(message.labels) > limits.LABELS_MAX or any(len(text) > chars_max for text in texts):
        bad.append(f"labels: at most {limits.LABELS_MAX} of at most {chars_max} characters each")
    if bad:
        raise RemoteError("MALFORMED", "; ".join(bad))


def _told(failure: Failure) -> str:
    """A failure in one line, as Python itself ends a traceback."""
    return f"{failure.kind}: {failure.message}" if failure.kind else failure.message
