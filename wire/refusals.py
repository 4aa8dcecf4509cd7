"""Which lines of log a process writes about peers that it refuses: enough to act on, no flood.

Of each name (a public key, or the address of a stranger) at once the first refusal of a second, and
when the second is over how many there were behind it. Names are bounded, too: who comes with a new
one each time is counted together. No clock, no logging here: the caller has both.
"""

from typing import NamedTuple

from gristmill.wire.limits import REFUSED_NAMES_MAX

SECOND_MS = 1_000
WORDS_CHARS_MAX = 300
OTHERS = "others"


class Line(NamedTuple):
    """``times``: refusals since the last line about ``name``; ``code``, ``words``: of the last."""

    name: str
    times: int
    code: str
    words: str

    def __str__(self) -> str:
        more = f" times={self.times}" if self.times > 1 else ""
        return f"key={self.name} code={self.code}{more}: {self.words}"


class _Told:
    __slots__ = ("code", "count", "said_ms", "words")

    def __init__(self, said_ms: int) -> None:
        self.said_ms, self.count, self.code, self.words = said_ms, 0, "", ""


class Refusals:
    """See the module's text.

    >>> told = Refusals()
    >>> told.note("abc", "FORBIDDEN", "not for clients", 0)
    Line(name='abc', times=1, code='FORBIDDEN', words='not for clients')
    >>> told.note("abc", "FORBIDDEN", "not for clients", 10), told.due(999)
    (None, [])
    >>> [str(line) for line in told.due(1_000)]
    ['key=abc code=FORBIDDEN: not for clients']
    """

    def __init__(self, names_max: int = REFUSED_NAMES_MAX) -> None:
        self._names_max = names_max
        self._told: dict[str, _Told] = {}

    @property
    def is_waiting(self) -> bool:
        """Whether ``due`` will have something to do."""
        return bool(self._told)

    def note(self, name: str, code: str, words: str, now_ms: int) -> Line | None:
        """A refusal; the line to write now, if it is the first of this name for a second."""
        told = self._told.get(name)
        if told is None and len(self._told) >= self._names_max:
            name = OTHERS
            told = self._told.get(name)
        words = " ".join(words[: 2 * WORDS_CHARS_MAX].split())[:WORDS_CHARS_MAX]
        if told is None:
            self._told[name] = _Told(now_ms)
            return Line(name, 1, code, words)
        told.count, told.code, told.words = told.count + 1, code, words
        return None

    def due(self, now_ms: int) -> list[Line]:
        """Lines about what came behind the last ones; to be called at least once a second."""
        lines = []
        for name, told in list(self._told.items()):
            if now_ms - told.said_ms < SECOND_MS:
                continue
            if told.count:
                lines.append(Line(name, told.count, told.code, told.words))
                told.said_ms, told.count = now_ms, 0
            else:
                del self._told[name]
        return lines
