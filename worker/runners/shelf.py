"""Shared objects in a slot: a blob is mapped, not read, and unpickled once for all subtasks.

The agent passes a descriptor of the node's one copy. Arrays are views of the mapping: every slot of
the node sees the same memory, and nobody can write to it.
"""

import _thread
import mmap
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from gristmill.wire.errors import RemoteError
from gristmill.wire.shared import parts_of
from gristmill.wire.units import format_bytes

#: Objects that nobody holds are kept up to this size together, and always the newest.
KEPT_BYTES = 256 << 20


class NotSharedError(RuntimeError):
    """A shared object cannot be had here; the message says why."""


class Shelf:
    """Objects by digest.

    Args:
        ask: gets the descriptor of a blob from the agent; a text says why there is none.
    """

    def __init__(self, ask: Callable[[str, int], int | str]) -> None:
        self._ask = ask
        self._kept: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._bytes = 0
        self._owner = os.getpid(), _thread.get_ident()

    def load(self, digest: str, size_bytes: int) -> Any:
        """The object of a blob; the same one for everybody who asks.

        Raises:
            NotSharedError: the store has it not, or it does not fit in the memory limit.
        """
        kept = self._kept.get(digest)
        if kept is not None:
            self._kept.move_to_end(digest)
            return kept[0]
        answer = self._get(digest, size_bytes)
        try:
            pickled, buffers = parts_of(_map(answer))
        except RemoteError as error:
            raise NotSharedError(f"blob {digest}: {error.message}") from None
        value = pickle.loads(pickled, buffers=buffers)
        self._kept[digest] = value, size_bytes
        self._bytes += size_bytes
        while self._bytes > KEPT_BYTES and len(self._kept) > 1:
            _, (_, old_bytes) = self._kept.popitem(last=False)
            self._bytes -= old_bytes
        return value

    def view(self, digest: str, size_bytes: int) -> memoryview:
        """The bytes of a blob as they lie in the node's one copy; read-only.

        Raises:
            NotSharedError: as ``load``.
        """
        return _map(self._get(digest, size_bytes))

    def _get(self, digest: str, size_bytes: int) -> int:
        if (os.getpid(), _thread.get_ident()) != self._owner:
            raise NotSharedError(
                "a Ref is opened with the inputs and the function, not by a subtask itself"
            )
        answer = self._ask(digest, size_bytes)
        if isinstance(answer, str):
            raise NotSharedError(answer)
        return answer


def _map(fd: int) -> memoryview:
    size = os.fstat(fd).st_size
    try:
        mapping = mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    except OSError as error:
        raise NotSharedError(
            f"a shared object of {format_bytes(size)} cannot be mapped ({error.strerror}): "
            "ask for more with memory="
        ) from None
    finally:
        os.close(fd)
    return memoryview(mapping)
