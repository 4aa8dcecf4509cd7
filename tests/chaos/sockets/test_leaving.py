"""A broker that leaves while its messages are being read takes nobody with it."""

import pathlib
import subprocess
import sys
import tempfile

import pytest

SCRIPT = pathlib.Path(__file__).with_name("sockets_leaving.py")
ROUNDS = 25


@pytest.mark.parametrize("who", ["client", "worker"])
def test_a_broker_that_leaves_between_two_frames_aborts_nobody(who: str) -> None:
    with tempfile.TemporaryDirectory(prefix="gm-") as folder:
        command = [sys.executable, "-P", SCRIPT, who, f"ipc://{folder}/back", str(ROUNDS)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > ROUNDS * 10, "it was not reading when the broker left"
