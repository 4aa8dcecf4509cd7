"""Which parcels cover an index: parcels of a job follow one another without gaps.

Four flat lists and a bisect; the frames themselves are the shell's.
"""

from bisect import bisect_right

from gristmill.wire.worker import ParcelHead, Run


class Parcels:
    """The parcels of one job, in order. ``bytes_upto[i]``: body bytes of parcels ``0 .. i``."""

    __slots__ = ("bytes_total", "bytes_upto", "codecs", "ends", "firsts")

    def __init__(self) -> None:
        self.firsts: list[int] = []
        self.ends: list[int] = []
        self.codecs: list[str] = []
        self.bytes_upto: list[int] = []
        self.bytes_total = 0

    def add(self, first: int, count: int, codec: str, body_bytes: int) -> None:
        """The next parcel; it begins where the last one ended."""
        self.bytes_total += body_bytes
        self.firsts.append(first)
        self.ends.append(first + count)
        self.codecs.append(codec)
        self.bytes_upto.append(self.bytes_total)

    def is_same(self, first: int, count: int, codec: str) -> bool:
        """Whether exactly this parcel is here already."""
        position = bisect_right(self.firsts, first) - 1
        return (
            position >= 0
            and self.firsts[position] == first
            and self.ends[position] == first + count
            and self.codecs[position] == codec
        )

    def bytes_before(self, upto: int) -> int:
        """Body bytes of the parcels that end at or before this index."""
        return self.whole_before(upto)[1]

    def whole_before(self, upto: int) -> tuple[int, int]:
        """(end of the last parcel that ends at or before this index, body bytes up to there)."""
        position = bisect_right(self.ends, upto)
        return (self.ends[position - 1], self.bytes_upto[position - 1]) if position else (0, 0)

    def fit(self, first: int, count: int, bytes_max: int, seen: int) -> tuple[int, int, int]:
        """How much of a range fits into ``bytes_max`` of parcels.

        ``seen``: number of the last parcel that is paid for already, -1 for none.
        Returns (how many subtasks, bytes that they add, number of the last parcel).
        """
        position = bisect_right(self.firsts, first) - 1
        end, at, used = first + count, first, 0
        while at < end:
            if position != seen:
                before = self.bytes_upto[position - 1] if position else 0
                size = self.bytes_upto[position] - before
                if used + size > bytes_max:
                    break
                used += size
                seen = position
            at = min(end, self.ends[position])
            position += 1
        return at - first, used, seen

    def covering(self, job: int, runs: list[Run]) -> list[ParcelHead]:
        """The parcels that cover these runs, each once, in the order of the runs."""
        positions: dict[int, None] = {}
        for start, length in runs:
            position = bisect_right(self.firsts, start) - 1
            while position < len(self.firsts) and self.firsts[position] < start + length:
                positions[position] = None
                position += 1
        return [
            ParcelHead(job, self.firsts[at], self.ends[at] - self.firsts[at], self.codecs[at])
            for at in positions
        ]
