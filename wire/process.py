"""What processes of the grid have in common: ready, ending together, one owner of a folder.

Ready is one line on stderr, ``ready <what> <address>``, and ``READY`` on the descriptor that the
starter gave with ``--ready-fd``, which is then closed: whoever waits needs neither to poll nor to
sleep. A service manager hears it, too (supervision.py).
"""

import contextlib
import ctypes
import fcntl
import logging
import os
import pathlib
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from gristmill.wire.errors import EXIT_OK, EXIT_UNPICKLED, RemoteError
from gristmill.wire.supervision import NOBODY, Supervisor

Settings = TypeVar("Settings")

_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
FREE_BYTES_KEPT = 16 << 20  #: at the end of a heap
_JOURNAL_LEVELS = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.DEBUG: 7}
OWN_PAGES_BYTES = 1 << 20  #: what is larger has pages of its own; frames are smaller


class _Lines(logging.Formatter):
    """Puts each second into words once: there are many lines in one.

    ``is_journal``: systemd's journal reads them: each line begins with its level, as sd-daemon(3)
    has it, so that ``journalctl -p err`` finds errors.

    A record is one line, whatever a peer put in its fields: what does not print is escaped, so
    nobody writes lines of ours or moves the cursor of who reads them. A traceback follows as it is.
    """

    _second, _words = -1, ""
    is_journal = False

    def format(self, record: logging.LogRecord) -> str:
        """As the base class, which a traceback may give several lines."""
        text = super().format(record)
        if not self.is_journal:
            return text
        level = f"<{_JOURNAL_LEVELS.get(record.levelno, 6)}>"
        return level + text.replace("\n", f"\n{level}")

    def formatTime(  # noqa: N802 the base class calls it so
        self, record: logging.LogRecord, datefmt: str | None = None
    ) -> str:
        """``2026-11-22 17:45:01,042``, as the base class does it."""
        second = int(record.created)
        if second != self._second:
            self._second = second
            self._words = time.strftime(self.default_time_format, self.converter(second))
        return f"{self._words},{int(record.msecs):03d}"

    def formatMessage(  # noqa: N802
        self, record: logging.LogRecord
    ) -> str:
        """The line without its traceback."""
        line = super().formatMessage(record)
        if line.isprintable():
            return line
        return "".join(
            char
            if char.isprintable()
            else char.encode("unicode_escape", "backslashreplace").decode()
            for char in line
        )


def begin_logging(form: str) -> None:
    """Log to stderr from level INFO on. ``form``: of a line; it shows no caller, thread or process.

    What is not shown is not looked up (as the standard library's guide to logging says): a line
    takes a quarter of the time, and a broker writes four for each job.
    """
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler(sys.stderr)
    lines = _Lines(form)
    lines.is_journal = is_journal(sys.stderr.fileno(), os.environ)
    handler.setFormatter(lines)
    logging.basicConfig(handlers=[handler], level=logging.INFO)


def forbid_unpickling(who: str) -> None:
    """End this process, with a line that names it, at the first class that a pickle asks for.

    Libraries bring the pickle modules with them; nothing here may use them. A pickle without a
    class holds plain data and calls nothing. The hook cannot be taken away or caught: no exception,
    no ``abort``, whose core would have our keys in it. It does not see an ``Unpickler`` whose own
    ``find_class`` never asks the base class's.
    """

    def look(event: str, arguments: tuple[object, ...]) -> None:
        if event == "pickle.find_class":
            name = ".".join(str(part) for part in arguments[:2])
            told = f"{who} ends: something in it unpickles {name!a:.200}, which nothing here may\n"
            with contextlib.suppress(OSError):
                os.write(2, told.encode())
            os._exit(EXIT_UNPICKLED)

    sys.addaudithook(look)


def is_journal(fd: int, environment: Mapping[str, str]) -> bool:
    """Whether this descriptor leads to systemd's journal (systemd.exec(5), ``JOURNAL_STREAM``)."""
    told = environment.get("JOURNAL_STREAM", "")
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return bool(told) and told == f"{found.st_dev}:{found.st_ino}"


def told_once(text: str) -> str:
    """What ends a process, for its stderr: in the journal one entry of level error, with its hint.

    Elsewhere the hint is a line of its own, as a person reads it.
    """
    with contextlib.suppress(OSError):
        if is_journal(sys.stderr.fileno(), os.environ):
            return "<3>" + text.replace("\n  -> ", ". Next: ")
    return text


def ended_by(error: RemoteError) -> int:
    """Says what ends this process; its exit code."""
    print(told_once(str(error)), file=sys.stderr)
    return error.spec.exit_code


def run_service(
    who: str, read: Callable[[Sequence[str]], Settings], serve: Callable[[Settings], int]
) -> int:
    """A process that unpickles nothing, with the settings of its command line; its exit code."""
    forbid_unpickling(who)
    try:
        settings = read(sys.argv[1:])
    except RemoteError as error:
        return ended_by(error)
    return serve(settings)


def stopping_socket() -> socket.socket:
    """Readable from SIGTERM or SIGINT on: for a loop that waits for other things, too.

    The interpreter's C handler writes to it: a handler in Python would run too late for a signal
    that comes just before the loop waits.
    """
    stop, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.detach(), warn_on_full_buffer=False)  # until the process ends
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    return stop


def announce_ready(
    what: str, address: str, ready_fd: int | None, supervisor: Supervisor = NOBODY
) -> None:
    """Say that this process answers at ``address``; a starter that is gone is no error."""
    print(f"ready {what} {address}", file=sys.stderr, flush=True)
    supervisor.ready(f"serves at {address}")
    if ready_fd is None:
        return
    with contextlib.suppress(OSError):
        os.write(ready_fd, b"READY\n")
    with contextlib.suppress(OSError):
        os.close(ready_fd)


def own_folder(folder: pathlib.Path, who: str) -> int:
    """Be the only ``who`` of this folder, made with mode 0700 if it is missing.

    Returns:
        the descriptor of ``<who>.lock`` that holds the lock for as long as it is open.

    Raises:
        RemoteError: ``ALREADY_RUNNING``: another process has it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = os.open(folder / f"{who}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise RemoteError(
            "ALREADY_RUNNING",
            f"another {who} has {folder} open",
            "end it first, or give this one another --state",
        ) from None
    return lock


def die_with_parent() -> None:
    """Ask the kernel for SIGTERM when the thread that started this process ends (Linux).

    Raises:
        OSError: the kernel refused.
        SystemExit: the parent has ended already.
    """
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        raise SystemExit(EXIT_OK)


def keep_freed_memory() -> None:
    """Use the memory of the last frames for the next ones, up to ``FREE_BYTES_KEPT``.

    By default the C library gives it back to the kernel after each burst, and has it cleared and
    mapped again page by page: a tenth of a broker's CPU at frames of 256 KiB. For our own
    processes: a library does not set this for its user. Nothing where the C library is another.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, FREE_BYTES_KEPT)
        mallopt(_M_MMAP_THRESHOLD, OWN_PAGES_BYTES)


def raise_descriptor_limit() -> int:
    """Allow this process as many descriptors as it may give itself; how many those are.

    Distributions start processes with a soft limit of 1,024 for the sake of ``select``, which
    nobody here calls; each connection is a descriptor.
    """
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
