"""A directory tree that stands in for a cgroup2 mount: same names and formats as the kernel's.

Formats are those of Documentation/admin-guide/cgroup-v2.rst. test_cgroup_v2.py compares them with
the files of a real cgroup2 mount, where there is one, for the controllers that it offers (all of
them were compared on Linux 6.1). What it does not do: move processes, count, or refuse a
``subtree_control`` while processes are inside.
"""

import shutil
from pathlib import Path

ALWAYS = {
    "cgroup.type": "domain\n",
    "cgroup.procs": "",
    "cgroup.kill": "",
    "cgroup.subtree_control": "",
    "cgroup.events": "populated 0\nfrozen 0\n",
    "cpu.stat": "usage_usec 1234567\nuser_usec 1000000\nsystem_usec 234567\n",
}
CONTROLLED = {
    "memory": {
        "memory.max": "max\n",
        "memory.current": "4096\n",
        "memory.peak": "1048576\n",
        "memory.swap.max": "max\n",
        "memory.oom.group": "0\n",
        "memory.events": "low 0\nhigh 0\nmax 12\noom 2\noom_kill 1\noom_group_kill 0\n",
    },
    "pids": {"pids.max": "max\n", "pids.current": "0\n", "pids.events": "max 3\n"},
    "cpu": {"cpu.max": "max 100000\n", "cpu.weight": "100\n"},
}


class FakeCgroup2:
    """``mount`` is the top group, offering ``controllers``; ``make`` is the kernel's mkdir."""

    def __init__(self, mount: Path, controllers: str = "cpuset cpu io memory hugetlb pids") -> None:
        self.mount = mount
        mount.mkdir()
        self._fill(mount, controllers.split())
        (mount / "cgroup.type").unlink()  # the top group has none
        (mount / "cgroup.subtree_control").write_text("")

    def make(self, directory: Path) -> None:
        parent = (directory.parent / "cgroup.subtree_control").read_text().split()
        directory.mkdir()
        self._fill(directory, [word.removeprefix("+") for word in parent])

    def remove(self, directory: Path) -> None:
        shutil.rmtree(directory)

    def _fill(self, directory: Path, controllers: list[str]) -> None:
        files = {**ALWAYS, "cgroup.controllers": " ".join(controllers) + "\n"}
        for name in controllers:
            files |= CONTROLLED.get(name, {})
        for name, text in files.items():
            (directory / name).write_text(text)
