"""The ledger as a process: kills, replays, broken books, malformed peers."""

import os
import pathlib
import random
import select
import subprocess
import sys
from typing import Any

import apsw
import pytest
import zmq

from gristmill.ledger.app import ACKED_CHARS_MAX, Ledger
from gristmill.ledger.floods import QUIET_MS, Floods
from gristmill.ledger.settings import Settings, parse_fund, read_settings
from gristmill.wire.errors import EXIT_POLICY, EXIT_USAGE, RemoteError
from gristmill.wire.frames import encode
from gristmill.wire.ledger import (
    Acked,
    AskUsage,
    Fund,
    Hold,
    LedgerAnswer,
    LedgerRefused,
    Leg,
    Ping,
    Post,
    Release,
    Transfer,
    decode_from_ledger,
)
from gristmill.wire.limits import HEADER_BYTES_MAX

CREDIT = 1_000_000


def test_a_job_from_hold_to_release(ledger: Any, entries: Any) -> None:
    ledger.start("--fund", "ann=2")
    assert ledger.applied() == 0
    answer = ledger.post(1, Hold("b/1", "ann", CREDIT), Hold("b/2", "ann", 2 * CREDIT))
    assert answer.sequence == 2
    assert [one.code for one in answer.verdicts] == ["", "INSUFFICIENT_CREDITS"]
    answer = ledger.post(3, entries.contribution(0), entries.contribution(10, failed=10))
    assert answer == Acked("b", 4)
    assert ledger.accounts() == {
        "world": (-2 * CREDIT, 0),
        "escrow": (0, 0),
        "toll": (60, 0),
        "tenant:ann": (2 * CREDIT - 2_000, CREDIT - 2_000),
        "node:mill": (1_940, 0),
    }
    assert ledger.post(5, Release("b/1")) == Acked("b", 5)
    assert ledger.accounts()["tenant:ann"] == (2 * CREDIT - 2_000, 0)
    (row,) = [row for row in ledger.usage("job") if row.key == "j1"]
    assert (row.subtasks, row.failed, row.amount_ucredits, row.toll_ucredits) == (20, 10, 2_000, 60)
    code, told = ledger.end()
    assert code == 0
    assert f"ready ledger {ledger.address}" in told
    assert not os.path.exists(ledger.address.removeprefix("ipc://"))


