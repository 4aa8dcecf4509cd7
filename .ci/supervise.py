"""Runs one command, ends it at a time limit, and fails when a process of its outlives it.

The supervisor is the subreaper of everything that it starts: a daemon that forks twice, opens a new
session and clears its environment still becomes its child, so nothing gets away. Any Python 3.6 or
later runs this file: it starts before the project's own environment exists.
"""

import argparse
import ctypes
import os
import pathlib
import signal
import subprocess
import sys
import time

PR_SET_CHILD_SUBREAPER = 36
GRACE_S = 5.0  #: a process that ends by itself so soon after the command is not left behind
POLL_S = 0.02
EXIT_LEFT_BEHIND, EXIT_TIME = 70, 124


def descendants() -> "dict[int, str]":
    """Maps the pid of every live process below this one to its command line."""
    parents, states = {}, {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The name in brackets may hold anything; what follows the last bracket is fixed.
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue  # it ended while we looked
            parents[int(entry.name)], states[int(entry.name)] = int(parent), state
    below, found = {os.getpid()}, {}
    while True:
        new = {pid for pid, parent in parents.items() if parent in below} - below
        if not new:
            break
        below |= new
        for pid in sorted(new):
            if states[pid] not in "ZX":
                try:
                    line = pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
                except OSError:
                    continue
                found[pid] = line.replace(b"\0", b" ").decode(errors="replace").strip() or "?"
    return found


def reap(awaited: int = 0) -> "int | None":
    """Collects every child that ended; returns the exit code of ``awaited`` if it did."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == awaited:
            # As a shell counts: 128 and the signal's number for a process that a signal ended.
            ended_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            code = 128 + ended_by if ended_by else os.WEXITSTATUS(status)


def end_all() -> None:
    """Kills what is left, each by its pid, until nothing is; gives up on what no signal ends."""
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline:
        left = descendants()
        if not left:
            reap()  # what was ended since the last time: none of them outlives us
            return
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        time.sleep(POLL_S)
        reap()


def main() -> int:
    """Runs the command; returns its exit code, 124 at the limit, or 70 when something was left."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--limit-s", type=float, required=True)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
    started = time.monotonic()
    code = None
    try:
        child = subprocess.Popen(options.command, start_new_session=True)
        while code is None:
            if time.monotonic() - started > options.limit_s:
                print(f"supervise: over its limit of {options.limit_s:.0f} s", file=sys.stderr)
                return EXIT_TIME
            time.sleep(POLL_S)
            # Orphans come to us, not to init: a test that waits for one to be gone needs this.
            code = reap(child.pid)
    finally:
        if code is None:
            end_all()
    deadline = time.monotonic() + GRACE_S
    while descendants() and time.monotonic() < deadline:
        reap()
        time.sleep(POLL_S)
    left = descendants()
    for pid, line in left.items():
        print(f"supervise: left behind: {pid} {line[:200]}", file=sys.stderr)
    end_all()
    minutes = (time.monotonic() - started) / 60
    print(f"supervise: {minutes:.1f} min, exit {code}, {len(left)} processes left behind")
    return code if code or not left else EXIT_LEFT_BEHIND


if __name__ == "__main__":
    # SIGTERM must take the descendants along, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
