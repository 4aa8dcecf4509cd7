"""What needs a process of its own: signals, pipes, a terminal."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Mapping

Start = Callable[..., "subprocess.Popen[str]"]
DEADLINE_S = 60.0


def screen_of(environment: Mapping[str, str], *arguments: str, columns: int = 60) -> str:
    """What a command shows on a terminal of this width."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    argv = [sys.executable, "-P", "-m", "gristmill.cli.main", *arguments]
    own = {k: v for k, v in environment.items() if k not in ("COLUMNS", "LINES")}
    child = subprocess.Popen(argv, env=own, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    shown = b""
    while select.select([master], [], [], DEADLINE_S)[0]:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # the last one has closed the terminal
            break
        if not chunk:
            break
        shown += chunk
    os.close(master)
    child.wait(DEADLINE_S)
    return shown.decode().replace("\r\n", "\n")


def test_a_terminal_has_colours_and_lines_that_fit(environment: dict[str, str]) -> None:
    del environment["NO_COLOR"]
    environment["TERM"] = "xterm"
    run = ("submit", "--wait", "--name", "n" * 100, "--array", "1-3", "--", "sh", "-c", "exit {}")
    assert "[########" in screen_of(environment, *run)  # a bar, by itself
    shown = screen_of(environment, "status")
    assert "\x1b[31mfailed\x1b[0m" in shown
    assert "…" in shown
    plain = screen_of({**environment, "NO_COLOR": "1"}, "status")
    assert "\x1b" not in plain
    assert max(map(len, plain.splitlines())) <= 60


def test_ctrl_c_while_waiting_says_how_to_come_back(start: Start) -> None:
    out, _ = start("submit", "--", "sleep", "30").communicate(timeout=DEADLINE_S)
    name = out.strip()
    child = start("wait", name)
    assert child.stderr is not None
    assert name in child.stderr.readline()  # its progress: it waits
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=DEADLINE_S)
    assert child.returncode == 130
    assert f"interrupted; the job goes on; come back with: gristmill wait {name}" in err
    assert "Traceback" not in err
    state, _ = start("status", name).communicate(timeout=DEADLINE_S)
    assert "state      running" in state
    start("cancel", name).communicate(timeout=DEADLINE_S)


def test_ctrl_c_while_inputs_are_sent_cancels_what_was_begun(start: Start) -> None:
    child = start("submit", "--each-line", "-", "--", "true", stdin=subprocess.PIPE)
    assert child.stdin is not None
    child.stdin.write("x\n" * 10_000)
    child.stdin.flush()
    begun = ""
    for _ in range(200):
        begun, _ = start("status", "--json").communicate(timeout=DEADLINE_S)
        if '"count":-1' in begun:
            break
    assert '"count":-1' in begun, "the upload never began"
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=DEADLINE_S)
    assert child.returncode == 130
    assert out == ""
    assert "nothing was submitted" in err
    now, _ = start("status", "--json").communicate(timeout=DEADLINE_S)
    assert now.partition('"state":"')[2].startswith("cancelled")


def test_a_reader_that_leaves_is_no_error(start: Start) -> None:
    child = start("status", "--json")
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    assert child.wait(DEADLINE_S) == 141
    assert child.stderr.read() == ""


def test_a_page_that_is_watched_ends_with_ctrl_c(start: Start) -> None:
    start("submit", "--wait", "--", "true").communicate(timeout=DEADLINE_S)
    child = start("status", "--watch")
    assert child.stdout is not None
    assert child.stdout.readline().startswith("JOB")
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=DEADLINE_S)
    assert child.returncode == 130


def shell(environment: Mapping[str, str], line: str) -> "subprocess.CompletedProcess[str]":
    """A line of a shell in which ``G`` is the command."""
    command = 'G() { "$PYTHON" -P -m gristmill.cli.main "$@"; }; '
    return subprocess.run(
        ["sh", "-c", command + line], env={**environment, "PYTHON": sys.executable},
        capture_output=True, text=True, timeout=DEADLINE_S,
    )  # fmt: skip


def test_a_stdout_without_room_is_an_error_in_two_lines(environment: dict[str, str]) -> None:
    for verb in ("balance", "statement --csv -", "price --json"):
        done = shell(environment, f"G {verb} > /dev/full")
        assert done.returncode == 2, done.stderr
        assert done.stderr == (
            "INVALID_SPEC cannot write to stdout: No space left on device\n"
            "  next: send it where there is room\n"
        )


def test_a_command_without_stdout_stderr_or_stdin_works(environment: dict[str, str]) -> None:
    done = shell(environment, "G balance >&- && G balance 2>&- <&- && G nonsense 2>&- >&-")
    assert done.returncode == 2 and done.stderr == ""
    assert "sum of all accounts: 0" in done.stdout


def test_head_ends_a_statement_quietly(environment: dict[str, str]) -> None:
    done = shell(environment, "G statement --csv - | head -1")
    assert done.stdout.startswith("number,at_ms,what") and done.stderr == ""
