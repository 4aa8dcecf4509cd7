"""Process 1 of a mother whose children run what a test says, in place of a slot.

``python warm_boot.py CONTROL_FD WALLS``: each sealed child reads what to execute from its page,
``{"argv", "env", "cwd"}``, and becomes it; its slot is its stdin.
"""

import json
import os
import sys

sys.path.insert(0, "/run/gristmill")
from gristmill.worker.runners.mother import bear

slot, page = bear(int(sys.argv[1]), sys.argv[2])
order = json.loads(os.pread(page, 1 << 20, 0))
os.dup2(slot, 0)
os.close(slot)
os.close(page)
os.chdir(order["cwd"])
os.execve(order["argv"][0], order["argv"], order["env"])
