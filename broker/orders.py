"""What workers should have, gathered for each worker and sent as few messages as possible.

Everything that one turn of the loop decides for a worker leaves in one ``Orders`` (cut where a
message would break a limit). Leases wait for parcels that must be read back from the journal, and
whatever was ordered after them for that worker waits with them; answers to reports never wait for
that. An answer to a report also answers the reports before it; nobody works faster for it, so it
travels with the next orders, or with the next tick.
"""

import dataclasses
from collections.abc import Iterable

from gristmill.broker.mailbox import Mailbox
from gristmill.broker.metrics import Metrics
from gristmill.broker.parcels import FUNCTION, FrameCache, Key
from gristmill.broker.sessions import WorkerSession
from gristmill.wire import limits
from gristmill.wire.frames import encode
from gristmill.wire.worker import JobOpening, LeaseGrant, Orders

#: leaves room for the rest of a message
_FRAMES_MAX = limits.MESSAGE_FRAMES_MAX - 8


@dataclasses.dataclass(slots=True)
class Batch:
    """Orders that may go out together: no job is closed and then opened again in one."""

    openings: list[JobOpening] = dataclasses.field(default_factory=list)
    leases: list[LeaseGrant] = dataclasses.field(default_factory=list)
    recall: list[int] = dataclasses.field(default_factory=list)
    stop: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    close: list[int] = dataclasses.field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Nothing is ordered (any more)."""
        return not (self.openings or self.leases or self.recall or self.stop or self.close)

    def keys(self) -> Iterable[Key]:
        """The frames that its message needs, in order."""
        for opening in self.openings:
            if opening.spec.kind == "function":
                yield opening.job, FUNCTION
        for lease in self.leases:
            for parcel in lease.parcels:
                yield parcel.job, parcel.first


class Draft:
    """What waits to be sent to one worker."""

    __slots__ = ("acked", "answers", "batches", "frames", "is_drain", "is_loading", "session")

    def __init__(self, session: WorkerSession) -> None:
        self.session = session
        self.batches: list[Batch] = []
        self.frames: dict[Key, bytes] = {}
        self.is_loading = False
        self.answers = 0
        self.acked = 0
        self.is_drain = False

    def batch(self, job: int = 0) -> Batch:
        """The batch to add to; a new one when this job was closed in the last."""
        if not self.batches or (job and job in self.batches[-1].close):
            self.batches.append(Batch())
        return self.batches[-1]


class OrderDesk:
    """See the module's text. ``flush`` sends what was gathered."""

    def __init__(self, mailbox: Mailbox, frames: FrameCache, metrics: Metrics) -> None:
        self._mailbox = mailbox
        self._frames = frames
        self._metrics = metrics
        self._drafts: dict[int, Draft] = {}
        self._dirty: dict[int, Draft] = {}
        self._answered: dict[int, Draft] = {}

    def draft(self, session: WorkerSession) -> Draft:
        """The draft of a worker, to be sent by the next ``flush``."""
        draft = self._dirty[session.number] = self._draft(session)
        return draft

    def _draft(self, session: WorkerSession) -> Draft:
        draft = self._drafts.get(session.number)
        if draft is None:
            draft = self._drafts[session.number] = Draft(session)
        return draft

    def answer(self, session: WorkerSession, number: int, acked: int, is_drain: bool) -> None:
        """A report is answered; its results are on disk. The worker may have gone meanwhile."""
        if session.peer.is_lost:
            return
        draft = self._answered[session.number] = self._draft(session)
        draft.answers = max(draft.answers, number)
        draft.acked = max(draft.acked, acked)
        if draft.is_drain != is_drain:
            draft.is_drain = is_drain
            self._dirty[session.number] = draft

    def send_answers(self) -> None:
        """Answers leave that no orders have taken along."""
        answered, self._answered = self._answered, {}
        for draft in answered.values():
            if draft.answers:
                self._dirty[draft.session.number] = draft

    def probe(self, session: WorkerSession) -> None:
        """Orders with nothing in them: whoever is gone cannot be sent even that."""
        if not session.peer.is_lost:
            self._emit(self._draft(session), Batch(), 0)

    def take_stops(self, session: WorkerSession) -> list[int]:
        """The leases that a draft would stop, taken out of it: WELCOME names them."""
        draft = self._drafts.get(session.number)
        stops = []
        for batch in draft.batches if draft else ():
            stops += [lease for lease, _ in batch.stop]
            batch.stop.clear()
        return stops

    def forget(self, session: WorkerSession) -> None:
        """The worker is gone."""
        self._drafts.pop(session.number, None)
        self._dirty.pop(session.number, None)
        self._answered.pop(session.number, None)

    def flush(self) -> None:
        """Sends everything whose frames are at hand."""
        if self._dirty:
            dirty, self._dirty = self._dirty, {}
            for draft in dirty.values():
                self._send(draft)

    def _send(self, draft: Draft) -> None:
        answers, draft.answers = draft.answers, 0
        while draft.batches and not draft.is_loading:
            if not self._collect(draft):
                break
            batch = draft.batches.pop(0)
            if answers or not batch.is_empty:
                self._emit(draft, batch, answers)
                answers = 0
        if not draft.batches:
            draft.frames = {}
        if answers:
            self._emit(draft, Batch(), answers)

    def _collect(self, draft: Draft) -> bool:
        """Whether all frames of the first batch are at hand; else they are being read."""
        frames, missing = draft.frames, []
        for key in draft.batches[0].keys():
            if key not in frames:
                frame = self._frames.get(*key)
                if frame is None:
                    missing.append(key)
                else:
                    frames[key] = frame
        if not missing:
            return True
        draft.is_loading = True

        def loaded(found: dict[Key, bytes]) -> None:
            draft.is_loading = False
            for key in missing:
                # A damaged parcel goes out empty: its subtasks end with outcome ENCODING.
                draft.frames[key] = found.get(key, b"")
            if self._drafts.get(draft.session.number) is draft:
                self._dirty[draft.session.number] = draft

        self._frames.load(missing, loaded)
        return False

    def _emit(self, draft: Draft, batch: Batch, answers: int) -> None:
        openings, leases = batch.openings, batch.leases
        bodies = [
            draft.frames[opening.job, FUNCTION] if opening.spec.kind == "function" else b""
            for opening in openings
        ]
        for lease in leases:
            for parcel in lease.parcels:
                bodies.append(draft.frames[parcel.job, parcel.first])
        session = draft.session
        header = encode(
            Orders(
                answers, draft.acked, openings, leases, batch.recall, batch.stop, batch.close,
                session.report_ms, session.ttl_ms, draft.is_drain,
            )
        )  # fmt: skip
        pieces = len(openings) + len(leases)
        is_large = (
            len(header) > limits.HEADER_BYTES_MAX
            or len(bodies) > _FRAMES_MAX
            or len(leases) > limits.LEASES_PER_ORDERS_MAX
        )
        if is_large and pieces > 1:
            self._emit_in_two(draft, batch, answers)
            return
        self._metrics.orders += 1
        self._metrics.leases += len(leases)
        self._mailbox.send(session.peer, [header, *bodies])

    def _emit_in_two(self, draft: Draft, batch: Batch, answers: int) -> None:
        openings, leases = batch.openings, batch.leases
        if openings and leases:
            cut = Batch(openings), Batch([], leases, batch.recall, batch.stop, batch.close)
        elif openings:
            half = len(openings) // 2
            cut = (
                Batch(openings[:half]),
                Batch(openings[half:], [], batch.recall, batch.stop, batch.close),
            )
        else:
            half = len(leases) // 2
            cut = (
                Batch([], leases[:half]),
                Batch([], leases[half:], batch.recall, batch.stop, batch.close),
            )
        self._emit(draft, cut[0], answers)
        self._emit(draft, cut[1], 0)
