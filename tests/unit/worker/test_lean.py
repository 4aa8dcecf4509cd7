"""A fork that goes without hooks, in an interpreter of its own: Python forgets no hook."""

import subprocess
import sys

_SCRIPT = """
import os, sys
from gristmill.worker.runners import lean

assert "threading" not in sys.modules and "logging" not in sys.modules
lean.spare_hooks()
assert "threading" not in sys.modules and "logging" not in sys.modules, "they take long"
import logging, threading

told = []
sys.setprofile(lambda frame, event, _: event == "call" and told.append(frame.f_code.co_name))

def hooks_of(fork):
    told.clear()
    pid = fork()
    ran = sorted({name for name in told if "fork" in name and name not in ("fork", "run")})
    if pid == 0:
        os.write(wrote, (" ".join(ran) + "\\n").encode())
        os._exit(0)
    os.waitpid(pid, 0)

read, wrote = os.pipe()
hooks_of(lean.fork)
hooks_of(os.fork)
wait = threading.Event()
thread = threading.Thread(target=wait.wait)
thread.start()
hooks_of(lean.fork)
wait.set()
thread.join()
hooks_of(lean.fork)
sys.setprofile(None)
print(os.read(read, 4096).decode(), end="")
"""


def test_only_our_fork_goes_without_hooks_and_only_without_threads() -> None:
    run = subprocess.run(
        [sys.executable, "-I", "-B", "-c", _SCRIPT], capture_output=True, text=True, timeout=60
    )

    assert run.returncode == 0, run.stderr
    alone, ordinary, threaded, alone_again = (set(x.split()) for x in run.stdout.splitlines())
    hooks = {"_after_fork", "_after_at_fork_child_reinit_locks"}
    assert not alone & hooks and not alone_again & hooks
    assert hooks <= ordinary and hooks <= threaded
