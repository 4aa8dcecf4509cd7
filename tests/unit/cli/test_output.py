"""Tables, cards, colours, and text that comes from elsewhere."""

import io
import json
import os
from typing import Any

import pytest

from gristmill.cli.output import Terminal, clean, cut, width_of


class Screen(io.StringIO):
    """A terminal as far as anybody asks."""

    def isatty(self) -> bool:
        return True


def terminal(kind: type[io.StringIO] = io.StringIO, **environment: str) -> Terminal:
    return Terminal(kind(), kind(), environment)


def text_of(stream: Any) -> str:
    value = stream.getvalue()
    assert isinstance(value, str)
    return value


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.get_terminal_size", lambda: os.terminal_size((40, 20)))


def test_a_pipe_gets_plain_whole_text() -> None:
    plain = terminal()
    plain.table(["NAME", "N"], [["x" * 300, "1"], ["y", "1,000"]], right=["N"], styles={"N": "red"})
    lines = text_of(plain.out).splitlines()
    assert lines[0] == "NAME".ljust(300) + "      N"
    assert lines[1] == "x" * 300 + "      1"
    assert lines[2] == "y" + " " * 299 + "  1,000"
    assert "\x1b" not in text_of(plain.out)


@pytest.mark.usefixtures("narrow")
def test_a_terminal_gets_what_fits() -> None:
    screen = terminal(Screen, NO_COLOR="1")
    screen.table(["NAME", "MESSAGE", "N"], [["short", "m" * 99, "12345"]], right=["N"])
    lines = text_of(screen.out).splitlines()
    assert [width_of(line) for line in lines] == [40, 40]
    assert lines[1] == "short  " + "m" * 25 + "…  12345"


@pytest.mark.usefixtures("narrow")
def test_what_must_be_whole_is_never_cut() -> None:
    """Half of a number is another number: what is too wide is left to the terminal."""
    screen = terminal(Screen, NO_COLOR="1")
    head, figures = ["ACCOUNT", "DAY", "HELD", "AVAILABLE"], ["1,000,000.123456", "999,999.123456"]
    row = ["node:" + "f" * 64, "2026-11-23", *figures]
    screen.table(head, [row], right=head[2:], whole=head[1:])
    shown = text_of(screen.out).splitlines()[1]
    assert shown == "node:ff…  2026-11-23  1,000,000.123456  999,999.123456"


@pytest.mark.usefixtures("narrow")
def test_no_column_disappears_on_a_very_narrow_terminal() -> None:
    screen = terminal(Screen, NO_COLOR="1")
    screen.table([f"COLUMN{n}" for n in range(8)], [[f"value-{n}" * 3 for n in range(8)]])
    head, row = text_of(screen.out).splitlines()
    assert max(width_of(head), width_of(row)) <= 40
    assert len(row.split()) == 8


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize(
    ("environment", "is_coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_colours_follow_the_conventions(environment: dict[str, str], is_coloured: bool) -> None:
    screen = terminal(Screen, **environment)
    screen.table(["STATE"], [["failed"]], styles={"STATE": "state"})
    screen.say("careful", "red")
    assert ("\x1b[31mfailed\x1b[0m" in text_of(screen.out)) is is_coloured
    assert ("\x1b[31mcareful\x1b[0m" in text_of(screen.err)) is is_coloured


def test_control_characters_from_elsewhere_are_shown_not_obeyed() -> None:
    evil = "job\x1b[2J\r\x07\u202e"
    assert clean(evil) == r"job\x1b[2J\r\x07\u202e"
    plain = terminal()
    plain.table(["NAME"], [[evil]])
    plain.card(evil, [("key", "value")])
    plain.fault("UNKNOWN_JOB", evil, evil, 2)
    for stream in (plain.out, plain.err):
        assert not set(text_of(stream)) & set("\x1b\r\x07\u202e")


def test_wide_characters_take_two_columns() -> None:
    assert width_of("磨坊") == 4
    assert width_of("e\u0301") == 1
    assert cut("磨坊磨坊", 5) == "磨坊…"


def test_a_card_leaves_out_what_is_not_known() -> None:
    plain = terminal()
    plain.card("j1", [("state", "done"), ("errors", ""), ("two", "a\nb")])
    assert text_of(plain.out) == "j1\n  state  done\n  two    a\n         b\n"


def test_an_error_is_two_lines_on_stderr() -> None:
    plain = terminal()
    plain.fault("UNKNOWN_JOB", "no job j9", "gristmill status", 2)
    assert text_of(plain.err) == "UNKNOWN_JOB no job j9\n  next: gristmill status\n"
    assert text_of(plain.out) == ""


def test_an_error_with_json_is_also_a_document() -> None:
    plain = terminal()
    plain.is_json = True
    plain.fault("UNKNOWN_JOB", "no job j9", "gristmill status", 2)
    assert json.loads(text_of(plain.out)) == {
        "schema": "gristmill/error/1",
        "code": "UNKNOWN_JOB",
        "message": "no job j9",
        "hint": "gristmill status",
        "exit_code": 2,
    }
