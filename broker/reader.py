"""Reads the journal beside the loop: one read-only connection, one thread, answers in order.

A question is a function of the connection; what it returns is handed to the asker in the loop's
thread, by ``deliver``. So the loop never waits for the disk.
"""

import logging
import pathlib
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import apsw

from gristmill.broker import bodies, salvage
from gristmill.broker.indexes import IndexDamagedError

log = logging.getLogger("gristmill.broker.reader")

T = TypeVar("T")

QUESTIONS_MAX = 10_000  #: waiting at a time; past it people's questions are refused


class Reader:
    """See the module's text. ``wake`` is called from the reader's thread after each answer."""

    def __init__(
        self, path: pathlib.Path, wake: Callable[[], None], vfs: str | None = None
    ) -> None:
        self._connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY, vfs=vfs)
        self._connection.set_busy_timeout(10_000)
        self._connection.execute("PRAGMA query_only=1")
        bodies.register(self._connection, path.parent)
        self._path = path
        self._wake = wake
        self._questions: queue.SimpleQueue[tuple[Any, Any, Any] | None] = queue.SimpleQueue()
        self._answers: deque[tuple[Callable[[Any], None], Any]] = deque()
        self._waiting = 0
        self.failure: Exception | None = None
        self._thread = threading.Thread(target=self._answer, name="reader", daemon=True)
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """So much waits that questions of people should be refused."""
        return self._waiting >= QUESTIONS_MAX

    def ask(
        self,
        question: Callable[[apsw.Connection], T],
        then: Callable[[T], None],
        failed: Callable[[Exception], None],
    ) -> None:
        """Runs the question in the reader's thread, then ``then`` in the loop's.

        ``failed`` instead, when SQLite finds the file damaged there. Where an index is found to
        hide rows nothing more is answered: the process ends, and its next start salvages the file.
        """
        self._waiting += 1
        self._questions.put((question, then, failed))

    def deliver(self) -> int:
        """Hands over what was read; returns how many answers.

        Raises:
            OSError: a read failed in a way that is not one row's fault.
        """
        if self.failure is not None:
            raise OSError(f"the journal cannot be read: {self.failure!r}")
        count = 0
        while self._answers:
            then, answer = self._answers.popleft()
            self._waiting -= 1
            count += 1
            then(answer)
        return count

    def close(self) -> None:
        """Ends the thread; questions that wait are dropped."""
        self._questions.put(None)
        self._thread.join(5.0)
        if not self._thread.is_alive():
            self._connection.close()

    def _answer(self) -> None:
        try:
            while (asked := self._questions.get()) is not None:
                question, then, failed = asked
                try:
                    self._answers.append((then, question(self._connection)))
                except (apsw.IOError, IndexDamagedError):
                    raise
                except Exception as error:  # a damaged page can make anything of a value
                    log.error("journal damaged file=%s error=%r", self._path, error)
                    self._answers.append((failed, error))
                self._wake()
        except Exception as error:  # a thread's edge: the loop logs it and exits
            if isinstance(error, IndexDamagedError):
                log.critical("journal damaged file=%s error=%r: salvaged next", self._path, error)
                salvage.suspect_mark(self._path).touch()
            self.failure = error
            self._wake()
