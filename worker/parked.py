"""Idle jails of jobs that are still open, kept for when a slot comes back to them.

Where several jobs share a slot, its jail changes with each of them, and a new one takes some
100 ms: more than many leases. So a slot that goes on to another job leaves its jail here, loaded
with the job's function, and whichever slot is next with that job takes it. A jail serves one job
all its life, here as well. It holds nothing of a lease; what it costs is memory, so few and small
ones stay.
"""

from gristmill.worker.port import Leaving, Port

PARKED_BYTES_MAX = 64 << 20  #: a larger jail ends instead
SWEEP_MS = 1_000
IDLE_CPU_US_MAX = 50_000  #: between two sweeps; more is a thread that works on unseen: it ends


class _Place:
    def __init__(self, job: int, port: Port) -> None:
        self.job, self.port = job, port
        self.cpu_us = port.process.cpu_us()


class Parked:
    """The parked jails of a worker; the one that was parked first makes room.

    Args:
        count: kept at most.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._places: list[_Place] = []
        self._leaving = Leaving()
        self._sweep_at_ms = 0

    def __len__(self) -> int:
        return len(self._places) + len(self._leaving)

    def put(self, job: int, port: Port) -> bool:
        """Keep an idle jail, which is no longer the slot's; False when it is too large for that."""
        if not self._count or port.process.usage().memory_bytes > PARKED_BYTES_MAX:
            return False
        self._places.append(_Place(job, port))
        while len(self._places) > self._count:
            self._end(self._places[0])
        return True

    def take(self, job: int) -> Port | None:
        """A jail of this job, the last one that was parked, no longer ours."""
        for place in reversed(self._places):
            if place.job == job:
                if place.port.process.is_over():
                    self._end(place)
                    return self.take(job)
                self._places.remove(place)
                return place.port
        return None

    def drop_job(self, job: int) -> None:
        """The job is over: so are its jails."""
        for place in [place for place in self._places if place.job == job]:
            self._end(place)

    def drop(self) -> None:
        """End them all, without waiting; ``sweep`` frees what is left of them."""
        for place in list(self._places):
            self._end(place)

    def sweep(self, now_ms: int) -> None:
        """Free what has ended, and end what does not keep still."""
        if now_ms < self._sweep_at_ms:
            return
        self._sweep_at_ms = now_ms + SWEEP_MS
        for place in list(self._places):
            used_us, place.cpu_us = place.cpu_us, place.port.process.cpu_us()
            if place.port.process.is_over() or place.cpu_us - used_us > IDLE_CPU_US_MAX:
                self._end(place)
        self._leaving.sweep()

    def close(self) -> None:
        """End them all and free them."""
        self.drop()
        self._leaving.close()

    def _end(self, place: _Place) -> None:
        self._places.remove(place)
        self._leaving.end(place.port)
