"""Telemetry of the host and of the slots, once a second; whatever fails here kills nothing."""

import os
import pathlib
from collections.abc import Iterable

import psutil  # type: ignore[import-untyped]

from gristmill.wire.worker import HostReading, SlotReading
from gristmill.worker.port import Port


class Monitor:
    """Takes readings; all figures are of now."""

    def __init__(self, state_dir: pathlib.Path) -> None:
        self._state_dir = str(state_dir)
        self.failures = 0
        try:
            psutil.cpu_percent(None)  # the first call only sets the mark
        except (OSError, psutil.Error):
            self.failures += 1

    def take(self, slots: Iterable[tuple[Port, int, int]]) -> HostReading | None:
        """The host and ``(port, job, subtask)`` of each running slot; None when it failed."""
        try:
            memory = psutil.virtual_memory()
            return HostReading(
                load1_milli=int(os.getloadavg()[0] * 1000),
                cpu_percent=int(psutil.cpu_percent(None)),
                memory_used_bytes=int(memory.total - memory.available),
                memory_total_bytes=int(memory.total),
                disk_free_bytes=int(psutil.disk_usage(self._state_dir).free),
                slots=[_slot(port, job, subtask) for port, job, subtask in slots],
            )
        except (OSError, ValueError, psutil.Error):
            self.failures += 1
            return None


def _slot(port: Port, job: int, subtask: int) -> SlotReading:
    usage = port.process.usage()
    return SlotReading(
        slot=port.slot,
        job=job,
        subtask=subtask,
        cpu_us=usage.cpu_us,
        memory_bytes=usage.memory_bytes,
        disk_bytes=usage.disk_bytes,
        pids=usage.pids,
    )