def test_funding_is_once_for_each_ref(ledger: Any) -> None:
    ledger.start("--fund", "ann=2", "--fund", "bob=0.5")
    assert isinstance(ledger.ask(Fund(1, "ann", CREDIT, "invoice 7")), LedgerAnswer)
    assert isinstance(ledger.ask(Fund(2, "ann", CREDIT, "invoice 7")), LedgerAnswer)
    refused = ledger.ask(Fund(3, "bob", CREDIT, "invoice 7"))
    assert (refused.request, refused.code) == (3, "LEDGER_CONFLICT")
    assert ledger.ask(Fund(4, "bob", -1, "x")).code == "INVALID_SPEC"
    ledger.end()
    ledger.start("--fund", "ann=2", "--fund", "bob=9")
    assert ledger.accounts() == {
        "world": (-3_500_000, 0),
        "tenant:ann": (3 * CREDIT, 0),
        "tenant:bob": (CREDIT // 2, 0),
    }
    _, told = ledger.end()
    assert "not funded again" in told  # bob asks for another amount


def test_kills_under_load_count_everything_once(ledger: Any, entries: Any) -> None:
    dice = random.Random(11)
    stream: list[Any] = [Hold("b/1", "ann", 10_000_000)]
    stream += [entries.contribution(10 * i, amount=1_000 + i) for i in range(3_000)]
    ledger.start("--fund", "ann=100")
    kills = 0
    while (applied := ledger.applied()) < len(stream):
        # Posts on their way, some acks not awaited, then the power goes.
        sent = 0
        while sent < 4 and applied < len(stream):
            batch = stream[applied : applied + 150]
            ledger.send(Post("b", applied + 1, batch))
            applied, sent = applied + len(batch), sent + 1
        heard = min(sent, dice.randrange(3)) if kills < 6 else sent
        for _ in range(heard):
            ledger.receive()
        if kills < 6:
            kills += 1
            ledger.kill()
            ledger.socket.disconnect(ledger.address)
            ledger.socket.close(0)
            ledger.socket = ledger._context.socket(zmq.DEALER)
            ledger.socket.setsockopt(zmq.RCVTIMEO, 20_000)
            ledger.start("--fund", "ann=100")
    assert kills == 6
    billed = sum(1_000 + i for i in range(3_000))
    toll = sum((1_000 + i) * 3 // 100 for i in range(3_000))
    before = ledger.accounts()
    assert before["tenant:ann"] == (100 * CREDIT - billed, 10_000_000 - billed)
    assert (before["node:mill"], before["toll"]) == ((billed - toll, 0), (toll, 0))
    # the whole stream again, twice, changes nothing
    for _ in range(2):
        for first in range(0, len(stream), 200):
            ledger.post(first + 1, *stream[first : first + 200])
    assert ledger.accounts() == before
    ledger.end()
    _, told = ledger.start().end()
    assert "sum zero" in told


def test_a_flood_of_alarms_and_gaps_is_no_flood_of_lines(ledger: Any, entries: Any) -> None:
    ledger.start("--fund", "ann=2")
    ledger.post(1, Hold("b/1", "ann", CREDIT))
    for number in range(1_000):
        forged = Hold("b/1", "ann", CREDIT - 1 - number)
        assert ledger.post(1, forged).verdicts[0].code == "LEDGER_CONFLICT"
        assert ledger.post(3 + number, forged).sequence == 1, "nothing is jumped"
    _, told = ledger.end()
    alarms = [line for line in told.splitlines() if "ALARM LEDGER_CONFLICT" in line]
    gaps = [line for line in told.splitlines() if "gaps=" in line]
    assert 1 <= len(alarms) <= 12 and "512 now" in alarms[-1]
    assert 1 <= len(gaps) <= 12 and "gaps=512" in gaps[-1]
    assert "'alarms': 1000" in told and "'gaps': 1000" in told, "each is counted"


def test_an_alarm_after_a_quiet_minute_is_told_again() -> None:
    floods, now_ms = Floods(), 5
    told = [floods.count("alarm", now_ms + n) for n in range(7)]
    assert told == [1, 2, 0, 4, 0, 0, 0]
    assert floods.count("gap", now_ms) == 1, "each kind for itself"
    assert floods.count("alarm", now_ms + 6 + QUIET_MS) == 8
    assert floods.count("alarm", now_ms + 6 + 2 * QUIET_MS + 1) == 1


def tamper(state: pathlib.Path) -> None:
    db = apsw.Connection(str(state / "ledger.db"))
    db.execute("UPDATE account SET credits = credits + 1 WHERE name = 'tenant:ann'")
    db.close()


def test_broken_books_are_read_only_and_say_so(ledger: Any, entries: Any) -> None:
    ledger.start("--fund", "ann=2")
    ledger.post(1, Hold("b/1", "ann", CREDIT))
    ledger.end()
    tamper(ledger.state)
    ledger.start("--fund", "new=5")
    refused = ledger.ask(Post("b", 2, [entries.contribution(0)]))
    assert (refused.code, refused.request) == ("LEDGER_DOWN", 0)
    assert "read-only" in refused.message
    assert "account tenant:ann has" in refused.message
    assert ledger.ask(Ping("b")).code == "LEDGER_DOWN"
    assert ledger.ask(Fund(7, "ann", 5, "r")).request == 7
    assert [row.key for row in ledger.usage("job")] == ["j1"]  # questions are answered
    assert ledger.balance().sum_ucredits == 1  # and the truth is told
    code, told = ledger.end()
    assert code == 0
    assert "ALARM: this ledger is read-only" in told


def spoil(log: pathlib.Path) -> None:
    body = bytearray(log.read_bytes())
    body[len(body) // 2] ^= 1
    log.write_bytes(body)


@pytest.mark.parametrize("damage", [spoil, pathlib.Path.unlink], ids=["spoiled", "gone"])
def test_a_log_that_lost_commits_is_read_only_until_somebody_looked(
    ledger: Any, entries: Any, damage: Any
) -> None:
    """SQLite itself says nothing: the books without those commits look like books in order."""
    ledger.start("--fund", "ann=2")
    ledger.post(1, Hold("b/1", "ann", CREDIT))
    for number in range(5):
        ledger.post(2 + number, entries.contribution(10 * number))
    ledger.kill()
    damage(ledger.state / "ledger.db-wal")
    for _ in range(2):  # a restart does not forget it
        ledger.start()
        refused = ledger.ask(Ping("b"))
        assert refused.code == "LEDGER_DOWN" and "ledger.db-wal" in refused.message
        assert ledger.balance().sum_ucredits == 0
        code, told = ledger.end()
        assert code == 0 and "ALARM: this ledger is read-only" in told
    (kept,) = ledger.state.glob("ledger.db-wal.lost-*.txt")
    kept.unlink()
    ledger.start()
    assert ledger.applied() < 6  # it says what it has, so the broker can tell


def test_a_file_that_is_no_database(ledger: Any) -> None:
    ledger.start()
    ledger.end()
    (ledger.state / "ledger.db").write_bytes(b"garbage" * 1000)
    done = run("--state", str(ledger.state), "--listen", ledger.address)
    assert done.returncode == 1
    assert "is damaged and cannot be read" in done.stderr
    assert f"restore {ledger.state / 'ledger.db'} from a backup" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_the_tables_refuse_makes_it_read_only(inside: Any, entries: Any) -> None:
    inside.book.apply([Fund(1, "ann", CREDIT, "f")], 1)
    inside.book.db.execute(
        "CREATE TRIGGER planted BEFORE INSERT ON hold BEGIN SELECT RAISE(ABORT, 'planted'); END"
    )
    context = zmq.Context()
    socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(inside.address)
    for message in (Post("b", 1, [Hold("b/1", "ann", 5)]), Post("b", 1, [Hold("b/1", "ann", 5)])):
        socket.send(encode(message))
        inside._socket.poll(10_000)
        inside.turn()
        assert socket.poll(10_000)
        refused = decode_from_ledger.decode(socket.recv())
        assert refused.code == "LEDGER_DOWN"
        assert "planted" in refused.message
    assert inside.counts["broken"] == 1  # the second was not tried
    assert inside.book.state.applied == {}
    assert inside.book.state.accounts["tenant:ann"].available == CREDIT
    socket.close()
    context.term()


def test_a_file_that_somebody_holds_postpones(inside: Any) -> None:
    inside.book.db.set_busy_timeout(20)
    other = apsw.Connection(str(inside.book.path))
    other.execute("BEGIN IMMEDIATE")
    inside._apply([(b"", Fund(1, "ann", CREDIT, "f"))])
    assert inside.counts["postponed"] == 1
    assert inside.book.state.accounts == {}
    other.execute("ROLLBACK")
    other.close()
    inside._apply([(b"", Fund(1, "ann", CREDIT, "f"))])
    assert inside.book.state.accounts["tenant:ann"].available == CREDIT
    assert not inside.read_only


@pytest.mark.parametrize(
    "frames",
    [
        [b""],
        [b"\xc1"],
        [b"\x91\x63"],
        [b"\x93\x01\xa1b\x01"],
        [b"\x94\x01\xa1b\xa1x\x90"],
        [b"\x92\x05\xa2\xff\xfe"],
        [b"x" * 70_000],
        [encode(Ping("b")), b"more"],
        [b"\x91" * 5_000],
        [b"\x94\x01\xa1b\xcf" + b"\xff" * 8 + b"\x90"],
    ],
    ids=range(10),
)
def test_malformed_messages_are_answered(inside: Any, frames: list[bytes]) -> None:
    context = zmq.Context()
    socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(inside.address)
    socket.send_multipart(frames)
    socket.send(encode(Ping("b")))
    answers: list[Any] = []
    while len(answers) < 2:
        assert inside._socket.poll(10_000) or socket.poll(0)
        inside.turn()
        while socket.poll(100):
            answers.append(decode_from_ledger.decode(socket.recv()))
    assert isinstance(answers[0], LedgerRefused) or answers[0] == Acked("b", 0)
    assert answers[1] == Acked("b", 0)
    socket.close()
    context.term()


def test_refusals_longer_than_a_header_come_in_parts(ledger: Any) -> None:
    ledger.start()
    holds: list[Any] = [Hold(f"b/{job}", "t" * 190, 1) for job in range(250)]
    ledger.send(Post("b", 1, holds))
    parts = [ledger.receive()]
    while parts[-1].sequence < 250:
        parts.append(ledger.receive())
    assert len(parts) > 2
    verdicts = [one for part in parts for one in part.verdicts]
    assert [one.sequence for one in verdicts] == list(range(1, 251))
    assert {one.code for one in verdicts} == {"INSUFFICIENT_CREDITS"}
    assert all(sum(len(v.message) for v in p.verdicts) <= ACKED_CHARS_MAX + 600 for p in parts)


def run(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "gristmill.ledger", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        **more,
    )


def test_it_listens_on_loopback_only(tmp_path: pathlib.Path) -> None:
    done = run("--state", str(tmp_path / "s"), "--listen", "tcp://0.0.0.0:7032")
    assert done.returncode == EXIT_USAGE
    assert "NOT_LOOPBACK" in done.stderr
    os.mkdir(tmp_path / "open", 0o755)
    done = run("--state", str(tmp_path / "s"), "--listen", f"ipc://{tmp_path}/open/ledger")
    assert done.returncode == EXIT_USAGE
    assert f"chmod 700 {tmp_path}/open" in done.stderr


def test_one_ledger_owns_the_file(ledger: Any, tmp_path: pathlib.Path) -> None:
    ledger.start()
    done = run("--state", str(ledger.state), "--listen", f"ipc://{tmp_path}/other")
    assert done.returncode == EXIT_POLICY
    assert "another ledger has" in done.stderr
    assert ledger.applied() == 0


@pytest.mark.root
def test_another_user_cannot_write_its_tables(ledger: Any) -> None:
    ledger.start()
    path = str(ledger.state / "ledger.db")
    for folder in pathlib.Path(path).parents:  # what pytest made is not what is tested
        if folder != ledger.state and folder.stat().st_mode & 0o5 != 0o5:
            folder.chmod(folder.stat().st_mode | 0o5)
    done = subprocess.run(
        ["/bin/sh", "-c", f"echo x >> {path}"],
        user=65534,
        group=65534,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "denied" in done.stderr.lower()
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_settings_name_what_is_wrong() -> None:
    with pytest.raises(RemoteError, match=r"--state.*--listen"):
        read_settings([], {})
    for bad in ("ann", "=5", "ann=lots", "ann=-1"):
        with pytest.raises(RemoteError, match="--fund"):
            read_settings(["--state", "s", "--listen", "ipc:///x/y/l", "--fund", bad], {})
    with pytest.raises(RemoteError, match="sate"):
        read_settings(["--listen", "ipc:///x/y/l"], {"GRISTMILL_LEDGER_SATE": "typo"})
    for bad in (f"client={'a' * 64}", "broker", "broker=abc"):
        with pytest.raises(RemoteError, match="--allow"):
            read_settings(["--state", "s", "--listen", "tcp://127.0.0.1:1", "--allow", bad], {})


def test_settings_from_the_environment() -> None:
    environment = {
        "GRISTMILL_LEDGER_STATE": "s",
        "GRISTMILL_LEDGER_LISTEN": "ipc:///x/y/ledger",
        "GRISTMILL_LEDGER_FUND": "ann=1,bob=0.5",
    }
    settings = read_settings(["--state", "here"], environment)
    assert settings.state == pathlib.Path("here")
    assert settings.fund == (("ann", CREDIT), ("bob", CREDIT // 2))
    assert parse_fund("a=b=2") == ("a=b", 2 * CREDIT)


def test_unknown_jobs_have_no_bill(ledger: Any) -> None:
    ledger.start()
    refused = ledger.ask(AskUsage(3, "ann", "job", "b/1"))
    assert (refused.request, refused.code) == (3, "UNKNOWN_JOB")


def test_it_ends_with_its_starter(ledger: Any) -> None:
    # The starter is killed, so nobody is left to end the ledger: the kernel must.
    script = (
        "import os, subprocess, sys\n"
        "readable, writable = os.pipe()\n"
        "child = subprocess.Popen([sys.executable, '-P', '-m', 'gristmill.ledger', *sys.argv[1:],\n"
        "    '--ready-fd', str(writable)], pass_fds=[writable], stderr=subprocess.DEVNULL)\n"
        "assert os.read(readable, 64) == b'READY\\n'\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    starter = subprocess.Popen(
        [
            sys.executable,
            "-P",
            "-c",
            script,
            "--die-with-parent",
            "--state",
            str(ledger.state),
            "--listen",
            ledger.address,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert starter.stdout is not None
    ended = os.pidfd_open(int(starter.stdout.readline()))
    starter.kill()
    starter.communicate(timeout=20)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    assert poll.poll(20_000), "the process outlived its starter"
    os.close(ended)


def test_a_refusal_fits_a_header_whatever_was_asked(ledger: Any) -> None:
    ledger.start("--fund", "ann=5")
    long = [Leg(bytes(15) + bytes([at]), f"no{'x' * 150}{at}", "é" * 150, 0) for at in range(100)]
    told = ledger.ask(Transfer(3, long))
    assert isinstance(told, LedgerRefused) and told.code == "INVALID_SPEC"
    assert told.message.endswith("... and more") and len(encode(told)) < HEADER_BYTES_MAX
    many = ledger.ask(Transfer(4, [Leg(b"", "", "", 0)] * 400))
    assert isinstance(many, LedgerRefused)
    assert many.message == "a group of 400 transfers; it must have 1 to 100"


def test_a_broker_that_only_asks_whether_we_are_there_keeps_its_holds(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job may wait for months with nothing to post; a broker that is silent is another matter."""
    clock = [1_800_000_000_000]
    monkeypatch.setattr("gristmill.ledger.app._now_ms", lambda: clock[0])
    made = Ledger(Settings(state=tmp_path / "books", listen=f"ipc://{tmp_path}/run/l"))
    try:
        made.open()
        made.book.apply([Fund(1, "ann", 500, "f")], clock[0])
        for name in ("alive", "lost"):
            made.book.apply([Post(name, 1, [Hold(f"{name}/1", "ann", 100)])], clock[0])
        for _ in range(6):
            clock[0] += 10 * 86_400_000
            made._answer(b"", Ping("alive"))
            made._answer(b"", Ping("nobody"))
            made.look(clock[0])
        assert list(made.book.state.holds) == ["alive/1"]
        assert "nobody" not in made.book.state.heard
        assert made.counts["alarms"] == 1 and made.book.faults() == []
    finally:
        made.close()
