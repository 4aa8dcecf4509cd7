"""Blobs for jobs: fetched and put by a few threads, so that the agent's loop never waits.

The loop hands over a piece of work and a callback; the callback runs in the loop, after a byte on
the wake pipe. What was fetched is kept: parcels in memory, input files on disk by digest.
"""

import concurrent.futures
import contextlib
import errno
import fcntl
import os
import pathlib
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from gristmill.store.client import StoreClient
from gristmill.wire.errors import RemoteError
from gristmill.wire.grants import tenant_of
from gristmill.wire.ids import is_digest
from gristmill.wire.values import BlobRef

THREADS = 4
MEMORY_BYTES = 64 << 20
IN_MEMORY_BYTES_MAX = MEMORY_BYTES // 4  #: a larger blob is kept on disk
SEALED_BYTES = 1 << 30  #: of shared objects in memory that no slot may have any more
RIGHTS_MAX = 65_536  #: (tenant, digest) that the store is known to give
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
        self._flights: dict[str, list[Callable[[Any], None]]] = {}
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

    def run_once(self, key: str, work: Callable[[], T], then: Then[T]) -> None:
        """As ``run``, but who asks for the same key meanwhile gets the same answer."""
        if key in self._flights:
            self._flights[key].append(then)
            return
        self._flights[key] = [then]

        def tell_all(answer: T | BaseException) -> None:
            for each in self._flights.pop(key):
                each(answer)

        self.run(work, tell_all)

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


