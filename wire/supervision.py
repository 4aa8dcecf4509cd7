"""What systemd is told of a process: ready, how it is, that it ends, and that it lives.

sd_notify(3) without its library: one datagram of ``NAME=value`` lines to the socket that
``NOTIFY_SOCKET`` names. Where nothing supervises (``gristmill up``) nothing is sent. The watchdog
is fed by a *completed round trip* only, never by a timer: a process that turns but reaches nobody
is as stuck as one that stands still. docs/deploy.md says which round trip each process has.
"""

import contextlib
import os
import socket
import time
from collections.abc import Mapping

STATUS_BYTES_MAX = 1_000  #: of a status that ``systemctl status`` shows
FEEDS_PER_WATCHDOG = 4  #: what may be fed more often is fed so often in WATCHDOG_USEC


class Supervisor:
    """The service manager of this process, or nobody.

    Never raises and never waits: a manager that does not read is its own trouble.

    Args:
        address: of its datagram socket, ``/path`` or ``@abstract``; empty for nobody.
        watchdog_us: it ends us when it was not fed for so long; 0 for never.
    """

    def __init__(self, address: str = "", watchdog_us: int = 0) -> None:
        self._socket: socket.socket | None = None
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._fed_at = -1e9
        self.watchdog_s = 0.0
        if address.startswith(("/", "@")):
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
            self.watchdog_s = watchdog_us / 1e6

    @property
    def feed_every_s(self) -> float:
        """How often a process should look whether it may feed; 0 where there is no watchdog."""
        return self.watchdog_s / FEEDS_PER_WATCHDOG

    def ready(self, status: str) -> None:
        """It serves: ``systemctl start`` returns. That counts as fed, too."""
        self._fed_at = time.monotonic()
        self._tell("READY=1", _status(status))

    def status(self, text: str) -> None:
        """One line for ``systemctl status``."""
        self._tell(_status(text))

    def starting(self, text: str, more_s: float) -> None:
        """Not ready yet, but getting on: the time to start is prolonged to ``more_s`` from now."""
        self._tell(f"EXTEND_TIMEOUT_USEC={int(more_s * 1e6)}", _status(text))

    def stopping(self, why: str) -> None:
        """It ends, because it was told to or by its own decision."""
        self._tell("STOPPING=1", _status(why))

    def feed(self) -> None:
        """A round trip was completed just now; may be called as often as one likes."""
        if not self.watchdog_s:
            return
        now = time.monotonic()
        if now - self._fed_at >= self.feed_every_s:
            self._fed_at = now
            self._tell("WATCHDOG=1")

    def close(self) -> None:
        """Free the socket. Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _tell(self, *lines: str) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto("\n".join(lines).encode(errors="replace"), self._address)


NOBODY = Supervisor()  #: where nothing supervises


def supervisor_of(environment: Mapping[str, str]) -> Supervisor:
    """Whom the environment names; a watchdog counts when it is this very process that it is for."""
    address = environment.get("NOTIFY_SOCKET", "")
    interval = environment.get("WATCHDOG_USEC", "")
    is_ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    is_number = interval.isascii() and interval.isdigit()
    return Supervisor(address, int(interval) if is_number and is_ours else 0)


def _status(text: str) -> str:
    """One line, bounded: a line break would begin another assignment."""
    told = " ".join(text.split()).encode(errors="replace")[:STATUS_BYTES_MAX]
    return f"STATUS={told.decode(errors='ignore')}"
