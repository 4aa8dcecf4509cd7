"""What holds for every suite: minutes per suite, tests that need root, no silent skip in CI."""

import os
import pathlib
import signal
from collections import defaultdict
from collections.abc import Generator

import pytest

ROOT = pathlib.Path(__file__).parent


def pytest_configure() -> None:
    """Whoever starts a job in the background ignores SIGINT for it, and for all that it starts.

    Tests of Ctrl-C need what a terminal gives: a handler here is the default for a child.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason=f"needs uid 0, runs as {os.geteuid()}"))


def _fail_instead(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Turns a skip into a failure: under CI a missing host feature is a fault of the host."""
    if os.environ.get("CI") != "true" or not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"{reason}\nskipping is a failure here because CI=true"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_instead(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_instead(report)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    seconds: defaultdict[str, float] = defaultdict(float)
    counts: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    for outcome, reports in terminalreporter.stats.items():
        for report in reports:
            if not isinstance(report, pytest.TestReport):
                continue
            suite = report.nodeid.removeprefix("tests/").partition("/")[0]
            seconds[suite] += report.duration
            if outcome:  # a set-up or teardown that passed has the empty outcome
                counts[suite][outcome] += 1
    terminalreporter.write_sep("=", "minutes per suite")
    for suite in sorted(seconds):
        told = ", ".join(f"{number} {outcome}" for outcome, number in counts[suite].items())
        terminalreporter.write_line(f"{suite:12} {seconds[suite] / 60:6.2f} min  {told}")
