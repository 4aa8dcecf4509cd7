"""Which of many like lines are written, so that no peer fills the disk of the logs.

The 1st, 2nd, 4th, 8th, ... of one kind is. After a quiet minute the count begins again: an alarm is
for people, and one of tomorrow must not be lost behind those of today.
"""

QUIET_MS = 60_000


class Floods:
    """Counts by kind; the kinds are few and never chosen by a peer."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[int, int]] = {}  # count, when the last was

    def count(self, kind: str, now_ms: int) -> int:
        """How many there were with this one; 0: it is not told.

        Args:
            kind: what the line says, without its figures.
            now_ms: a clock that never jumps.
        """
        count, last_ms = self._seen.get(kind, (0, now_ms))
        count = 1 if now_ms - last_ms > QUIET_MS else count + 1
        self._seen[kind] = count, now_ms
        return count if count.bit_count() == 1 else 0
