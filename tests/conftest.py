"""What holds for every suite: minutes per suite, sizes, figures, tests that need root, no silent
skip in CI."""

import datetime
import json
import os
import pathlib
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parent
sys.path.insert(0, str(ROOT / "rig"))  # for *_rig of many suites, in importlib mode


def pytest_configure(config: pytest.Config) -> None:
    """Whoever starts a job in the background ignores SIGINT for it, and for all that it starts.

    Tests of Ctrl-C need what a terminal gives: a handler here is the default for a child.
    """
    if place := os.environ.pop("GRISTMILL_LANE", ""):  # a runner that a test starts is in no lane
        from lane_rig import Lane

        config.pluginmanager.register(Lane(place), "lane")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def sized() -> Callable[[int, int], int]:
    """``sized(ci, release)``: how often a test of chance is repeated.

    The second under ``GRISTMILL_SIZE=release``, which ``make release-check`` sets.
    """
    is_release = os.environ.get("GRISTMILL_SIZE") == "release"
    return lambda ci, release: release if is_release else ci


@pytest.fixture
def figures(
    record_property: Callable[[str, object], None],
) -> Callable[..., None]:
    """``figures(kills=50, lost=0)``: what a test counted, printed at the end of the run.

    ``GRISTMILL_FIGURES=FILE`` also appends them there, one JSON line for each test.
    """

    def note(**counted: float | str) -> None:
        for name, value in counted.items():
            record_property(name, value)

    return note


@pytest.fixture(scope="session")
def s3() -> Iterator[Any]:
    """A real S3 server on loopback (``s3_rig.S3Server``), started by the first who asks for it."""
    from s3_rig import s3_server  # only here: it needs obstore

    with s3_server() as server:
        yield server


@pytest.fixture(scope="module")
def lightning() -> Iterator[Any]:
    """Two real Lightning nodes with a channel (``lightning_rig.LightningRig``)."""
    from lightning_rig import lightning_rig

    with lightning_rig() as rig:
        yield rig


@pytest.fixture(scope="session")
def anvil_process() -> Iterator[Any]:
    """A real EVM node (``chain_rig.ChainRig``), started by the first who asks for it."""
    from chain_rig import chain_rig

    with chain_rig() as rig:
        yield rig


@pytest.fixture
def anvil(anvil_process: Any) -> Iterator[Any]:
    """The node with the chain as it was at its start; what a test does is taken back."""
    from chain_rig import taken_back

    with taken_back(anvil_process) as rig:
        yield rig


@pytest.fixture
def btcpay() -> Iterator[Any]:
    """A server of BTCPay's protocol (``btcpay_rig.BtcpayServer``), a fresh one for each test."""
    from btcpay_rig import btcpay_server

    with btcpay_server() as server:
        yield server


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


def _told_figures(terminalreporter: pytest.TerminalReporter) -> dict[str, str]:
    told = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call" and report.user_properties:
                told[report.nodeid.removeprefix("tests/")] = ", ".join(
                    f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}"
                    for name, value in report.user_properties
                )
    return told


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Figures are kept as they come: a long run that is cut off has counted what it has."""
    path = os.environ.get("GRISTMILL_FIGURES")
    if not path or report.when != "call" or not report.user_properties:
        return
    line = {
        "test": report.nodeid,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "outcome": report.outcome,
        "seconds": round(report.duration, 2),
        "figures": dict(report.user_properties),
    }
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    seconds: defaultdict[str, float] = defaultdict(float)
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for outcome, reports in terminalreporter.stats.items():
        for report in reports:
            if not isinstance(report, pytest.TestReport):
                continue
            suite = report.nodeid.removeprefix("tests/").partition("/")[0]
            seconds[suite] += report.duration
            if outcome:  # a set-up or teardown that passed has the empty outcome
                counts[suite][outcome] += 1
    figures = _told_figures(terminalreporter)
    lane: Any = config.pluginmanager.get_plugin("lane")
    if lane is not None:
        all_told = lane.leave({"seconds": seconds, "counts": counts, "figures": figures})
        if not all_told:
            return  # the lane that ends last tells for all
        seconds, counts, figures = defaultdict(float), defaultdict(Counter), {}
        for told in all_told:
            figures |= told["figures"]
            for suite, spent in told["seconds"].items():
                seconds[suite] += spent
                counts[suite] += Counter(told["counts"].get(suite, {}))
    if figures:
        terminalreporter.write_sep("=", "figures")
    for test in sorted(figures):
        terminalreporter.write_line(f"{test}: {figures[test]}")
    terminalreporter.write_sep("=", "minutes per suite")
    for suite in sorted(seconds):
        told = ", ".join(f"{number} {outcome}" for outcome, number in counts[suite].items())
        terminalreporter.write_line(f"{suite:12} {seconds[suite] / 60:6.2f} min  {told}")
