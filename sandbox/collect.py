"""Take files out of a directory that hostile code wrote: plain files only, and no more than agreed.

A path below the directory may be a link to the worker's secrets, a FIFO that blocks its reader, a
device, a mount, or a file of a terabyte. So every step is an openat2 that stays beneath the
directory and passes no symbolic link and no mount, what was opened must be a regular file, and
counts and bytes are limited before and while reading. Refused entries are reported, not followed.
Where openat2 is kept from us (``RestrictSUIDSGID=`` of systemd answers ENOSYS, as a filter cannot
look into its argument) each component is opened by itself, with the same outcome.

    report = collect("/state/out", ["*.csv", "plots/**/*.png"], sink, files_max=100,
                     bytes_max=1 << 30)
"""

import ctypes
import dataclasses
import errno
import fnmatch
import os
import stat
import struct
from collections.abc import Callable, Iterator, Sequence

ENTRIES_MAX = 200_000  #: directory entries looked at
DEPTH_MAX = 64
CHUNK_BYTES = 1 << 20

_OPENAT2 = 437  # on every architecture
_RESOLVE = 0x01 | 0x02 | 0x04 | 0x08  # NO_XDEV | NO_MAGICLINKS | NO_SYMLINKS | BENEATH
_HOW = struct.Struct("QQQ")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclasses.dataclass(frozen=True, slots=True)
class Collected:
    """One file that was taken: its path below the directory, with slashes, and what it was."""

    path: str
    size_bytes: int
    is_executable: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Collection:
    """What was taken and what was refused (``path``, reason), in the order met."""

    files: tuple[Collected, ...]
    refused: tuple[tuple[str, str], ...]

    @property
    def size_bytes(self) -> int:
        """Of all files together."""
        return sum(file.size_bytes for file in self.files)


#: Takes a path and the chunks of its file, and must exhaust them.
Sink = Callable[[str, Iterator[bytes]], None]


def collect(
    directory: str, patterns: Sequence[str], sink: Sink, *, files_max: int, bytes_max: int
) -> Collection:
    """Stream every plain file that matches a pattern to ``sink``, in sorted order.

    Args:
        directory: the caller's own path: it is trusted, what is in it is not.
        patterns: relative to it, with ``*``, ``?``, ``[]`` inside a name and ``**`` for any number
            of directories.
        sink: called once a file. Its exceptions pass through and end the collection.
        files_max: of all together. What would pass it is refused, the rest is still looked at.
        bytes_max: of all files together, likewise.

    Raises:
        OSError: the directory itself cannot be opened.
    """
    wanted = [tuple(part for part in pattern.split("/") if part) for pattern in patterns]
    files: list[Collected] = []
    refused: list[tuple[str, str]] = []
    left_bytes = bytes_max
    root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path, trouble in _walk(root):
            if not any(_matches(tuple(path.split("/")), pattern) for pattern in wanted):
                continue
            if trouble:
                refused.append((path, trouble))
                continue
            if len(files) >= files_max:
                refused.append((path, f"more than {files_max} files"))
                continue
            taken, why = _take(root, path, left_bytes, sink)
            if taken is None:
                refused.append((path, why))
            else:
                files.append(taken)
                left_bytes -= taken.size_bytes
    finally:
        os.close(root)
    return Collection(tuple(files), tuple(refused))


def measure(directory: str) -> tuple[int, int]:
    """(entries, bytes on disk) below a directory, hostile or not; at most ``ENTRIES_MAX`` entries.

    For a worker to watch a writable bind on a disk without quotas; see ``Deed.DISK_SPENT``.
    """
    entries = size_bytes = 0
    pending = [directory]
    while pending and entries < ENTRIES_MAX:
        try:
            scan = os.scandir(pending.pop())
        except OSError:
            continue
        with scan:
            for entry in scan:
                entries += 1
                try:
                    facts = entry.stat(follow_symlinks=False)
                except OSError:
                    continue
                size_bytes += facts.st_blocks * 512
                if stat.S_ISDIR(facts.st_mode):
                    pending.append(entry.path)
                if entries >= ENTRIES_MAX:
                    break
    return entries, size_bytes


def open_beneath(root: int, path: str, flags: int = os.O_RDONLY) -> int:
    """Open a path below an open directory without leaving it or passing a link or mount.

    Raises:
        OSError: ELOOP for a symbolic link, EXDEV for a mount or a way out, or what open says.
    """
    how = _HOW.pack(flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0, _RESOLVE)
    fd: int = _libc.syscall(_OPENAT2, root, os.fsencode(path), how, len(how))
    if fd < 0:
        number = ctypes.get_errno()
        if number == errno.ENOSYS:
            return _open_by_steps(root, path, flags)
        raise OSError(number, os.strerror(number), path)
    return fd


