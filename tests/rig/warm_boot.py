"""Process 1 of a mother whose children run what a test says, in place of a slot.

``python warm_boot.py CONTROL_FD WALLS``: each sealed child reads what to execute from its page,
``{"argv", "env", "cwd"}``, and becomes it; its slot is its stdin. What a slot would have found is
in the variable SEALED: an exec would hide open descriptors and capabilities.
"""

import json
import os
import sys

sys.path.insert(0, "/run/gristmill")
from gristmill.worker.runners.mother import bear


def is_open(fd):
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


slot, page = bear(int(sys.argv[1]), sys.argv[2])
order = json.loads(os.pread(page, 1 << 20, 0))
os.dup2(slot, 0)
os.close(slot)
os.close(page)
with open("/proc/self/status") as file:
    capabilities = [line.split()[1] for line in file if line.startswith("Cap")]
seen = {
    "fds": [os.readlink(f"/proc/self/fd/{fd}") for fd in range(512) if is_open(fd)],
    "capabilities": capabilities,
    "is_in_tmp": os.path.samestat(os.stat("."), os.stat("/tmp")),
}
os.chdir(order["cwd"])
os.execve(order["argv"][0], order["argv"], {**order["env"], "SEALED": json.dumps(seen)})