class Shared:
    """A blob that slots may map: ``fd`` is read-only, and nobody who has it can change the blob."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class Blobs:
    """The store as a worker uses it. ``fetch`` and ``put`` block: call them from errands.

    A store that is away for a moment costs time and no subtask: see ``PATIENCE_S``.
    """

    def __init__(self, cache_dir: pathlib.Path, disk_bytes_max: int) -> None:
        self._cache_dir = cache_dir
        self._disk_bytes_max = disk_bytes_max
        self._memory: OrderedDict[str, bytes] = OrderedDict()
        self._memory_bytes = 0
        self._rights: set[tuple[str, str]] = set()
        self._sealed: OrderedDict[str, tuple[Shared, int]] = OrderedDict()
        self._flights: dict[str, tuple[threading.Lock, int]] = {}
        self._lock = threading.Lock()
        self._client: StoreClient | None = None
        self._is_closed = threading.Event()
        self._disk_bytes: int | None = None  # of the cache, at most; None: not looked at yet
        self._trimming = threading.Lock()
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
        _check(ref)
        if ref.size_bytes > IN_MEMORY_BYTES_MAX:
            small = BlobRef(ref.digest, min(ref.size_bytes, FEED_BYTES_MAX))
            return self.fetch_file(grant, small).read_bytes()
        with self._alone_with(ref.digest):
            with self._lock:
                kept = self._memory.get(ref.digest)
            if kept is not None:
                self._check_right(grant, ref.digest)
                with self._lock:
                    if ref.digest in self._memory:
                        self._memory.move_to_end(ref.digest)
                return kept
            body = self._ask(lambda store: store.get(grant, ref.digest, ref.size_bytes))
            self._note_right(grant, ref.digest)
            with self._lock:
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
        with self._alone_with(ref.digest):
            with contextlib.suppress(FileNotFoundError):
                # A file of another size was cut by a crash of this host.
                if path.stat().st_size == ref.size_bytes:
                    self._check_right(grant, ref.digest)
                    os.utime(path)
                    return path
            self._ask(lambda store: store.get_to_file(grant, ref.digest, path, ref.size_bytes))
            self._note_right(grant, ref.digest)
            path.chmod(0o555)
        self._trim(path, ref.size_bytes)
        return path

    def share(self, grant: str, ref: BlobRef) -> Shared:
        """A blob for slots to map, at no copy for each: the cache's file, or sealed memory.

        As root the file is ours and a jail is nobody, who cannot make it writable. Otherwise a jail
        has our own uid and could: then it is a copy in memory that the kernel keeps anybody from
        changing, one for all slots.

        Raises:
            RemoteError: as ``fetch``.
            OSError: no room on the disk or in memory.
        """
        if os.geteuid() == 0:
            return Shared(os.open(self.fetch_file(grant, ref), os.O_RDONLY | os.O_CLOEXEC))
        path = self.fetch_file(grant, ref)
        with self._alone_with(f"sealed {ref.digest}"):
            with self._lock:
                kept = self._sealed.get(ref.digest)
                if kept is not None:
                    self._sealed.move_to_end(ref.digest)
                    return kept[0]
            made = Shared(_sealed_copy(path))
            with self._lock:
                self._sealed[ref.digest] = made, ref.size_bytes
                while sum(size for _, size in self._sealed.values()) > SEALED_BYTES:
                    if len(self._sealed) == 1:
                        break
                    self._sealed.popitem(last=False)
            return made

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

    @contextlib.contextmanager
    def _alone_with(self, key: str) -> Iterator[None]:
        """Whoever wants the same meanwhile waits, and finds it there."""
        with self._lock:
            lock, waiting = self._flights.get(key, (threading.Lock(), 0))
            self._flights[key] = lock, waiting + 1
        try:
            with lock:
                yield
        finally:
            with self._lock:
                lock, waiting = self._flights[key]
                if waiting == 1:
                    del self._flights[key]
                else:
                    self._flights[key] = lock, waiting - 1

    def _note_right(self, grant: str, digest: str) -> None:
        """The store gave this blob for this grant's tenant."""
        with self._lock:
            if len(self._rights) >= RIGHTS_MAX:
                self._rights.clear()
            self._rights.add((tenant_of(grant), digest))

    def _check_right(self, grant: str, digest: str) -> None:
        """What one tenant fetched is in the cache; another must have put it, too, to get it.

        Raises:
            RemoteError: ``BLOB_MISSING``, as the store would say.
        """
        with self._lock:
            if (tenant_of(grant), digest) in self._rights:
                return
        if self._ask(lambda store: store.size_of(grant, digest)) is None:
            raise RemoteError("BLOB_MISSING", f"the tenant has no blob {digest}")
        self._note_right(grant, digest)

    def _trim(self, added: pathlib.Path, size_bytes: int) -> None:
        """Oldest first; jobs hold their files by links of their own.

        To look at every file costs as much as a fetch where there are many: it is done when they
        may be too much, and then some more go.
        """
        with self._trimming:
            if self._disk_bytes is not None:
                self._disk_bytes += size_bytes
                if self._disk_bytes <= self._disk_bytes_max:
                    return
            files = []
            for path in self._cache_dir.iterdir():
                with contextlib.suppress(OSError):
                    facts = path.stat()
                    files.append((facts.st_mtime, facts.st_size, path))
            total = sum(size for _, size, _ in files)
            if total > self._disk_bytes_max:
                for _, size, path in sorted(files):
                    if total <= self._disk_bytes_max - self._disk_bytes_max // 8:
                        break
                    if path != added and not path.name.startswith("."):
                        path.unlink(missing_ok=True)
                        total -= size
            self._disk_bytes = total


def _sealed_copy(path: pathlib.Path) -> int:
    """Memory with the bytes of a file; no holder of the descriptor can write to it, ever."""
    memory = os.memfd_create("shared", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with path.open("rb") as file:
            left = os.fstat(file.fileno()).st_size
            while left:
                sent = os.sendfile(memory, file.fileno(), None, left)
                if not sent:
                    raise OSError(errno.EIO, "the file became shorter")
                left -= sent
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
        # A descriptor for reading only: what is mapped with it cannot be made writable.
        return os.open(f"/proc/self/fd/{memory}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(memory)


def _check(ref: BlobRef) -> None:
    if not is_digest(ref.digest):
        raise RemoteError("MALFORMED", f"{ref.digest!r:.80} is no digest")
