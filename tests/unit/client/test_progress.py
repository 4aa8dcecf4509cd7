import io
from typing import Any

from gristmill.client import Client
from gristmill.client.progress import Bar, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal() -> None:
    screen = Terminal()
    bar = Bar("audit", 10, stream=screen)
    bar.show(5, None)
    bar.show(6, None)  # too soon after the last one to be drawn
    bar.show(10, None)
    drawn = screen.getvalue()
    assert drawn.startswith("\raudit [############............] 5 of 10")
    assert "6 of 10" not in drawn and "10 of 10" in drawn and drawn.endswith("\n")


def test_silent_where_no_terminal_is_unless_it_is_wanted() -> None:
    quiet, wanted = io.StringIO(), io.StringIO()
    Bar("audit", 10, stream=quiet).show(10, None)
    Bar("audit", None, is_forced=True, stream=wanted).show(10, None)
    assert quiet.getvalue() == ""
    assert wanted.getvalue().startswith("audit 10 done") and "\r" not in wanted.getvalue()


def test_the_line_tells_rate_rest_and_cost(client: Client, peer: Any) -> None:
    values = client.map(abs, range(4))
    assert list(values) == [0, 1, 2, 3]
    line = Bar("audit", 8).line(4, client.status(values), 2.0)
    assert "4 of 8, 2/s, 2 s to go, cost 0.00004" in line


def test_a_job_is_followed_to_its_end(client: Client, peer: Any) -> None:
    values = client.map(abs, range(4))
    list(values)
    out = io.StringIO()
    assert progress(client.job(values), visible=True, stream=out).state == "done"
    assert "4 of 4" in out.getvalue() and "cost 0.00004" in out.getvalue()
    assert client.progress(values, visible=False).done == 4


def test_a_job_shows_itself_in_a_notebook(client: Client, peer: Any) -> None:
    values = client.with_options(name="<b>").submit(abs, 1)
    assert values.result(5) == 1
    card = client.job(values.job)._repr_html_()
    assert "&lt;b&gt;" in card and "<b>j1</b>" in card
    assert "running" in repr(client.job(values.job))
