"""Log lines of a process: what they say is what the standard formatter says, for less."""

import subprocess
import sys

FORM = "%(asctime)s %(levelname)s %(name)s %(message)s"


def test_each_line_has_its_own_time() -> None:
    script = f"""
import logging
from gristmill.wire.process import begin_logging
begin_logging({FORM!r})
handler = logging.getLogger().handlers[0]
plain = logging.Formatter({FORM!r})
for created in (1_790_000_000.0, 1_790_000_000.9997, 1_790_000_001.25, 1_790_000_000.5, 0.001):
    record = logging.makeLogRecord(
        dict(name="gristmill.x", levelname="INFO", levelno=20, msg="job=%d %s", args=(7, "done"))
    )
    record.created, record.msecs = created, created % 1 * 1000
    assert handler.format(record) == plain.format(record), handler.format(record)
log = logging.getLogger("gristmill.x")
log.debug("not said")
log.warning("said %d", 1)
try:
    1 / 0
except ZeroDivisionError:
    log.critical("failed", exc_info=True)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    first, *rest = ran.stderr.splitlines()
    assert first.split(" ", 2)[2] == "WARNING gristmill.x said 1"
    assert rest[0].endswith("CRITICAL gristmill.x failed")
    assert rest[-1] == "ZeroDivisionError: division by zero"


def test_lines_of_the_journal_begin_with_their_level() -> None:
    script = f"""
import logging, os
found = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{{found.st_dev}}:{{found.st_ino}}"
from gristmill.wire.process import begin_logging
begin_logging({FORM!r})
log = logging.getLogger("gristmill.x")
log.info("served")
try:
    raise ValueError("all")
except ValueError:
    log.critical("lost\\nmore", exc_info=True)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    first, second, *rest = ran.stderr.splitlines()
    assert first.startswith("<6>2") and first.endswith("INFO gristmill.x served")
    assert second.startswith("<2>2") and second.endswith(r"CRITICAL gristmill.x lost\nmore")
    assert rest[0] == "<2>Traceback (most recent call last):"
    assert rest[-1] == "<2>ValueError: all"


def test_what_ends_a_process_is_one_entry_of_the_journal_with_its_hint() -> None:
    script = """
import os, sys
from gristmill.wire.errors import RemoteError
from gristmill.wire.process import told_once
error = RemoteError("PROTOCOL", "it speaks 2", "install 1")
print(told_once(str(error)))
found = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{found.st_dev}:{found.st_ino}"
print(told_once(str(error)))
os.close(2)
print(told_once(str(error)))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    plain = ["PROTOCOL: it speaks 2", "  -> install 1"]
    entry = "<3>PROTOCOL: it speaks 2. Next: install 1"
    assert ran.stdout.splitlines() == [*plain, entry, *plain]


def test_a_record_is_one_line_whatever_a_peer_said() -> None:
    script = f"""
import logging
from gristmill.wire.process import begin_logging
begin_logging({FORM!r})
log = logging.getLogger("gristmill.x")
said = "a\\n2026-11-22 00:00:00,000 INFO gristmill.x forged"
said += "\\r\\x1b[2J\\u2028\\u202e\\0\\ud800 näïve"
log.warning("left: %s", said)
try:
    raise ValueError(said)
except ValueError:
    log.critical("failed %s", said, exc_info=True)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    first, second, *rest = ran.stderr.decode().splitlines()
    forged = "a\\n2026-11-22 00:00:00,000 INFO gristmill.x forged"
    escaped = forged + "\\r\\x1b[2J\\u2028\\u202e\\x00\\ud800 näïve"
    assert first.endswith(f"WARNING gristmill.x left: {escaped}")
    assert second.endswith(f"CRITICAL gristmill.x failed {escaped}")
    assert rest[0] == "Traceback (most recent call last):"
