"""The core when one message is lost, or damaged on its way: full reports and answers mend it."""

from typing import Any

from msgspec.structs import replace
from worker_rig import REPORT, Rig

from gristmill.wire.errors import CODES
from gristmill.worker.core import effects as do
from gristmill.worker.core import events as on
from gristmill.worker.core.state import MALFORMED_MAX

MALFORMED = on.WasRefused("MALFORMED", "m", "h")


def reports(effects: list[do.Effect]) -> list[Any]:
    return [each.message for each in effects if isinstance(each, do.SendReport)]


def full_report(rig: Rig) -> Any:
    """The next full report, which is answered."""
    (report,) = reports(rig.turn(REPORT))
    assert report.is_full
    rig.orders(answers=report.number)
    return report


def test_a_full_report_names_open_jobs_with_the_grants_that_they_have() -> None:
    rig = Rig().running()
    ((job, mark),) = full_report(rig).open_jobs
    assert job == 1
    rig.orders(openings=[replace(rig.state.jobs[1].opening, put_grant="newer")])
    ((_, newer),) = full_report(rig).open_jobs
    assert newer != mark
    rig.result(1, 0, 1)
    (report,) = reports(rig.turn())
    assert not report.is_full and report.open_jobs == []
    rig.orders(close=[1])  # its lease still runs; it ends with that
    assert full_report(rig).open_jobs == []


def test_one_malformed_message_now_and_then_ends_no_worker() -> None:
    rig = Rig().running(count=2 * MALFORMED_MAX)
    for index in range(2 * MALFORMED_MAX):
        rig.result(1, index, 1)
        rig.turn()
        assert [type(each) for each in rig.tell(MALFORMED)] == [do.Tell]
        full_report(rig)  # read and answered, and the result in the other was not
        (again,) = reports(rig.turn())
        assert [head.first for head in again.results] == [index]
        rig.orders(answers=again.number, acked=again.results[0].number)
    assert rig.state.phase == "open" and not rig.state.results


def test_what_is_malformed_each_time_is_not_said_for_ever() -> None:
    rig = Rig().running()
    rig.result(1, 0, 1)
    for _ in range(MALFORMED_MAX - 1):
        assert reports(rig.turn())[0].results
        assert [type(each) for each in rig.tell(MALFORMED)] == [do.Tell]
        full_report(rig)  # reports without the result are read: that gets us nowhere
    rig.turn()
    killed, ended = rig.tell(MALFORMED)
    assert isinstance(killed, do.KillJail) and isinstance(ended, do.Exit)
    assert ended.code == CODES["MALFORMED"].exit_code and "MALFORMED: m" in ended.message


def test_a_hello_that_is_malformed_is_said_a_few_times() -> None:
    rig = Rig()
    rig.tell(on.Began())
    hellos = 0
    while rig.state.phase != "ended":
        hellos += sum(isinstance(each, do.SendHello) for each in rig.turn(10_000))
        rig.tell(MALFORMED)
    assert hellos == MALFORMED_MAX
