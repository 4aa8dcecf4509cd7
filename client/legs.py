"""The jobs of one upload: usually one.

A client that was silent for longer than a session lasts finds its open-ended job closed; what the
broker has not got goes on in a new job. Whoever reads sees one numbering: the *position* of an
input in the upload. In a job of its own an input has an *index*.
"""

import bisect


class Legs:
    """The jobs of an upload, each with the position of its first input."""

    def __init__(self) -> None:
        self._bases = [0]
        self._jobs: list[int] = []

    def accepted(self, job: int) -> None:
        """The newest job has a number."""
        if len(self._jobs) < len(self._bases):
            self._jobs.append(job)

    def continued(self, base: int) -> None:
        """A further job begins at this position."""
        self._bases.append(base)

    @property
    def jobs(self) -> list[int]:
        """Numbers of the accepted ones, in order."""
        return list(self._jobs)

    @property
    def newest(self) -> int:
        """Number of the job that takes inputs now, 0 until it is accepted."""
        return self._jobs[-1] if len(self._jobs) == len(self._bases) else 0

    def span(self, job: int) -> tuple[int, int | None]:
        """Positions of a job's inputs: from, to (None: it takes more)."""
        at = self._jobs.index(job)
        return self._bases[at], self._bases[at + 1] if at + 1 < len(self._bases) else None

    def base(self, job: int) -> int:
        """Position of a job's first input."""
        return self._bases[self._jobs.index(job)] if len(self._jobs) > 1 else 0

    def find(self, position: int) -> tuple[int, int]:
        """(job, index) of an input; job 0 until it is accepted.

        >>> legs = Legs()
        >>> legs.accepted(7); legs.continued(100); legs.accepted(9)
        >>> legs.find(99), legs.find(100)
        ((7, 99), (9, 0))
        """
        at = bisect.bisect_right(self._bases, position) - 1
        job = self._jobs[at] if at < len(self._jobs) else 0
        return job, position - self._bases[at]
