"""Says in time that the descriptors end.

Each connection is one descriptor. When none is left, libzmq refuses new connections on tcp and
aborts the process on ipc (its listener asserts): who reaches our 0700 folder can cost a restart,
nothing that was acknowledged. What the broker itself works with (journal, reader, memory watch) is
open from the start and is never opened again.
"""

import logging
import os
import resource

from gristmill.broker.metrics import Metrics

log = logging.getLogger("gristmill.broker.descriptors")

SHORT_SHARE = 0.9  #: of the limit, from where on it is told


class DescriptorWatch:
    """Call ``look`` each second. ``used``, ``limit``: what it saw."""

    def __init__(self, metrics: Metrics) -> None:
        self.used = self.limit = 0
        self._metrics = metrics
        self._is_short = False

    def look(self) -> None:
        """Counts them; the first look of each shortage is logged, every one is counted."""
        self.limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        try:
            self.used = len(os.listdir("/proc/self/fd")) - 1  # without that of the look
        except OSError:  # there is not even one for this look
            self.used = self.limit
        is_short = self.used >= SHORT_SHARE * self.limit
        self._metrics.descriptors_short += is_short
        if is_short and not self._is_short:
            log.critical(
                "broker has %d descriptors open; the limit is %d (RLIMIT_NOFILE). New connections"
                " will be refused. Find who connects so often (ss -xp, ss -tp), or raise the hard"
                " limit (ulimit -Hn) and start again",
                self.used, self.limit,
            )  # fmt: skip
        self._is_short = is_short
