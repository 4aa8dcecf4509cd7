"""What a person sees: tables, cards, colours where they help, and JSON where a program reads.

Data goes to stdout, talk to stderr. Colour only on a terminal without ``NO_COLOR``; a pipe gets
plain, whole, unshortened text. Whatever came from elsewhere is shown with its control characters
escaped: a job's name must not move the cursor of whoever lists jobs.
"""

import json
import os
import shutil
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
STATE_STYLES = {
    "done": "green",
    "running": "cyan",
    "leased": "cyan",
    "failed": "red",
    "cancelled": "yellow",
    "paused": "yellow",
    "lost": "red",
    "draining": "yellow",
}
_FLOORS = (8, 4, 1)  #: no column is cut below one of these while another is wider
_GAP = "  "


class Terminal:
    """Where a command writes.

    Args:
        out, err: stdout and stderr.
        environment: for ``NO_COLOR`` and ``TERM``.
        is_json: ``--json`` was given: documents on stdout, nothing else there.
    """

    def __init__(
        self,
        out: TextIO | None = None,
        err: TextIO | None = None,
        environment: Mapping[str, str] | None = None,
        is_json: bool = False,
    ) -> None:
        self.out = out or sys.stdout
        self.err = err or sys.stderr
        self.environment = os.environ if environment is None else environment
        self.is_json = is_json
        self.is_terminal = self.out.isatty()
        self.has_terminal_err = self.err.isatty()
        plain = self.environment.get("NO_COLOR") or self.environment.get("TERM") == "dumb"
        self.has_colour = self.is_terminal and not plain
        self.has_colour_err = self.has_terminal_err and not plain
        #: how to come back to what Ctrl-C leaves running; printed by ``main`` on Ctrl-C
        self.way_back = ""

    @property
    def width(self) -> int:
        """Columns to stay within; 0 for no limit (a pipe)."""
        if not self.is_terminal:
            return 0
        return shutil.get_terminal_size().columns

    # ------------------------------------------------------------ stdout

    def print(self, text: str = "") -> None:
        """A line of data on stdout."""
        self.out.write(text + "\n")

    def write_bytes(self, body: bytes) -> None:
        """Raw bytes on stdout, in order with the text."""
        self.out.flush()
        self.out.buffer.write(body)
        self.out.buffer.flush()

    def document(self, body: bytes) -> None:
        """One JSON document on a line of stdout (it has its ``schema`` in it)."""
        self.out.write(body.decode() + "\n")
        self.out.flush()

    def table(
        self,
        head: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        right: Sequence[str] = (),
        whole: Sequence[str] = (),
        styles: Mapping[str, str] | None = None,
    ) -> None:
        """Rows under a head.

        Args:
            head: names of the columns.
            rows: a text for each column.
            right: names of the columns that are set flush right, with spaces between.
            whole: names of the columns that are never cut, such as credits: half of a number is
                another number.
            styles: column name to the style of its cells, or to ``state`` for that of the word.
        """
        lines = self.format_table(head, rows, right=right, whole=whole, styles=styles or {})
        for line in lines:
            self.print(line)

    def format_table(
        self,
        head: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        right: Sequence[str] = (),
        whole: Sequence[str] = (),
        styles: Mapping[str, str],
    ) -> list[str]:
        """The lines of a table without its empty columns; on a terminal the widest are cut."""
        kept = [at for at in range(len(head)) if not rows or any(row[at] for row in rows)]
        head = [head[at] for at in kept]
        cells = [[clean(row[at]) for at in kept] for row in rows]
        widths = [
            max([width_of(head[at]), *(width_of(row[at]) for row in cells)])
            for at in range(len(head))
        ]
        if self.width:
            loose = [at for at, name in enumerate(head) if name not in whole]
            _fit(widths, loose, self.width - len(_GAP) * (len(head) - 1))
        lines = [self._line(head, head, widths, right, {name: "bold" for name in head})]
        lines += [self._line(row, head, widths, right, styles) for row in cells]
        return lines

    def _line(
        self,
        row: Sequence[str],
        head: Sequence[str],
        widths: Sequence[int],
        right: Sequence[str],
        styles: Mapping[str, str],
    ) -> str:
        parts = []
        for name, cell, width in zip(head, row, widths, strict=True):
            short = cut(cell, width)
            space = " " * (width - width_of(short))
            style = styles.get(name, "")
            shown = self.style(short, STATE_STYLES.get(cell, "") if style == "state" else style)
            parts.append(space + shown if name in right else shown + space)
        return _GAP.join(parts).rstrip()

    def card(self, title: str, pairs: Sequence[tuple[str, str]]) -> None:
        """A title, then what is known, one thing a line; empty values are left out."""
        self.print(self.style(clean(title), "bold"))
        known = [(key, value) for key, value in pairs if value]
        indent = max((width_of(key) for key, _ in known), default=0) + len(_GAP)
        for key, value in known:
            first, *rest = value.split("\n")
            self.print(f"  {self.style(key.ljust(indent), 'dim')}{first}")
            for line in rest:
                self.print(f"  {' ' * indent}{line}")

    def style(self, text: str, style: str) -> str:
        """The text in a style (``red``), if stdout takes colours."""
        return _styled(text, style) if self.has_colour and style and text else text

    # ------------------------------------------------------------ stderr

    def say(self, text: str, style: str = "") -> None:
        """Talk, on stderr."""
        self.out.flush()
        shown = _styled(text, style) if self.has_colour_err and style else text
        self.err.write(shown + "\n")
        self.err.flush()

    def fault(self, code: str, message: str, hint: str, exit_code: int) -> None:
        """An error in two lines on stderr: what, and the next command to type.

        With ``--json`` also a document of schema ``gristmill/error/1`` on stdout.
        """
        self.say(f"{_styled(code, 'red') if self.has_colour_err else code} {clean_lines(message)}")
        if hint:
            self.say(f"  next: {clean_lines(hint)}")
        if self.is_json:
            told = {"code": code, "message": message, "hint": hint, "exit_code": exit_code}
            self.document(json.dumps({"schema": "gristmill/error/1", **told}).encode())


