"""The link's thread and those of its callers: what one sees of the other may be old."""

import contextlib
import os
import threading

from gristmill.client.link import Link
from gristmill.wire.client import Hello


class LateLink(Link):
    """Once late, a caller sees the thread asleep and goes on only when the thread has ended."""

    is_late = False

    @property  # type: ignore[override]
    def _is_asleep(self) -> bool:
        if self.is_late and threading.current_thread() is not self._thread:
            self.is_late = False
            with contextlib.suppress(OSError):  # it was awake, and has ended already
                os.eventfd_write(self._wake_fd, 1)
            self._thread.join()
            return True
        return bool(self.__dict__["was_asleep"])

    @_is_asleep.setter
    def _is_asleep(self, value: bool) -> None:
        self.__dict__["was_asleep"] = value


def test_waking_a_thread_that_has_just_ended_writes_to_no_closed_descriptor(address: str) -> None:
    hello = Hello(1, b"c" * 16, "", "3.11", "0")
    link = LateLink(address, hello, "", 5, warn=lambda _: None)
    link.is_late = True
    link.close()
    assert not link.is_late, "the caller was held"
    done: list[int] = []
    link.do(lambda: done.append(1))
    assert done == [1], "after the end commands run at once, to fail what they ask for"
