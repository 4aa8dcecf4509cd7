"""Blobs for jobs: fetched and put by a few threads, so that the agent's loop never waits.

The loop hands over a piece of work and a callback; the callback runs in the loop, after a byte on
the wake pipe. What was fetched is kept: parcels in memory, input files on disk by digest.
"""

import concurrent.futures
import contextlib
import os
import pathlib
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, TypeVar

from gristmill.store.client import StoreClient
from gristmill.wire.errors import RemoteError
from gristmill.wire.ids import is_digest
from gristmill.wire.values import BlobRef

THREADS = 4
MEMORY_BYTES = 64 << 20
#: A blob that is fed to a slot passes through our memory; larger inputs are files.
FEED_BYTES_MAX = 512 << 20
#: A store that does not answer is asked again for this long: it may be restarting.
PATIENCE_S = 30.0
PAUSE_S, PAUSE_S_MAX = 0.1, 2.0

T = TypeVar("T")
Then = Callable[[T | BaseException], None]


class Errands:
    """A small thread pool with its answers in the loop's thread."""

    def __init__(self) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(THREADS, "errand")
        self._done: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def fileno(self) -> int:
        """Readable when ``settle`` has something to do; also the signal wake-up pipe."""
        return self._read

    @property
    def wake_fd(self) -> int:
        """A byte here wakes the loop."""
        return self._write

    def run(self, work: Callable[[], T], then: Then[T]) -> None:
        """Do ``work`` in a thread, then ``then`` with its result or exception in the loop."""

        def task() -> None:
            try:
                answer: T | BaseException = work()
            except BaseException as error:
                answer = error
            self._done.append((then, answer))
            with contextlib.suppress(BlockingIOError, OSError):
                os.write(self._write, b"\0")

        self._pool.submit(task)

    def settle(self) -> None:
        """Run the callbacks of what is done."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._read, 4096):
                pass
        while self._done:
            then, answer = self._done.popleft()
            then(answer)

    def close(self) -> None:
        """Wait for nothing."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Blobs:
    """The store as a worker uses it. ``fetch`` and ``put`` block: call them from errands.

    A store that is away for a moment costs time and no subtask: see ``PATIENCE_S``.
    """

    def __init__(self, cache_dir: pathlib.Path, disk_bytes_max: int) -> None:
        self._cache_dir = cache_dir
        self._disk_bytes_max = disk_bytes_max
        self._memory: OrderedDict[str, bytes] = OrderedDict()
        self._memory_bytes = 0
        self._lock = threading.Lock()
        self._client: StoreClient | None = None
        self._is_closed = threading.Event()
        cache_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
        for left in cache_dir.glob(".*"):
            left.unlink(missing_ok=True)

    def use_store(self, address: str) -> None:
        """The address that the broker told."""
        if address and (self._client is None or self._client.address != address):
            self._client = StoreClient(address)

    def fetch(self, grant: str, ref: BlobRef) -> bytes:
        """A blob that becomes part of a feed.

        Raises:
            RemoteError: the store has it not, or not right, or does not answer.
        """
        with self._lock:
            kept = self._memory.get(ref.digest)
            if kept is not None:
                self._memory.move_to_end(ref.digest)
                return kept
        _check(ref)
        size_bytes = min(ref.size_bytes, FEED_BYTES_MAX)
        body = self._ask(lambda store: store.get(grant, ref.digest, size_bytes))
        with self._lock:
            if len(body) <= MEMORY_BYTES // 4 and ref.digest not in self._memory:
                self._memory[ref.digest] = body
                self._memory_bytes += len(body)
            while self._memory_bytes > MEMORY_BYTES:
                _, old = self._memory.popitem(last=False)
                self._memory_bytes -= len(old)
        return body

    def fetch_file(self, grant: str, ref: BlobRef) -> pathlib.Path:
        """A blob as a file of the cache, read-only to everybody and executable.

        Raises:
            RemoteError: as ``fetch``.
        """
        _check(ref)
        path = self._cache_dir / ref.digest
        if path.exists():
            with contextlib.suppress(OSError):
                os.utime(path)
            return path
        self._ask(lambda store: store.get_to_file(grant, ref.digest, path, ref.size_bytes))
        path.chmod(0o555)
        self._trim(keep=path)
        return path

    def put(self, grant: str, body: bytes | pathlib.Path) -> BlobRef:
        """Keep a blob in the store.

        Raises:
            RemoteError: it is full, does not answer, or the grant is over.
        """
        return self._ask(lambda store: store.put(grant, body))

    def close(self) -> None:
        """Wait for no store any more."""
        self._is_closed.set()

    def _ask(self, question: Callable[[StoreClient], T]) -> T:
        """The store's answer; while it is down, after a pause once more."""
        if self._client is None:
            raise RemoteError("STORE_DOWN", "the broker named no store")
        deadline, pause_s = time.monotonic() + PATIENCE_S, PAUSE_S
        while True:
            try:
                return question(self._client)
            except RemoteError as error:
                is_late = time.monotonic() + pause_s > deadline
                if error.code != "STORE_DOWN" or is_late or self._is_closed.wait(pause_s):
                    raise
            pause_s = min(2 * pause_s, PAUSE_S_MAX)

    def _trim(self, keep: pathlib.Path) -> None:
        """Oldest first; jobs hold their files by links of their own."""
        files = []
        for path in self._cache_dir.iterdir():
            with contextlib.suppress(OSError):
                facts = path.stat()
                files.append((facts.st_mtime, facts.st_size, path))
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self._disk_bytes_max:
                break
            if path != keep and not path.name.startswith("."):
                path.unlink(missing_ok=True)
                total -= size


def _check(ref: BlobRef) -> None:
    if not is_digest(ref.digest):
        raise RemoteError("MALFORMED", f"{ref.digest!r:.80} is no digest")