def _styled(text: str, style: str) -> str:
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if style else text


def clean(text: str) -> str:
    r"""One line without control characters, which are shown as Python writes them.

    >>> clean("a\tb\x1b[31m")
    'a\\tb\\x1b[31m'
    """
    return text if text.isprintable() else "".join(map(_shown, text))


def clean_lines(text: str) -> str:
    """As ``clean``, line breaks kept."""
    return "\n".join(clean(line) for line in text.split("\n"))


def _shown(character: str) -> str:
    return character if character.isprintable() else repr(character)[1:-1]


def width_of(text: str) -> int:
    """Columns that a text takes: wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def cut(text: str, width: int) -> str:
    """The text within ``width`` columns, with an ellipsis where something is missing.

    >>> cut("stdlib_audit", 8)
    'stdlib_…'
    """
    if width_of(text) <= width:
        return text
    kept, used = "", 0
    for char in text:
        used += width_of(char)
        if used > width - 1:
            break
        kept += char
    return kept + "…"


def _fit(widths: list[int], loose: Sequence[int], room: int) -> None:
    """The widest of the loose columns gives way, again and again, down to a bearable rest.

    Where some columns are whole that rest is longer, and what does not fit even then is wrapped by
    the terminal: a name of one character beside an uncut figure tells nobody anything.
    """
    for floor in _FLOORS if len(loose) == len(widths) else _FLOORS[:1]:
        while (over := sum(widths) - room) > 0:
            widest = max(loose, key=widths.__getitem__, default=-1)
            if widest < 0 or widths[widest] <= floor:
                break
            second = max((widths[at] for at in loose if at != widest), default=0)
            least = max(second, widths[widest] - over)
            widths[widest] = max(floor, min(widths[widest] - 1, least))


def plural(number: int, noun: str) -> str:
    """``1 job``, ``1,204 jobs``.

    >>> plural(1, "job"), plural(1204, "job"), plural(2, "entry")
    ('1 job', '1,204 jobs', '2 entries')
    """
    many = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else many}"


def as_dict(value: Any) -> Any:
    """Plain data of a struct."""
    import msgspec

    return msgspec.to_builtins(value)
