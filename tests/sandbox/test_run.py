"""The blocking convenience: streams, codes, commands that are not there."""

import select
import threading

import pytest

from gristmill.sandbox.limits import MEBIBYTE, Limits
from gristmill.sandbox.run import run
from gristmill.sandbox.spec import JailSpec
from gristmill.wire.outcome import Outcome


@pytest.fixture(params=["best_host", "bare_host"])
def any_host(request):
    return request.getfixturevalue(request.param)


def sh(script, **limits):
    return JailSpec(argv=("sh", "-c", script), limits=Limits(**limits))


def test_streams_are_apart_and_the_code_is_the_commands(any_host):
    result = run(any_host, sh("cat; echo oops >&2; exit 3"), stdin=b"in")
    assert (result.stdout, result.stderr) == (b"in", b"oops\n")
    assert (result.verdict.outcome, result.verdict.exit_code) == (Outcome.EXIT, 3)


def test_codes_that_look_like_signals_and_failures_are_codes(any_host):
    for code in (137, 255, 139):
        verdict = run(any_host, sh(f"exit {code}")).verdict
        assert (verdict.outcome, verdict.exit_code) == (Outcome.EXIT, code)


def test_a_real_signal_is_a_signal(any_host, python, attack_spec):
    verdict = run(any_host, attack_spec("no_answer")).verdict
    assert (verdict.outcome, verdict.detail) == (Outcome.SIGNAL, "killed by SIGSEGV")


def test_large_input_goes_through_and_unread_input_does_no_harm(any_host):
    count = 3 * MEBIBYTE
    assert run(any_host, sh("wc -c"), stdin=b"x" * count).stdout.strip() == b"%d" % count
    assert run(any_host, sh("exit 0"), stdin=b"x" * count).verdict.outcome is Outcome.OK


def test_commands_that_are_not_there(any_host):
    by_name = run(any_host, JailSpec(argv=("no-such-command",)))
    assert by_name.verdict.exit_code == 127
    by_path = run(any_host, JailSpec(argv=("/no/such/command",)))
    assert by_path.verdict.exit_code == 127
    assert "/no/such/command" in by_path.verdict.detail


def test_output_at_the_limit_is_whole_and_one_byte_more_is_not(any_host):
    at_limit = run(any_host, sh("head -c 1000 /dev/zero", output_bytes_max=1000))
    assert (at_limit.verdict.outcome, len(at_limit.stdout)) == (Outcome.OK, 1000)
    over = run(any_host, sh("head -c 1001 /dev/zero", output_bytes_max=1000))
    assert (over.verdict.outcome, len(over.stdout)) == (Outcome.OUTPUT, 1000)
    both = run(any_host, sh("echo 123456; sleep 0; echo 1234567 >&2", output_bytes_max=10))
    assert both.verdict.outcome is Outcome.OUTPUT
    assert len(both.stdout) + len(both.stderr) == 10


def test_a_large_command_line_travels(any_host):
    words = ("x" * 100_000, "y" * 100_000)
    assert len(run(any_host, JailSpec(argv=("echo", *words))).stdout) == 200_002


def test_any_thread_may_start_a_jail(any_host):
    """The parent-death signal counts the death of a thread: here it is the spawner's only one."""
    results = []

    def start():
        results.append(any_host.start(sh("read go; echo went")))

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    jail = results[0]
    while jail.poll() is None:
        select.select([jail], [], [], 10)
    assert jail.judge().outcome in (Outcome.OK, Outcome.EXIT)  # its end of file, not a signal
    jail.close()


def test_threads_share_a_host(any_host):
    outcomes = []
    threads = [
        threading.Thread(
            target=lambda n=n: outcomes.append(run(any_host, sh(f"echo {n}")).stdout.strip())
        )
        for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [b"%d" % n for n in range(6)]
