"""What a worker tells: red on a terminal only."""

import os
import pathlib

import pytest

from gristmill.worker.agent import say


@pytest.mark.parametrize(("no_color", "is_red"), [("", True), ("1", False)])
def test_a_loud_line_is_red_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, no_color: str, is_red: bool
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    ours, theirs = os.openpty()
    with open(theirs, "w") as terminal, open(ours, "rb", buffering=0) as screen:
        monkeypatch.setattr("sys.stderr", terminal)
        say("no jail at all", is_loud=True)
        say("quiet")
        seen = b""
        while not seen.endswith(b"quiet\r\n"):
            seen += screen.read(1000)
    assert seen.startswith(b"\x1b[1;31mno jail" if is_red else b"no jail")
    assert (seen.count(b"\x1b") > 0) is is_red


def test_a_log_has_no_colour(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    with (tmp_path / "log").open("w") as log:
        monkeypatch.setattr("sys.stderr", log)
        say("no jail at all", is_loud=True)
    assert (tmp_path / "log").read_text() == "no jail at all\n"
