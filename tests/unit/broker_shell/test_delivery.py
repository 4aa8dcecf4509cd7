"""Delivery alone: commit before send, order, credit, the last card."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from gristmill.broker import delivery
from gristmill.broker.checkpoints import Told
from gristmill.broker.delivery import Delivery, Flow
from gristmill.broker.mailbox import Peer
from gristmill.broker.metrics import Metrics
from gristmill.broker.sessions import Clients, ClientSession
from gristmill.wire.client import JobEvent, JobStatus, Results, decode_broker
from gristmill.wire.frames import encode
from gristmill.wire.meter import pack_meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.registry import Principal
from gristmill.wire.worker import ResultHead

CARD = JobStatus(
    job=1, name="", kind="function", tenant="t", state="running", tier="job", priority=4, count=9,
    uploaded=9, waiting=0, ready=0, leased=0, done=0, failed=0, cancelled=0, retried=0, lost=0,
    superseded=0, submitted_ms=1, started_ms=0, finished_ms=0, wall_us=0, cpu_us=0, peak_kib=0,
    spent_ucredits=0, cap_ucredits=0, eta_ms=0, results=0,
)  # fmt: skip
DONE = msgspec.structs.replace(CARD, state="done")


class Box:
    """Stands in for the front's mailbox: what would leave, in order."""

    def __init__(self) -> None:
        self.sent: list[tuple[Peer, list[bytes]]] = []

    def send(self, peer: Peer, frames: list[bytes]) -> None:
        self.sent.append((peer, frames))

    def words(self) -> list[Any]:
        """Sequence numbers of results, states of cards."""
        words: list[Any] = []
        for _, frames in self.sent:
            message: Any = decode_broker.decode(frames[0])
            if isinstance(message, Results):
                words.append(message.sequence)
            elif isinstance(message, JobEvent):
                words.append(message.status.state)
            else:
                words.append(message.code)
        return words


class Disk:
    """Stands in for the reader: questions wait until the test answers them."""

    def __init__(self) -> None:
        self.asked: list[Callable[[Any], None]] = []

    def ask(self, question: Any, then: Callable[[Any], None], failed: Any) -> None:
        self.asked.append(then)


class Rig:
    """A delivery with one flow and one session."""

    def __init__(self, is_kept: bool = True, is_durable: bool = True, cache: int = 1 << 20) -> None:
        self.box, self.disk, self.freed = Box(), Disk(), []  # type: ignore[var-annotated]
        self.told: list[list[int]] = []
        self.delivery = Delivery(
            self.box,  # type: ignore[arg-type]
            self.disk,  # type: ignore[arg-type]
            cache,
            self.free,
            Metrics(),
            lambda tenant: self.is_full,
        )
        self.is_full = False
        self.flow = Flow(1, "t", is_kept, is_durable, 0)
        self.delivery.open(self.flow)
        self.clients = Clients()
        self.request = 0
        self.session = self.join()

    def free(self, job: int, upto: int, told: dict[int, Told]) -> None:
        self.freed.append((job, upto))
        self.told.append(sorted(told))

    def join(self) -> ClientSession:
        number = len(self.clients)
        who = Principal("", "operator", "t", "t", "active")
        return self.clients.join(b"r%d" % number, b"c%d" % number, who, 0)

    def frames(self, sequence: int, size: int = 100) -> list[bytes]:
        head = ResultHead(sequence, 1, 1, sequence, 1, "q", 1, 1, 1, "proc")
        header = encode(Results(1, sequence, head, 1, "n", []))
        return [header, b"x" * size, b"", b"", b""]

    def add(self, *sequences: int, size: int = 100) -> None:
        for sequence in sequences:
            self.delivery.add(self.flow, sequence, self.frames(sequence, size))

    def remember(self, sequence: int) -> None:
        head = ResultHead(sequence, 1, 1, sequence, 1, "q", 1, 1, 1, "proc")
        message = Results(1, sequence, head, 1, "n", [])
        self.delivery.remember(Told(message, pack_meter(1, Outcome.OK), b"", (1, 1, 1), 100))

    def subscribe(self, after: int = 0, allowed: int = 1 << 30, request: int = 0) -> None:
        self.request = request or self.request + 1
        self.delivery.subscribe(self.session, self.flow, after, allowed, self.request)


def test_results_wait_for_their_commit() -> None:
    rig = Rig()
    rig.subscribe()
    rig.add(1, 2, 3)
    assert rig.box.words() == []
    rig.delivery.settle(rig.flow, 2)
    assert rig.box.words() == [1, 2]
    rig.delivery.settle(rig.flow, 3)
    assert rig.box.words() == [1, 2, 3]


def test_a_job_that_gave_up_durability_gets_its_results_at_once() -> None:
    rig = Rig(is_durable=False)
    rig.subscribe()
    rig.add(1)
    assert rig.box.words() == [1]
    rig.delivery.settle(rig.flow, 1)
    assert rig.box.words() == [1]


def test_the_last_card_follows_the_last_result_under_credit() -> None:
    rig = Rig()
    rig.subscribe(allowed=150)
    rig.add(1, 2, 3)
    rig.delivery.settle(rig.flow, 3)
    rig.delivery.tell(rig.flow, DONE)
    assert rig.box.words() == [1, 2]  # the second crossed the limit
    rig.delivery.allow(rig.session, 1, 2, 1_000)
    assert rig.box.words() == [1, 2, 3, "done"]
    assert rig.delivery.find(1) is None and rig.delivery.cached_bytes == 0


