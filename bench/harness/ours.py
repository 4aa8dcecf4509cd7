"""One measured map on a running grid: rate, CPU of every process, results compared, bill summed."""

import time
from collections.abc import Callable
from typing import Any

from gristmill.client import Client
from harness.measure import cpu_us_by_role

BILL_S = 60.0  #: the outbox brings the last contribution to the ledger within this


class Bill:
    """What was billed since it was made; what came before it is waited for."""

    def __init__(self, client: Client) -> None:
        self._client = client
        deadline = time.monotonic() + BILL_S
        while client.grid()["outbox"]:
            assert time.monotonic() < deadline, "the ledger does not take the outbox"
            time.sleep(0.01)
        self._before = self._read()

    def _read(self) -> tuple[int, int]:
        rows = self._client.usage(by="day")
        return sum(row.subtasks for row in rows), sum(row.amount_ucredits for row in rows)

    def settle(self, subtasks: int) -> int:
        """Micro-credits, once exactly so many subtasks are on the bill.

        Contributions follow their results by a moment: the bill is looked at until it is complete.
        """
        deadline = time.monotonic() + BILL_S
        while (billed := self._read()[0] - self._before[0]) < subtasks:
            assert time.monotonic() < deadline, f"{billed} of {subtasks} subtasks were billed"
            time.sleep(0.02)
        assert billed == subtasks, f"{billed} subtasks were billed instead of {subtasks}"
        return self._read()[1] - self._before[1]


class Spent:
    """CPU of this process and everything below it, by role, since it was made."""

    def __init__(self) -> None:
        self._before = cpu_us_by_role()

    def each(self, count: int) -> dict[str, Any]:
        """``cpu_us`` and ``cpu_us_by_role``, of one of ``count`` subtasks."""
        after = cpu_us_by_role()
        spent = {role: (after[role] - self._before.get(role, 0)) / count for role in sorted(after)}
        return {
            "cpu_us": sum(spent.values()),
            "cpu_us_by_role": {role: value for role, value in spent.items() if value > 0},
        }


def measured_map(
    client: Client, function: Callable[[Any], Any], values: list[Any], **options: Any
) -> dict[str, Any]:
    """Figures of one map whose results are its inputs."""
    bill, spent = Bill(client), Spent()
    began = time.perf_counter()
    got = list(client.map(function, values, **options))
    seconds = time.perf_counter() - began
    cpu = spent.each(len(values))
    assert got == values, "results differ"
    return {
        "rate": len(values) / seconds,
        "seconds": seconds,
        **cpu,
        "billed_ucredits": bill.settle(len(values)),
    }
