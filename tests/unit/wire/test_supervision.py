"""What a service manager hears, on a real datagram socket."""

import os
import pathlib
import socket
from collections.abc import Iterator

import pytest

from gristmill.wire.process import announce_ready, is_journal
from gristmill.wire.supervision import NOBODY, STATUS_BYTES_MAX, Supervisor, supervisor_of


@pytest.fixture
def manager(tmp_path: pathlib.Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "notify"))
        made.setblocking(False)
        yield made


def heard(manager: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(manager.recv(65_536).decode())
        except BlockingIOError:
            return found


def of(manager: socket.socket, **more: str) -> Supervisor:
    return supervisor_of({"NOTIFY_SOCKET": manager.getsockname(), **more})


def test_each_word_is_one_datagram(manager: socket.socket) -> None:
    supervisor = of(manager)
    supervisor.starting("reads 3 rows", 60)
    supervisor.ready("serves")
    supervisor.status("two\nlines\tin one")
    supervisor.stopping("drains")
    assert heard(manager) == [
        "EXTEND_TIMEOUT_USEC=60000000\nSTATUS=reads 3 rows",
        "READY=1\nSTATUS=serves",
        "STATUS=two lines in one",
        "STOPPING=1\nSTATUS=drains",
    ]
    supervisor.close()
    supervisor.close()
    supervisor.ready("again")
    assert not heard(manager)


def test_ready_is_announced_to_everybody_who_waits(
    manager: socket.socket, capfd: pytest.CaptureFixture[str]
) -> None:
    ready, write = os.pipe()
    announce_ready("ledger", "tcp://127.0.0.1:1", write, of(manager))
    assert heard(manager) == ["READY=1\nSTATUS=serves at tcp://127.0.0.1:1"]
    assert os.read(ready, 64) == b"READY\n"
    os.close(ready)
    assert capfd.readouterr().err == "ready ledger tcp://127.0.0.1:1\n"


def test_a_status_is_one_bounded_line(manager: socket.socket) -> None:
    of(manager).status("ü" * STATUS_BYTES_MAX + "\nWATCHDOG=1")
    (told,) = heard(manager)
    assert told == "STATUS=" + "ü" * (STATUS_BYTES_MAX // 2)


def test_the_watchdog_hears_a_share_of_what_is_fed(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1_000.0]
    monkeypatch.setattr("gristmill.wire.supervision.time.monotonic", lambda: now[0])
    supervisor = of(manager, WATCHDOG_USEC="8000000", WATCHDOG_PID=str(os.getpid()))
    assert (supervisor.watchdog_s, supervisor.feed_every_s) == (8.0, 2.0)
    supervisor.feed()
    assert heard(manager) == ["WATCHDOG=1"]
    supervisor.feed()
    now[0] += 1.99
    supervisor.feed()
    assert not heard(manager)
    now[0] += 0.01
    supervisor.feed()
    assert heard(manager) == ["WATCHDOG=1"]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"},  # another process's
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "-5"},
    ],
)
def test_without_a_watchdog_of_ours_nothing_is_fed(
    manager: socket.socket, more: dict[str, str]
) -> None:
    supervisor = of(manager, **more)
    assert not supervisor.watchdog_s
    supervisor.feed()
    assert not heard(manager)


def test_an_abstract_address(tmp_path: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(f"\0gristmill-{tmp_path}")
        supervisor_of({"NOTIFY_SOCKET": f"@gristmill-{tmp_path}"}).ready("here")
        assert made.recv(100) == b"READY=1\nSTATUS=here"


@pytest.mark.parametrize("address", ["", "relative", "vsock:2:1234"])
def test_where_nobody_supervises_nothing_happens(address: str) -> None:
    supervisor = supervisor_of({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"})
    supervisor.ready("serves")
    supervisor.feed()
    assert not supervisor.watchdog_s
    NOBODY.ready("serves")


def test_a_manager_that_does_not_read_or_is_gone_stops_nobody(
    manager: socket.socket, tmp_path: pathlib.Path
) -> None:
    supervisor = of(manager)
    for _ in range(10_000):  # more than a socket's queue holds
        supervisor.status("full")
    assert 0 < len(heard(manager)) < 10_000
    (tmp_path / "notify").unlink()
    supervisor.stopping("nobody listens")
    assert not heard(manager)


def test_the_journal_is_known_by_its_stream(tmp_path: pathlib.Path) -> None:
    with open(tmp_path / "stream", "w") as file:
        found = os.fstat(file.fileno())
        stream = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert is_journal(file.fileno(), stream)
        assert not is_journal(file.fileno(), {})
        assert not is_journal(file.fileno(), {"JOURNAL_STREAM": "1:2"})
    assert not is_journal(-1, stream)