def test_figures_that_went_before_change_nothing() -> None:
    rig = Rig()
    rig.subscribe(allowed=1)
    rig.add(1, 2)
    rig.delivery.settle(rig.flow, 2)
    for allowed in (0, 1, 1):
        rig.delivery.allow(rig.session, 1, 0, allowed)
    assert rig.box.words() == [1]


def test_what_left_memory_is_read_and_the_order_stays() -> None:
    rig = Rig(cache=250)
    rig.add(1, 2, 3, 4)
    rig.delivery.settle(rig.flow, 4)
    rig.subscribe()
    assert rig.box.words() == [] and len(rig.disk.asked) == 1
    rig.add(5)
    rig.delivery.settle(rig.flow, 5)
    assert len(rig.disk.asked) == 1  # one read at a time
    rig.disk.asked.pop()([(n, rig.frames(n)) for n in (1, 2)])
    rest = rig.box.words()
    while rig.disk.asked:
        rig.disk.asked.pop()([(n, rig.frames(n)) for n in range(rest[-1] + 1, 6)])
        rest = rig.box.words()
    assert rest == [1, 2, 3, 4, 5]


def test_an_evicted_result_is_not_read_before_it_is_on_disk() -> None:
    rig = Rig(cache=50)
    rig.subscribe()
    rig.add(1)
    assert rig.disk.asked == [] and rig.box.words() == []
    rig.delivery.settle(rig.flow, 1)
    assert len(rig.disk.asked) == 1


def test_a_damaged_result_is_said_and_the_rest_comes() -> None:
    rig = Rig(cache=50)
    rig.add(1, 2)
    rig.delivery.settle(rig.flow, 2)
    rig.subscribe()
    rig.disk.asked.pop()([(1, None), (2, rig.frames(2))])
    assert rig.box.words() == ["INTERNAL", 2]


@pytest.mark.parametrize("is_kept", [True, False])
def test_only_results_that_nobody_keeps_are_freed(is_kept: bool) -> None:
    rig = Rig(is_kept=is_kept)
    rig.subscribe()
    rig.add(1, 2)
    rig.delivery.settle(rig.flow, 2)
    rig.delivery.tell(rig.flow, DONE)
    rig.delivery.allow(rig.session, 1, 99, 1 << 30)  # more than was sent counts as all
    assert rig.freed == ([] if is_kept else [(1, 2)])
    assert rig.delivery.find(1) is None


def test_what_results_meant_is_remembered_until_they_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(is_kept=False)
    rig.is_full = True
    rig.subscribe()
    rig.add(1, 2, 3, 4)
    for sequence in (1, 2, 3):
        rig.remember(sequence)
    rig.delivery.settle(rig.flow, 4)
    rig.delivery.allow(rig.session, 1, 2, 1 << 30)
    monkeypatch.setattr(delivery, "TOLD_BYTES", 0)  # older ones give way
    rig.remember(4)
    rig.delivery.allow(rig.session, 1, 4, 1 << 30)
    assert rig.freed == [(1, 2), (1, 4)] and rig.told == [[1, 2], []]
    assert rig.delivery._told_bytes == 0 and not rig.delivery._told


def test_what_was_read_leaves_a_full_disk_at_once() -> None:
    rig = Rig(is_kept=False)
    rig.subscribe()
    rig.add(1, 2, 3)
    rig.delivery.settle(rig.flow, 3)
    rig.delivery.allow(rig.session, 1, 1, 1 << 30)
    assert rig.freed == [], "a few wait for company"
    rig.is_full = True
    rig.delivery.allow(rig.session, 1, 2, 1 << 30)
    assert rig.freed == [(1, 2)], "an upload may wait for this room"


def test_a_client_that_does_not_read_rests_and_goes_on() -> None:
    rig = Rig()
    rig.subscribe()
    rig.session.peer.queue.extend([[b"waiting"]] * 8)
    rig.add(1, 2)
    rig.delivery.settle(rig.flow, 2)
    assert rig.box.words() == []
    rig.session.peer.queue.clear()
    rig.delivery.resume()
    assert rig.box.words() == [1, 2]


def test_a_session_that_ended_gets_nothing_and_others_go_on() -> None:
    rig = Rig()
    rig.subscribe()
    other = rig.join()
    rig.delivery.subscribe(other, rig.flow, 0, 1 << 30, 1)
    rig.delivery.drop_session(rig.session)
    rig.add(1)
    rig.delivery.settle(rig.flow, 1)
    assert [peer for peer, _ in rig.box.sent] == [other.peer]


def test_subscribing_again_replaces_and_starts_where_it_is_told() -> None:
    rig = Rig()
    rig.add(1, 2, 3)
    rig.delivery.settle(rig.flow, 3)
    other = rig.join()
    rig.delivery.subscribe(other, rig.flow, 3, 0, 1)  # two readers: memory is kept for both
    rig.subscribe(after=1)
    rig.subscribe(after=2)
    assert rig.box.words() == [2, 3, 3]


def test_a_late_copy_of_a_subscription_changes_nothing() -> None:
    rig = Rig()
    rig.subscribe(allowed=1, request=4)
    rig.add(1, 2, 3)
    rig.delivery.settle(rig.flow, 3)
    rig.subscribe(after=1, allowed=1, request=5)
    assert rig.box.words() == [1, 2]
    rig.subscribe(allowed=1 << 30, request=4)
    rig.subscribe(after=1, allowed=1 << 30, request=5)
    assert rig.box.words() == [1, 2], "neither the old credit"
    assert not rig.disk.asked, "nor the old place"
    rig.subscribe(after=1, allowed=1 << 30, request=6)
    assert len(rig.disk.asked) == 1
