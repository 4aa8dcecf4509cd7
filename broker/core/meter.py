"""How fast one principal may speak: token buckets, as integers, that are told the time.

A bucket gains ``per_s`` tokens a second up to ``burst``. A message passes while there is a token,
whatever it takes: one that is larger than the burst leaves a debt, so each size gets through in the
end and never more than ``burst + per_s * seconds`` and one message pass. Where the bucket is empty
the meter is *closed*: until it has a quarter of a second's worth again (and at least one token, and
no more than the burst) nothing passes. So who was refused comes back with a volley, not for a
single message, and what followed on the refused one is refused, too, instead of overtaking it.
"""

from __future__ import annotations

MILLI = 1_000
REST_SHARE = 4  #: closed until it has 1/4 of what a second brings
_MS_MAX = 1 << 40  #: between two looks; keeps a jump of the clock out of the figures


class Bucket:
    """See the module's text. ``per_s`` 0: no limit. Tokens are counted in thousandths."""

    __slots__ = ("_burst", "_level", "_seen_ms", "per_s")

    def __init__(self, per_s: int, burst: int, now_ms: int) -> None:
        self.per_s = per_s
        self._burst = max(burst, 1) * MILLI
        self._level = self._burst
        self._seen_ms = now_ms

    def take(self, cost: int, now_ms: int) -> int:
        """0 when it passes (and is paid for), else after how many ms to try again."""
        if not self.per_s:
            return 0
        level = self._filled(now_ms)
        if level < MILLI:
            self._level = level
            return self._wait_ms(level)
        self._level = level - cost * MILLI
        return 0

    def has(self, now_ms: int) -> bool:
        """Whether something would pass now."""
        return not self.per_s or self._filled(now_ms) >= MILLI

    def change(self, per_s: int, burst: int, now_ms: int) -> None:
        """Another limit from now on; what was used stays used."""
        level = self._filled(now_ms) if self.per_s else self._burst
        used = self._burst - level
        self.per_s, self._burst = per_s, max(burst, 1) * MILLI
        # A debt under an old limit must not stand for longer than the new one's whole burst.
        self._level = max(self._burst - used, -self._burst)

    def tokens(self, now_ms: int) -> int:
        """Whole tokens that there are; negative: a debt."""
        return self._filled(now_ms) // MILLI

    def _filled(self, now_ms: int) -> int:
        # ``per_s`` tokens a second are as many thousandths a millisecond
        passed_ms = min(max(now_ms - self._seen_ms, 0), _MS_MAX)
        self._seen_ms = max(now_ms, self._seen_ms)
        self._level = min(self._burst, self._level + passed_ms * self.per_s)
        return self._level

    def _wait_ms(self, level: int) -> int:
        wanted = min(max(self.per_s * MILLI // REST_SHARE, MILLI), self._burst)
        return -(-(wanted - level) // self.per_s)


class Meter:
    """What one principal takes: messages and their bytes; and what was refused of it.

    ``cause``: the limit at which it was closed last, in words.
    ``closed_until_ms``: nothing passes before. ``refused``: messages that did not pass, and
    ``answered``: how many of them were, since it was closed last. ``sessions``: open ones.
    """

    __slots__ = (
        "_bytes", "_requests", "answered", "cause", "closed_until_ms", "closings", "passed",
        "refused", "sessions", "sessions_max",
    )  # fmt: skip

    def __init__(self, now_ms: int) -> None:
        self._requests = Bucket(0, 0, now_ms)
        self._bytes = Bucket(0, 0, now_ms)
        self.sessions_max = 0
        self.sessions = 0
        self.cause = ""
        self.closed_until_ms = now_ms
        self.closings = self.passed = self.refused = self.answered = 0

    def limit(
        self, requests: tuple[int, int], size: tuple[int, int], sessions_max: int, now_ms: int
    ) -> None:
        """(a second, burst) of messages and of bytes from now on; 0 a second for no limit."""
        self._requests.change(*requests, now_ms)
        self._bytes.change(*size, now_ms)
        self.sessions_max = sessions_max
        self.closed_until_ms = min(self.closed_until_ms, now_ms)

    def take(self, cost: int, size_bytes: int, now_ms: int) -> int:
        """0 when a message passes, else the ms until one may; both buckets pay, or neither."""
        if now_ms < self.closed_until_ms:
            self.refused += 1
            return self.closed_until_ms - now_ms
        # asks the bytes first, takes nothing of them: the other bucket may say no
        if wait_ms := self._bytes.take(0, now_ms):
            self.cause = f"{self._bytes.per_s:,} bytes a second"
        elif wait_ms := self._requests.take(cost, now_ms):
            self.cause = f"{self._requests.per_s:,} requests a second"
        if wait_ms:
            self.closed_until_ms = now_ms + wait_ms
            self.closings += 1
            self.refused += 1
            self.answered = 0
            return wait_ms
        self._bytes.take(size_bytes, now_ms)
        self.passed += 1
        return 0
