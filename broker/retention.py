"""How long the broker keeps what is over: results, past jobs, events of workers."""

import logging
from collections.abc import Callable

from gristmill.broker import past, schema
from gristmill.broker.checkpoints import Told
from gristmill.broker.core.state import State
from gristmill.broker.execution import Inbox
from gristmill.broker.journal import Journal
from gristmill.broker.lines import LineKeeper
from gristmill.broker.reader import Reader
from gristmill.broker.settings import BrokerSettings

log = logging.getLogger("gristmill.broker")

DAY_MS = 86_400_000


class Retention:
    """See the module's text.

    Args:
        free: takes (job, sequence, {}): its results up to that one leave the disk.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        state: State,
        journal: Journal,
        reader: Reader,
        inbox: Inbox,
        lines: LineKeeper,
        free: Callable[[int, int, dict[int, Told]], None],
    ) -> None:
        self._settings = settings
        self._state = state
        self._journal = journal
        self._reader = reader
        self._inbox = inbox
        self._lines = lines
        self._free = free

    def look(self) -> None:
        """Let go of what its time is over for; to be called now and then."""
        utc_ms, settings = self._inbox.utc_ms, self._settings
        self._reader.ask(lambda db: past.expired(db, utc_ms), self._expire, lambda _: None)
        before_ms = utc_ms - settings.past_days * DAY_MS
        self._reader.ask(
            lambda db: past.prunable(db, before_ms, settings.past_jobs_max),
            self._prune, lambda _: None,
        )  # fmt: skip
        self._journal.add_chore(schema.DROP_EVENTS, (0, before_ms))  # of workers

    def _expire(self, found: list[tuple[int, int]]) -> None:
        for job, upto in found:
            self._journal.record("job_states", schema.CLEAR_EXPIRY, (job,), 32)
            self._free(job, upto, {})
            self._lines.forget(job)
            log.info("job=%d results expired", job)

    def _prune(self, found: list[tuple[int, str, bytes, str, int]]) -> None:
        """Past jobs leave the journal, but for a tombstone."""
        utc_ms = self._inbox.utc_ms
        for row in found:
            job = row[0]
            old = self._state.finished.pop(job, None)
            if old is not None:
                self._state.submissions.pop((old.tenant, old.submission), None)
            self._state.has_past = True
            self._journal.record("tombstones", schema.ADD_TOMBSTONE, (*row, utc_ms), 128)
            for table, statement in schema.PRUNED:
                self._journal.record(table, statement, (job,), 16)
            self._journal.add_chore(schema.DROP_EVENTS, (job, utc_ms + DAY_MS))
            self._lines.forget(job)
        if found:
            log.info("pruned jobs=%d up to job=%d", len(found), found[-1][0])
