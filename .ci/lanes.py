"""Runs one command in two lanes at once and tells what both say, a whole line at a time.

``python .ci/lanes.py .venv/bin/pytest`` is what `make test` runs: on two cores the suites that wait
leave room for those that compute. tests/rig/lane_rig.py is how the lanes share the tests out. From
a lane's first ruled line after its tests (failures, figures) its words are kept together, and
follow when it has ended.
"""

import os
import pathlib
import re
import select
import signal
import subprocess
import sys
import tempfile
import time

LANES = 2
PERIOD_S = 0.1
SILENCE_S = 60.0  #: a line that is not whole for so long is shown as it is
RULE = b"==="


class Lane:
    """One process of the command."""

    def __init__(self, command: "list[str]", folder: str, number: int) -> None:
        self.number = number
        self.line = self.end = b""
        self.is_shown = self.is_at_end = False
        self.rules = 0
        self.heard = time.monotonic()
        self.process = subprocess.Popen(
            command,
            env={**os.environ, "GRISTMILL_LANE": f"{folder}:{number}"},
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self.out = self.process.stdout.fileno()

    def read(self) -> None:
        """Takes what it has said, and tells the lines that are whole."""
        while select.select([self.out], [], [], 0)[0] and (said := os.read(self.out, 1 << 16)):
            self.heard, self.is_shown = time.monotonic(), False
            *whole, self.line = (self.line + said).split(b"\n")
            for line in whole:
                self.rules += line.startswith(RULE)
                self.is_at_end = self.rules > 1  # the first one begins the session
                if self.is_at_end:
                    self.end += line + b"\n"
                else:
                    tell(line + b"\n")

    def look(self) -> None:
        """A test that hangs must be seen before the time limit ends everything."""
        if self.line and not self.is_shown and time.monotonic() - self.heard > SILENCE_S:
            self.is_shown = True
            tell(b"%s (lane %d, %d s)\n" % (self.line, self.number, SILENCE_S))

    def close(self) -> None:
        """What it kept for its end."""
        tell(b"\nlane %d of %d\n" % (self.number, LANES) + self.end + self.line)


def tell(said: bytes) -> None:
    """Says it now, whatever stdout is."""
    sys.stdout.buffer.write(said)
    sys.stdout.buffer.flush()


def closing(ends: "list[bytes]") -> str:
    """The closing lines of all lanes as one."""
    counts: dict[str, int] = {}
    for end in ends:
        lines = [line for line in end.decode(errors="replace").splitlines() if " in " in line]
        told = lines[-1].rpartition(" in ")[0] if lines else ""
        for number, word in re.findall(r"(\d+) ([a-z]+)", told):
            word = "errors" if word == "error" else word
            counts[word] = counts.get(word, 0) + int(number)
    return ", ".join(f"{counts[word]} {word}" for word in sorted(counts)) or "no test ran"


def run(command: "list[str]", folder: str) -> int:
    """The worst exit code of the lanes."""
    (pathlib.Path(folder) / "lanes").write_text(str(LANES))
    lanes = [Lane(command, folder, number + 1) for number in range(LANES)]
    # Ctrl-C goes to the whole group: the lanes end by it, and say where they were.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A runner that is interrupted tells what has failed, one that is terminated does not.
    signal.signal(
        signal.SIGTERM, lambda *_: [lane.process.send_signal(signal.SIGINT) for lane in lanes]
    )
    began, left = time.monotonic(), list(lanes)
    while left:
        time.sleep(PERIOD_S)
        for lane in list(left):
            has_ended = lane.process.poll() is not None
            lane.read()
            lane.look()
            if has_ended:
                left.remove(lane)
                lane.close()
    codes = [lane.process.returncode for lane in lanes]
    spent_s = time.monotonic() - began
    print(f"lanes: {spent_s / 60:.1f} min, exit codes {codes}")
    print(
        f" {closing([lane.end for lane in lanes])} in {spent_s:.2f}s ".center(80, "="), flush=True
    )
    return max(code if code >= 0 else 128 - code for code in codes)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="gristmill-lanes-") as place:
        sys.exit(run(sys.argv[1:], place))
