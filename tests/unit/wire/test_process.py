"""What processes of the grid have in common."""

import subprocess
import sys

BURSTS = """
import resource, sys
from gristmill.wire.process import keep_freed_memory
if "kept" in sys.argv:
    keep_freed_memory()

def burst():
    frames = [bytes(1) * (256 << 10) for _ in range(20)]

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

burst()
burst()
before = faults()
for _ in range(20):
    burst()
print(faults() - before)
"""


def test_a_burst_of_frames_uses_the_memory_of_the_last_one() -> None:
    """400 frames of 64 pages each; a page that is mapped again is a fault."""
    counts = {
        how: int(subprocess.check_output([sys.executable, "-c", BURSTS, how], text=True))
        for how in ("given-back", "kept")
    }
    assert counts["given-back"] > 10_000 > 500 > counts["kept"], counts
