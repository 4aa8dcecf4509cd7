"""What to run in a jail: plain data, built by a runner, read by argv.py and jail.py."""

import dataclasses
from collections.abc import Mapping

from gristmill.sandbox.limits import Limits

#: The uid and gid that jailed code sees. Not 65534: files of unmapped owners show as 65534, and
#: a program that thinks it owns /usr behaves oddly.
INSIDE_ID = 1000


@dataclasses.dataclass(frozen=True, slots=True)
class Bind:
    """A file, directory or unix socket of the host shown inside the jail.

    Attributes:
        source: absolute host path. Symbolic links in it are followed by the kernel.
        target: absolute path inside the jail; must hold no colon.
        is_writable: False mounts it read-only.
    """

    source: str
    target: str
    is_writable: bool = False


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JailSpec:
    """One jail: a command, what it sees, what it may use.

    Attributes:
        argv: the command. A word without a slash is looked up in the jail's PATH by
            ``/usr/bin/env`` (exit 127 when absent, as in a shell); a path is executed as it is.
        limits: see ``Limits``.
        binds: mounted in this order, after the system directories.
        env: the whole environment of the command, on top of ``BASE_ENV``; nothing is inherited.
        cwd: working directory inside the jail.
        fds: jail descriptor number (>= 3) -> the caller's open descriptor (socketpair end, memfd,
            listening socket ...). Duplicated, so the caller closes its own copy after start.
        stdin, stdout, stderr: the caller's descriptors; None is /dev/null.
        outside_uid, outside_gid: host identity behind ``INSIDE_ID``; None: nobody (65534) when
            root, the caller's own otherwise. Writable binds must be writable by it.
        hostname: what uname shows.
        nice: scheduling niceness inside the jail.
        has_proc: mount a read-only /proc.
        is_mother: it makes warm jails of its children (warm.py): it may call mount, unshare and
            clone with new namespaces, which gives it no right outside of them, and its /proc is
            writable. Never for a tenant's code.
    """

    argv: tuple[str, ...]
    limits: Limits = dataclasses.field(default_factory=Limits)
    binds: tuple[Bind, ...] = ()
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cwd: str = "/tmp"
    fds: Mapping[int, int] = dataclasses.field(default_factory=dict)
    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None
    outside_uid: int | None = None
    outside_gid: int | None = None
    hostname: str = "jail"
    nice: int = 0
    has_proc: bool = True
    is_mother: bool = False


#: What every jailed command has in its environment unless the job says otherwise. One BLAS
#: thread: a jail is one slot, and a pool of threads per slot would oversubscribe the host.
BASE_ENV: Mapping[str, str] = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    "LANG": "C.UTF-8",
    "USER": "jail",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
