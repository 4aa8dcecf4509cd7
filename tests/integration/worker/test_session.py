"""The dialogue: recall, stop, lost acks, a restarted broker, silence, refusal."""

import os
import pathlib
import re
import signal
import stat
from typing import Any

from process_rig import descendants

from gristmill.wire.outcome import Outcome
from gristmill.wire.worker import Refused


def _spin_on_one() -> Any:
    """A function that spins for ever when its input is 1."""

    def work(x: int) -> int:
        while x == 1:
            pass
        return x

    return work


def test_recall_gives_back_at_once_what_has_not_started(pair: Any) -> None:
    peer, job = pair.peer, pair.next_job()
    peer.open_function(job, _spin_on_one(), tier="batch", limits={"wall_ms": 60_000})
    running = peer.lease(job, [0, 1, 2, 3])
    waiting = peer.lease(job, [4, 5], first=4)
    pair.pump(lambda: any(h.started == 1 for r in peer.reports[-1:] for h in r.held))

    peer.order(recall=[waiting])
    pair.pump(lambda: peer.returned_indices() == [4, 5])
    peer.order(recall=[running])
    pair.pump(lambda: peer.returned_indices() == [4, 5, 2, 3])
    assert {each.cause for each in peer.returned} == {"recalled"}

    peer.order(stop=[(running, int(Outcome.CANCELLED))])
    pair.pump(lambda: 1 in peer.outcomes())
    assert peer.outcomes()[1] is Outcome.CANCELLED
    peer.order(close=[job])


def test_a_stopped_lease_leaves_another_of_its_slot_alone(pair: Any) -> None:
    peer, job = pair.peer, pair.next_job()
    peer.open_function(job, _spin_on_one(), tier="batch")
    bad = peer.lease(job, [0, 1, 2])
    peer.lease(job, [10, 11], first=10)
    pair.pump(lambda: any(h.started == 1 for r in peer.reports[-1:] for h in r.held))

    peer.order(stop=[(bad, int(Outcome.CANCELLED))])
    pair.pump(lambda: 11 in peer.outcomes())

    assert peer.outcomes()[1] is Outcome.CANCELLED
    assert (peer.values()[10], peer.values()[11]) == (10, 11)
    assert set(peer.returned_indices()) <= {0, 2}
    assert {each.cause for each in peer.returned} == {"stopped"}


def test_another_jobs_lease_waits_and_gets_a_jail_of_its_own(pair: Any) -> None:
    def mark(x: int) -> list[bool]:
        import sys

        seen = hasattr(sys, "marked")
        sys.marked = True  # type: ignore[attr-defined]
        return [seen]

    peer = pair.peer
    first, second = pair.next_job(), pair.next_job()
    peer.open_function(first, mark, tier="batch")
    peer.open_function(second, mark, tier="batch", name="other")
    peer.lease(first, [0, 0])
    peer.lease(second, [0], first=2)
    peer.lease(first, [0], first=3)
    pair.all_told(4)

    # the other job's is a jail of its own, and the first job comes back to its own, which was kept
    assert peer.values() == {0: [False], 1: [True], 2: [False], 3: [True]}


def test_results_are_sent_again_in_a_new_session_and_leases_live_on(pair: Any) -> None:
    peer, job = pair.peer, pair.next_job()
    peer.is_acking = False
    try:
        peer.open_function(job, lambda x: x, tier="batch")
        peer.lease(job, [7, 8])
        pair.pump(lambda: len(peer.outcomes()) == 2)
        hellos = len(peer.hellos)
    finally:
        peer.is_acking = True
    peer.forget()
    peer.restart()
    pair.pump(lambda: len(peer.hellos) > hellos and len(peer.outcomes()) == 2)

    assert peer.values() == {0: 7, 1: 8}
    peer.open_function(job, lambda x: x + 1, tier="batch")
    peer.lease(job, [9], first=5)
    pair.pump(lambda: 5 in peer.outcomes())
    assert peer.values()[5] == 9, "the job is the same, and so is its function"


def test_a_worker_that_hears_nothing_ends_its_own_jails_and_says_hello_again(start: Any) -> None:
    pair = start()
    peer = pair.peer
    peer.ttl_ms, peer.report_ms = 600, 100
    pair.greet()
    peer.open_function(1, _spin_on_one(), tier="batch")
    peer.lease(1, [1])
    pair.pump(lambda: any(h.started == 0 for r in peer.reports for h in r.held))
    jailed = _jailed(pair)
    assert jailed

    peer.is_answering = False
    sessions = peer.sessions
    pair.pump(lambda: peer.sessions > sessions)

    assert peer.hellos[-1].held == []
    pair.pump(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in jailed))
    assert "no answer from the broker" in pair.worker.text()


def test_a_taken_name_ends_the_worker_with_its_message(start: Any) -> None:
    pair = start("--tiers", "trusted")
    pair.peer.refusal = Refused("NAME_TAKEN", "a live worker of another key is called w", "do so")
    pair.peer.pump(lambda: pair.worker.poll() is not None)

    assert pair.worker.returncode == 5
    assert "NAME_TAKEN: a live worker of another key is called w" in pair.worker.text()


