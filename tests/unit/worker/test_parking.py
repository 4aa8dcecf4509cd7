"""What may leave its slot without an end, and what may not."""

import pathlib
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from gristmill.worker.core import effects as do
from gristmill.worker.parked import Parked
from gristmill.worker.yard import Yard, _Occupant


class Process:
    """Stands in for a jail."""

    def __init__(self) -> None:
        self.is_ended, self.memory_bytes, self.kills = False, 1 << 20, 0

    def usage(self) -> Any:
        return SimpleNamespace(memory_bytes=self.memory_bytes)

    def cpu_us(self) -> int:
        return 0

    def is_over(self) -> bool:
        return self.is_ended


class Slot:
    """Stands in for a port; ``started`` is what its page says, None once that is closed."""

    def __init__(self) -> None:
        self.slot, self.jail, self.process = 0, 1, Process()
        self.is_ready, self.is_sending = True, False
        self.started: int | None = -1
        self.page = SimpleNamespace(started=self._started)
        self.ends = socket.socketpair()

    def _started(self) -> tuple[int, int]:
        if self.started is None:
            raise ValueError("operation forbidden on released memoryview object")
        return 7, self.started

    def descriptors(self) -> list[int]:
        return [end.fileno() for end in self.ends]

    def kill(self, cause: str) -> None:
        self.process.kills += 1


@pytest.fixture
def yard(tmp_path: pathlib.Path) -> Any:
    nothing: Any = None
    return Yard(
        tmp_path, None, 0, 8, nothing, nothing, lambda *_: None, lambda _: None, lambda: 0
    )  # fmt: skip


def occupied(yard: Any, tmp_path: pathlib.Path, tier: str = "batch") -> tuple[Any, Any]:
    """An idle jail of a job, in slot 0."""
    room = SimpleNamespace(spec=SimpleNamespace(tier=tier), opening=SimpleNamespace(job=5))
    slot: Any = Slot()
    occupant = yard._occupants[1] = _Occupant(slot, room, tmp_path)  # type: ignore[arg-type]
    yard._rooms[5] = room
    return slot, occupant


def test_an_idle_jail_leaves_its_slot_and_comes_back(yard: Any, tmp_path: pathlib.Path) -> None:
    slot, _ = occupied(yard, tmp_path)
    yard.kill(do.KillJail(0, 1, "park"))
    (ended,) = yard.take_events()
    assert (ended.slot, ended.jail, ended.index) == (0, 1, -1)
    assert slot.process.kills == 0 and yard._parked.take(5) is slot
    assert yard._parked.take(5) is None


@pytest.mark.parametrize(
    "what", ["gone", "ended", "busy", "sending", "wanting", "fed", "large", "strict", "closed"]
)
def test_what_is_not_idle_or_not_small_ends(yard: Any, tmp_path: pathlib.Path, what: str) -> None:
    slot, occupant = occupied(yard, tmp_path, "strict" if what == "strict" else "batch")
    if what == "gone":  # its end was seen in this very turn: its page is closed
        occupant.is_over, slot.started = True, None
    slot.process.is_ended = what == "ended"
    slot.is_sending, occupant.is_wanting = what == "sending", what == "wanting"
    if what == "busy":
        slot.started = 3
    if what == "fed":
        occupant.feeds.append([None])
    if what == "large":
        slot.process.memory_bytes = 1 << 30
    if what == "closed":
        yard._rooms.clear()
    yard.kill(do.KillJail(0, 1, "park"))
    assert slot.process.kills == 1 and yard._parked.take(5) is None
    assert yard.take_events() == [], "its end is told when it has come"


def test_the_first_that_was_parked_makes_room_and_a_closed_job_keeps_none() -> None:
    parked, slots = Parked(2), [Slot() for _ in range(4)]
    for job, slot in enumerate(slots[:3]):
        assert parked.put(job, slot)  # type: ignore[arg-type]
    assert [slot.process.kills for slot in slots] == [1, 0, 0, 0]
    assert parked.take(0) is None and parked.take(1) is slots[1]
    slots[2].process.is_ended = True
    assert parked.take(2) is None, "it died meanwhile"
    assert parked.put(3, slots[3])  # type: ignore[arg-type]
    parked.drop_job(3)
    assert slots[3].process.kills == 1 and parked.take(3) is None
    assert not Parked(0).put(4, slots[1]), "none is kept"  # type: ignore[arg-type]
