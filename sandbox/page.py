"""Memory shared between an agent and a jail that the jail cannot pull away from under it."""

import fcntl
import os


def make_shared_page(name: str, size_bytes: int) -> int:
    """An anonymous file of zeros, of fixed size: map it here, pass it to a jail, close it.

    A mapping of a plain memfd is a trap: hostile code that truncates the file makes the agent's
    next look at it a SIGBUS. Sealed, the size cannot be changed by anybody; the contents can, so
    believe nothing that stands in it.

    Raises:
        OSError: the kernel has no memory or no descriptor left.
    """
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size_bytes)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(fd)
        raise
    return fd
