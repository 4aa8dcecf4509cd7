"""Orders alone: gathered, cut at the limits, in order, waiting for frames."""

from collections.abc import Callable
from typing import Any

from gristmill.broker.mailbox import Peer
from gristmill.broker.metrics import Metrics
from gristmill.broker.orders import OrderDesk
from gristmill.broker.parcels import FUNCTION, FrameCache
from gristmill.broker.sessions import Workers, WorkerSession
from gristmill.wire import limits
from gristmill.wire.spec import JobSpec, Tariff
from gristmill.wire.worker import Hello, JobOpening, LeaseGrant, Orders, ParcelHead, decode_orders

HELLO = Hello(1, "w", "ab" * 32, b"i" * 16, 2, 1, 1, 1, {}, ["job"], [], "proc", "t")


class Box:
    """Stands in for the back's mailbox."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, list[bytes]]] = []

    def send(self, peer: Peer, frames: list[bytes]) -> None:
        message = decode_orders.decode(frames[0])
        assert isinstance(message, Orders)
        self.sent.append((message, frames[1:]))


class Disk:
    """Stands in for the reader."""

    def __init__(self) -> None:
        self.asked: list[Callable[[Any], None]] = []

    def ask(self, question: Any, then: Callable[[Any], None], failed: Any) -> None:
        self.asked.append(then)


class Rig:
    """A desk with one worker, and a frame cache over a disk that the test answers."""

    def __init__(self) -> None:
        self.box, self.disk, self.committed = Box(), Disk(), 0
        self.cache = FrameCache(
            10_000,
            self.disk,  # type: ignore[arg-type]
            lambda: self.committed,
            Metrics(),
        )
        self.desk = OrderDesk(self.box, self.cache, Metrics())  # type: ignore[arg-type]
        self.session: WorkerSession = Workers().join(b"r", HELLO, 1_000, 3_500, 0)

    def lease(self, number: int, first: int = 0, parcels: int = 1) -> LeaseGrant:
        heads = [ParcelHead(1, first + at, 1, "q") for at in range(parcels)]
        return LeaseGrant(number, 0, 1, 1, [(first, parcels)], 0, heads)

    def opening(self, job: int = 1, name: str = "") -> JobOpening:
        spec = JobSpec("function", function="a" * 64, name=name)
        return JobOpening(job, "t", spec, Tariff(), "put", "get")


def test_one_turn_is_one_message() -> None:
    rig = Rig()
    rig.cache.put(1, FUNCTION, b"f", 0)
    rig.cache.put(1, 0, b"p0", 0)
    draft = rig.desk.draft(rig.session)
    draft.batch(1).openings.append(rig.opening())
    draft.batch(1).leases += [rig.lease(7), rig.lease(8)]
    draft.batch().recall.append(5)
    draft.batch().stop.append((6, 12))
    rig.desk.answer(rig.session, 3, 44, False)
    rig.desk.flush()
    ((message, bodies),) = rig.box.sent
    assert (message.answers, message.acked, message.recall, message.stop) == (3, 44, [5], [(6, 12)])
    assert [lease.lease_id for lease in message.leases] == [7, 8]
    assert bodies == [b"f", b"p0", b"p0"]
    rig.desk.flush()
    assert len(rig.box.sent) == 1


def test_a_job_that_is_closed_and_opened_again_takes_two_messages() -> None:
    rig = Rig()
    rig.cache.put(1, FUNCTION, b"f", 0)
    rig.desk.draft(rig.session).batch().close.append(1)
    rig.desk.draft(rig.session).batch(1).openings.append(rig.opening())
    rig.desk.flush()
    assert [message.close for message, _ in rig.box.sent] == [[1], []]
    assert [len(message.openings) for message, _ in rig.box.sent] == [0, 1]


def test_leases_wait_for_their_parcels_and_answers_do_not() -> None:
    rig = Rig()
    rig.desk.draft(rig.session).batch(1).leases.append(rig.lease(7))
    rig.desk.answer(rig.session, 1, 0, False)
    rig.desk.flush()
    ((message, bodies),) = rig.box.sent
    assert (message.answers, message.leases, bodies) == (1, [], [])
    rig.desk.draft(rig.session).batch().stop.append((7, 12))  # behind the lease that it stops
    rig.desk.flush()
    assert len(rig.box.sent) == 1 and len(rig.disk.asked) == 1
    rig.disk.asked.pop()({(1, 0): b"p0"})
    rig.desk.flush()
    message, bodies = rig.box.sent[1]
    assert (message.leases[0].lease_id, message.stop, bodies) == (7, [(7, 12)], [b"p0"])


def test_a_parcel_that_cannot_be_read_goes_out_empty() -> None:
    rig = Rig()
    rig.desk.draft(rig.session).batch(1).leases.append(rig.lease(7))
    rig.desk.flush()
    rig.disk.asked.pop()({})
    rig.desk.flush()
    assert rig.box.sent[0][1] == [b""]


def test_messages_stay_within_the_limits() -> None:
    rig = Rig()
    for first in range(64):
        rig.cache.put(1, first, b"p", 0)
    for number in range(200):
        rig.desk.draft(rig.session).batch(1).leases.append(rig.lease(number, parcels=20))
    rig.desk.answer(rig.session, 9, 5, False)
    rig.desk.flush()
    sent = [lease.lease_id for message, _ in rig.box.sent for lease in message.leases]
    assert sent == list(range(200))
    for message, bodies in rig.box.sent:
        assert len(message.leases) <= limits.LEASES_PER_ORDERS_MAX
        assert len(bodies) == 20 * len(message.leases) <= limits.MESSAGE_FRAMES_MAX - 8
    assert [message.answers for message, _ in rig.box.sent].count(9) == 1


def test_the_stops_of_a_join_are_taken_for_the_welcome() -> None:
    rig = Rig()
    rig.desk.draft(rig.session).batch().stop += [(3, 16), (4, 16)]
    assert rig.desk.take_stops(rig.session) == [3, 4]
    rig.desk.forget(rig.session)
    rig.desk.flush()
    assert rig.box.sent == []


def test_frames_leave_memory_oldest_first_and_never_before_their_commit() -> None:
    rig = Rig()
    for first in range(20):
        rig.cache.put(1, first, b"x" * 1_000, group=1 if first < 10 else 2)
    assert rig.cache.size_bytes == 20_000  # nothing of it is on disk
    rig.committed = 1
    rig.cache.put(1, 20, b"x" * 1_000, group=3)
    assert rig.cache.get(1, 0) is None and rig.cache.get(1, 10) is not None
    rig.committed = 3
    rig.cache.put(2, 0, b"y", group=4)
    assert rig.cache.size_bytes <= 10_000 and rig.cache.get(2, 0) == b"y"
    rig.cache.drop_job(1)
    assert rig.cache.size_bytes == 1 and rig.cache.get(1, 20) is None


def test_an_answer_waits_for_orders_or_for_the_tick() -> None:
    rig = Rig()
    rig.desk.answer(rig.session, 3, 44, False)
    rig.desk.flush()
    assert not rig.box.sent, "nobody waits for it"
    rig.desk.answer(rig.session, 4, 45, False)
    rig.desk.draft(rig.session).batch().recall.append(5)
    rig.desk.flush()
    ((message, _),) = rig.box.sent
    assert (message.answers, message.acked, message.recall) == (4, 45, [5])
    rig.desk.send_answers()
    rig.desk.flush()
    assert len(rig.box.sent) == 1, "it went with the orders"
    rig.desk.answer(rig.session, 5, 46, False)
    rig.desk.send_answers()
    rig.desk.flush()
    assert [one.answers for one, _ in rig.box.sent] == [4, 5]
    rig.desk.answer(rig.session, 6, 46, True)
    rig.desk.flush()
    assert rig.box.sent[-1][0].is_drain, "a worker that is to drain hears of it at once"
    rig.desk.answer(rig.session, 7, 47, True)
    rig.desk.forget(rig.session)
    rig.desk.send_answers()
    rig.desk.flush()
    assert len(rig.box.sent) == 3, "nobody is there any more"


def test_a_worker_that_has_gone_leaves_no_draft() -> None:
    rig = Rig()
    rig.session.peer.is_lost = True  # as the mailbox does when it forgets a peer
    rig.desk.forget(rig.session)
    rig.desk.answer(rig.session, 1, 1, False)  # what it reported was committed only now
    rig.desk.send_answers()
    rig.desk.flush()
    assert not rig.box.sent and not rig.desk._drafts


def test_frames_of_inputs_that_have_left_leave_memory() -> None:
    rig = Rig()
    for first in (FUNCTION, 0, 10, 20):
        rig.cache.put(1, first, b"x" * 100, 1)
    rig.cache.put(2, 0, b"x" * 100, 1)
    rig.cache.drop_before(1, 20)
    kept = [(1, FUNCTION), (1, 20), (2, 0)]
    every = [(job, first) for job in (1, 2) for first in (FUNCTION, 0, 10, 20)]
    assert [key for key in every if rig.cache.get(*key) is not None] == kept
    assert rig.cache.size_bytes == 300
    rig.cache.drop_before(3, 20)