def _open_by_steps(root: int, path: str, flags: int) -> int:
    """What openat2 does, but that ``..`` is a way out wherever it stands.

    No step follows a link, and what is open cannot be exchanged behind us.
    """
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
    step = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    last = flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    at = os.open(".", step, dir_fd=root)
    try:
        for part in parts[:-1]:
            below = _open_step(part, step, at)
            os.close(at)
            at = below
        fd = _open_step(parts[-1] if parts else ".", last, at)
    finally:
        os.close(at)
    if _mount_of(fd) != _mount_of(root):
        os.close(fd)
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
    return fd


def _open_step(name: str, flags: int, at: int) -> int:
    try:
        return os.open(name, flags, dir_fd=at)
    except NotADirectoryError:
        if stat.S_ISLNK(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name) from None
        raise


def _mount_of(fd: int) -> str:
    """The number of the mount that it was opened on: two of one file system differ in it."""
    with open(f"/proc/self/fdinfo/{fd}") as lines:
        return next(line for line in lines if line.startswith("mnt_id:"))


def _take(root: int, path: str, left_bytes: int, sink: Sink) -> tuple[Collected | None, str]:
    try:
        fd = open_beneath(root, path)
    except OSError as error:
        return None, error.strerror or "cannot be opened"
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            return None, "not a regular file"
        if facts.st_size > left_bytes:
            return None, f"{facts.st_size} bytes where {left_bytes} are left"
        reader = _Reader(fd, facts.st_size)
        sink(path, reader.chunks())
        return Collected(path, reader.read_bytes, bool(facts.st_mode & 0o111)), ""
    finally:
        os.close(fd)


class _Reader:
    """Chunks of a file up to the size that it had when opened: it may grow while it is read."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        self._fd = fd
        self._left = size_bytes
        self.read_bytes = 0

    def chunks(self) -> Iterator[bytes]:
        while self._left > 0:
            chunk = os.read(self._fd, min(CHUNK_BYTES, self._left))
            if not chunk:
                return
            self._left -= len(chunk)
            self.read_bytes += len(chunk)
            yield chunk


def _walk(root: int) -> Iterator[tuple[str, str]]:
    """(path, trouble) of everything that is not a directory, depth first, sorted."""
    count = 0
    pending = [""]
    while pending:
        directory = pending.pop()
        try:
            fd = open_beneath(root, directory or ".", os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            yield directory, error.strerror or "cannot be opened"
            continue
        try:
            names = os.listdir(fd)
            count += len(names)
            if count > ENTRIES_MAX:
                yield directory or ".", f"more than {ENTRIES_MAX} entries"
                return
            below = []
            for name in sorted(names):
                path = f"{directory}/{name}" if directory else name
                mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
                if not _is_printable(name):
                    yield path.encode(errors="replace").decode(), "its name is not UTF-8 text"
                elif not stat.S_ISDIR(mode):
                    yield path, "" if stat.S_ISREG(mode) else f"a {_kind(mode)}"
                elif path.count("/") >= DEPTH_MAX:
                    yield path, f"deeper than {DEPTH_MAX} directories"
                else:
                    below.append(path)
            pending += reversed(below)
        finally:
            os.close(fd)


def _is_printable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return name.isprintable()


def _kind(mode: int) -> str:
    names = {
        stat.S_IFLNK: "symbolic link",
        stat.S_IFIFO: "FIFO",
        stat.S_IFSOCK: "socket",
        stat.S_IFBLK: "block device",
        stat.S_IFCHR: "character device",
    }
    return names.get(stat.S_IFMT(mode), "thing of unknown kind")


def _matches(parts: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    """Whole-path glob match; dynamic over ``**``, so no pattern takes exponential time."""
    alive = {0}
    for part in parts:
        alive = _closure(alive, pattern)
        following = set()
        for at in alive:
            if at < len(pattern) and pattern[at] == "**":
                following.add(at)
            elif at < len(pattern) and fnmatch.fnmatchcase(part, pattern[at]):
                following.add(at + 1)
        alive = following
    return len(pattern) in _closure(alive, pattern)


def _closure(alive: set[int], pattern: tuple[str, ...]) -> set[int]:
    """Positions reachable by letting ``**`` stand for nothing."""
    reached = set(alive)
    for at in range(len(pattern)):
        if at in reached and pattern[at] == "**":
            reached.add(at + 1)
    return reached