def test_the_key_is_made_once_private_and_refused_when_it_is_not(start: Any) -> None:
    pair = start("--tiers", "trusted").greet()
    key = pair.worker.state / "worker.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert re.fullmatch("[0-9a-f]{64}\n", key.read_text())

    pair.worker.end()
    key.chmod(0o644)
    again = type(pair.worker)(pair.worker.state.parent, pair.peer.address, "--tiers", "trusted")
    again.process.wait(20)
    again.end()
    assert again.returncode == 4
    assert "chmod 600" in again.text()


def test_telemetry_comes_with_full_reports(pair: Any) -> None:
    peer, job = pair.peer, pair.next_job()
    peer.open_function(job, _spin_on_one(), tier="batch")
    lease = peer.lease(job, [1])
    pair.pump(lambda: any(s.job == job and s.cpu_us > 0 for s in _readings(peer)))
    reading = [r.reading for r in peer.reports if r.reading and r.reading.slots][-1]
    assert reading.memory_total_bytes > 0
    assert (reading.slots[0].job, reading.slots[0].slot) == (job, 0)
    assert all(0 in r.slots_alive for r in peer.reports[-1:] if r.is_full)
    peer.order(stop=[(lease, int(Outcome.CANCELLED))])
    pair.all_told(1)


def _readings(peer: Any) -> list[Any]:
    return [slot for r in peer.reports if r.reading for slot in r.reading.slots]


def _jailed(pair: Any) -> list[int]:
    """Processes of slots: what runs our boot module below the worker."""
    found = []
    for pid in descendants(pair.worker.pid):
        try:
            line = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if b"boot.py" in line:
            found.append(pid)
    return found


def test_kill_of_the_agent_leaves_no_process_behind(start: Any) -> None:
    pair = start("--tiers", "batch,trusted", "--slots", "2")
    pair.greet()
    peer = pair.peer
    peer.open_function(1, _spin_on_one(), tier="batch")
    peer.open_function(2, _spin_on_one(), tier="trusted")
    peer.lease(1, [1])
    peer.lease(2, [1], slot=1)
    pair.pump(
        lambda: any(len([h for h in r.held if h.started == 0]) == 2 for r in peer.reports[-1:])
    )
    left = _jailed(pair)
    assert len(left) >= 2

    os.kill(pair.worker.pid, signal.SIGKILL)
    pair.worker.process.wait()
    peer.pump(lambda: not any(_is_running(pid) for pid in left))
    groups = pathlib.Path("/sys/fs/cgroup")
    name = f"{pair.worker.pid}-"
    peer.pump(lambda: not any(path.name.startswith(name) for path in groups.glob("*/gristmill/*")))


def _is_running(pid: int) -> bool:
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_drain_finishes_what_runs_returns_the_rest_and_exits_0(start: Any) -> None:
    pair = start().greet()
    peer = pair.peer

    def slow(x: int) -> int:
        import time

        time.sleep(0.5)
        return x

    peer.open_function(1, slow, tier="job")
    peer.lease(1, [0, 1, 2, 3])
    peer.lease(1, [4], first=4)
    pair.pump(lambda: any(h.started >= 0 for r in peer.reports for h in r.held))
    pair.worker.terminate()
    peer.pump(lambda: peer.goodbyes)
    pair.worker.process.wait(10)

    assert pair.worker.returncode == 0
    assert any(report.is_draining for report in peer.reports)
    assert set(peer.outcomes().values()) == {Outcome.OK}
    assert sorted([*peer.outcomes(), *peer.returned_indices()]) == [0, 1, 2, 3, 4]
    assert 4 in peer.returned_indices()
    assert {each.cause for each in peer.returned} == {"drained"}


def test_a_drain_ends_what_runs_past_its_grace(start: Any) -> None:
    pair = start("--grace", "200ms").greet()
    peer = pair.peer
    peer.open_function(1, _spin_on_one(), tier="batch")
    peer.lease(1, [1, 2])
    pair.pump(lambda: any(h.started == 0 for r in peer.reports for h in r.held))
    pair.worker.terminate()
    peer.pump(lambda: peer.goodbyes)
    pair.worker.process.wait(10)

    assert pair.worker.returncode == 0
    assert sorted(peer.returned_indices()) == [0, 1]
    assert peer.results == []


def test_an_environment_that_is_not_there_fails_the_job_and_not_the_worker(pair: Any) -> None:
    for _ in range(4):
        pair.peer.forget()
        pair.run_function(lambda x: x, [0], tier="batch", environment="/no/such/python")
        assert pair.peer.outcomes() == {0: Outcome.SETUP}
        assert "/no/such/python" in pair.peer.failures()[0].message
    pair.peer.forget()
    pair.run_function(lambda x: x, [3], tier="batch")
    assert pair.peer.values() == {0: 3}


def test_jailed_code_that_writes_to_the_slots_socket_ends_only_itself(pair: Any) -> None:
    def lie(x: int) -> int:
        import os

        if x == 1:
            os.write(3, b"\xff" * 64)
        return x

    pair.run_function(lie, [0, 1, 2], tier="batch")

    assert Outcome.ERROR in pair.peer.outcomes().values()
    assert "protocol" in next(iter(pair.peer.failures().values())).message
    pair.peer.forget()
    pair.run_function(lambda x: x, [3], tier="batch")
    assert pair.peer.values() == {0: 3}
