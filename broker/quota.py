"""How much of the disk each tenant's results take; past the limit its credit stands still.

The core counts parcels; here are the results that nobody has dropped yet, in bytes of their frames.
What was there before the start is counted by the reader, and added when it is known.
"""

import apsw

from gristmill.wire.errors import RemoteError
from gristmill.wire.units import format_bytes

COUNTED_JOBS = 500  #: counted at a time after a start


class ResultQuota:
    """Bytes of stored results by tenant, against one limit for each."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._used: dict[str, int] = {}

    def add(self, tenant: str, size_bytes: int) -> None:
        """Results were stored, or (negative) are being freed."""
        left = self._used.get(tenant, 0) + size_bytes
        if left > 0:
            self._used[tenant] = left
        else:
            self._used.pop(tenant, None)

    def is_over(self, tenant: str) -> bool:
        """Whether this tenant's disk is full."""
        return self._used.get(tenant, 0) >= self._bytes_max

    def refusal(self, tenant: str) -> RemoteError | None:
        """Why this tenant's new jobs are refused, if they are."""
        if not self.is_over(tenant):
            return None
        return RemoteError(
            "QUOTA",
            f"tenant {tenant} has {format_bytes(self._used[tenant])} of results on the broker's"
            f" disk; the limit is {format_bytes(self._bytes_max)}",
            "use keep=False, or wait until results expire by their retention",
        )


def used_by_tenants(
    connection: apsw.Connection, last_row: int, after: int
) -> tuple[list[tuple[str, int]], int]:
    """((tenant, bytes of its results) of the next jobs after this one, the last of them or 0).

    ``last_row``: newer results were counted when they were recorded.
    """
    found = list(
        connection.execute(
            "SELECT job, tenant, (SELECT ifnull(sum(body_bytes), 0) FROM results r"
            " WHERE r.job = j.job AND r.rowid <= ?) FROM jobs j WHERE job > ? ORDER BY job LIMIT ?",
            (last_row, after, COUNTED_JOBS),
        )
    )
    used = [(tenant, size) for _, tenant, size in found if size]
    return used, found[-1][0] if found else 0
