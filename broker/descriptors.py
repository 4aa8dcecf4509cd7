"""Says in time that the descriptors end, and counts whom that keeps out.

Each connection is one descriptor. When none is left, libzmq refuses new connections on tcp and
aborts the process on ipc (its listener asserts): who reaches our 0700 folder can cost a restart,
nothing that was acknowledged. What the broker itself works with (journal, reader, memory watch) is
open from the start and is never opened again.

Whom libzmq could not accept still waits in the kernel's queue of the listening socket, whose length
``TCP_INFO`` tells without a new descriptor. libzmq's own word, the monitor's ACCEPT_FAILED, is not
asked for: the listener tries again without a pause and says it tens of thousands of times a second
for one connection. When the monitor's queue is full, libzmq's I/O thread waits for us, and holds
the lock that turning the monitor off needs: nobody is served, and we hang. A queue without a bound
grew by 46 MiB a second, and would for as long as our loop is busy elsewhere.
"""

import logging
import os
import resource
import socket
import stat
import struct
from collections.abc import Sequence

from gristmill.broker.metrics import Metrics

log = logging.getLogger("gristmill.broker.descriptors")

SHORT_SHARE = 0.9  #: of the limit, from where on it is told
_FOLDER = "/proc/self/fd"
_UNACKED = struct.Struct("24xI")  #: of struct tcp_info; a listener's: how many wait for accept()


class DescriptorWatch:
    """Call ``look`` each second. ``used``, ``limit``, ``waiting``: what it saw.

    ``waiting``: connections that cannot be accepted because no descriptor is left.

    Args:
        endpoints: where libzmq listens in this process; those that are not tcp have no queue that
            it leaves anybody in.
    """

    def __init__(self, endpoints: Sequence[str], metrics: Metrics) -> None:
        self.used = self.limit = self.waiting = 0
        self._metrics = metrics
        self._is_short = False
        self._listeners = [
            listener_of(address.removeprefix("tcp://"))
            for address in endpoints
            if address.startswith("tcp://")
        ]

    def look(self) -> None:
        """Counts them; the first look of each shortage is logged, every one is counted."""
        self.limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.used = count_descriptors(self.limit)
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
        self._count_refused()

    def _count_refused(self) -> None:
        """Those who came since the last look and cannot be accepted: at least so many.

        While a shortage lasts the queue only grows, but for as many as left and made room. What
        came and went into a full queue is the kernel's to count (``nstat TcpExtListenOverflows``).
        """
        waiting = sum(map(waiting_at, self._listeners)) if self.used >= self.limit else 0
        new, self.waiting = waiting - self.waiting, waiting
        if new <= 0:
            return
        before = self._metrics.accepts_failed
        self._metrics.accepts_failed += new
        if self._metrics.accepts_failed.bit_length() > before.bit_length():  # no flood of lines
            log.error(
                "%d connections could not be accepted since the start, %d of them wait now: all %d"
                " descriptors are taken (RLIMIT_NOFILE). They are served when others leave. Find"
                " who holds so many (ss -tp), or raise the hard limit (ulimit -Hn) and start again",
                self._metrics.accepts_failed, waiting, self.limit,
            )  # fmt: skip

    def close(self) -> None:
        """Closes its own descriptors of the listening sockets."""
        for listener in self._listeners:
            listener.close()


def count_descriptors(limit: int) -> int:
    """How many this process has open; the limit when that is all that can be known."""
    try:
        # Linux 6.2 and later say it without opening one: the last one may be a client's.
        return os.stat(_FOLDER).st_size or len(os.listdir(_FOLDER)) - 1
    except OSError:  # there is not even one for this look
        return limit


def listener_of(address: str) -> socket.socket:
    """Our own descriptor of the socket on which this process listens at ``host:port``.

    Raises:
        LookupError: it does not.
    """
    host, _, port = address.rpartition(":")
    wanted = host.strip("[]"), int(port)
    for name in os.listdir(_FOLDER):
        number = int(name)
        try:
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            found = socket.socket(fileno=os.dup(number))
        except OSError:  # the listing's own descriptor
            continue
        is_internet = found.family in (socket.AF_INET, socket.AF_INET6)
        is_listening = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if is_internet and is_listening and found.getsockname()[:2] == wanted:
            return found
        found.close()
    raise LookupError(f"nobody listens at {address} in this process")


def waiting_at(listener: socket.socket) -> int:
    """How many connections wait for accept()."""
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED.size)
    (count,) = _UNACKED.unpack(info)
    return int(count)
