"""The worker's core with a clock: every step's effects are returned."""

from typing import Any

from gristmill.wire.failure import Failure
from gristmill.wire.meter import pack_meter, unpack_meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import JobSpec, Tariff
from gristmill.wire.worker import (
    Hello,
    JobOpening,
    LeaseGrant,
    Orders,
    ParcelHead,
    Returned,
    Welcome,
)
from gristmill.worker.core import effects as do
from gristmill.worker.core import events as on
from gristmill.worker.core.state import Setting, State, new_state
from gristmill.worker.core.step import step

HELLO = Hello(
    1, "w", "ab" * 32, b"i" * 16, 2, 2_000, 1 << 30, 1 << 30, {}, ["job", "batch"], ["3.11"],
    "cgroup", "0",
)  # fmt: skip
SESSION = b"s" * 16
TTL, REPORT = 3_500, 1_000
MARGIN = TTL // 16  #: the worker stops that much before the broker may give its leases away
PLENTY = 1 << 50


class Rig:
    """A state with a clock; every step's effects are returned."""

    def __init__(self, **setting: Any) -> None:
        self.state: State = new_state(Setting(HELLO, **setting))
        self.now = 1_000
        self.lease = 0
        self.answered = 0
        self.joined = 0

    def tell(self, event: on.Event) -> list[do.Effect]:
        return step(self.state, event, self.now)

    def turn(self, after_ms: int = 0) -> list[do.Effect]:
        self.now += after_ms
        return self.tell(on.TurnEnded())

    def join(self, stop: tuple[int, ...] = ()) -> "Rig":
        self.tell(on.Began())
        self.turn()
        session = SESSION if not self.joined else self.joined.to_bytes(16, "big")
        self.joined += 1
        self.tell(on.Welcomed(Welcome(session, 1, "broker", REPORT, TTL, "", list(stop))))
        self.turn()  # the first full report
        return self

    def orders(self, **fields: Any) -> list[do.Effect]:
        openings = fields.get("openings", [])
        leases = fields.get("leases", [])
        message = Orders(
            answers=fields.get("answers", 0),
            acked=fields.get("acked", 0),
            openings=openings,
            leases=leases,
            recall=fields.get("recall", []),
            stop=fields.get("stop", []),
            close=fields.get("close", []),
            report_ms=REPORT,
            ttl_ms=TTL,
            is_drain=fields.get("is_drain", False),
        )
        event = on.OrdersArrived(
            message,
            tuple(b"function" for _ in openings),
            tuple(tuple(b"parcel" for _ in lease.parcels) for lease in leases),
        )
        return self.tell(event)

    def open(
        self,
        job: int = 1,
        tariff: Tariff | None = None,
        **spec: Any,
    ) -> list[do.Effect]:
        made = JobSpec(kind="function", function="0" * 64, **{"tier": "batch", **spec})
        return self.orders(openings=[JobOpening(job, "t", made, tariff or Tariff(), "put", "get")])

    def grant(
        self, first: int, count: int, job: int = 1, slot: int = 0, budget: int = PLENTY
    ) -> LeaseGrant:
        self.lease += 1
        return LeaseGrant(
            self.lease, slot, job, 1, [(first, count)], budget, [ParcelHead(job, first, count, "q")]
        )

    def give(self, first: int, count: int, **more: Any) -> list[do.Effect]:
        return self.orders(leases=[self.grant(first, count, **more)])

    def running(self, count: int = 4, **spec: Any) -> "Rig":
        """Slot 0 has jail 1 with lease 1 over ``0 .. count``."""
        self.join()
        self.open(**spec)
        self.give(0, count)
        self.tell(on.JailReady(0, 1))
        return self

    def result(
        self,
        lease: int,
        first: int,
        count: int,
        slot: int = 0,
        jail: int = 1,
        cpu_us: int = 0,
        wall_us: int = 5,
    ) -> list[do.Effect]:
        frames = (b"v", pack_meter(count), b"", b"")
        return self.tell(
            on.ResultArrived(
                slot,
                jail,
                lease,
                first,
                count,
                "q",
                wall_us,
                cpu_us,
                1,
                "cgroup",
                True,
                count,
                frames,
            )
        )

    def look(self, lease: int, index: int, jail: int = 1, **more: Any) -> list[do.Effect]:
        return self.tell(on.Looked((on.Look(0, jail, lease, index, **more),)))

    def alive(self, after_ms: int = REPORT) -> list[int]:
        """The slots that the next full report renews."""
        effects = self.turn(after_ms)
        (report,) = (each.message for each in effects if isinstance(each, do.SendReport))
        assert report.is_full
        self.orders(answers=report.number)
        return report.slots_alive

    def died(self, outcome: Outcome, lease: int = 0, index: int = -1, jail: int = 1) -> Any:
        return self.tell(
            on.JailEnded(0, jail, int(outcome), Failure("why"), lease, index, cpu_us=7)
        )


def told(effects: list[do.Effect]) -> tuple[list[Any], list[Returned], list[Any]]:
    """(results, returned, other effects) of a turn."""
    results: list[Any] = []
    returned: list[Returned] = []
    other: list[Any] = []
    for effect in effects:
        if isinstance(effect, do.SendReport):
            for head, frames in zip(effect.message.results, effect.frames, strict=True):
                meter = unpack_meter(frames[1], head.count)
                results.append((head.first, head.count, meter.outcome_at(0)))
            returned += effect.message.returned
        else:
            other.append(effect)
    return results, returned, other
