"""What /proc and the cgroups say of processes that others started."""

import contextlib
import os
import pathlib


def descendants(pid: int) -> list[int]:
    """Every process below this one."""
    found, queue = [], [pid]
    while queue:
        at = queue.pop()
        with contextlib.suppress(OSError):  # it, or a thread of it, may have ended since
            for task in pathlib.Path(f"/proc/{at}/task").iterdir():
                with contextlib.suppress(OSError):
                    children = [int(word) for word in (task / "children").read_text().split()]
                    found += children
                    queue += children
    return found


def inside(agent: int) -> list[int]:
    """Host pids of what runs inside the agent's jails: deeper pid namespaces than ours."""
    found = []
    for pid in descendants(agent):
        with contextlib.suppress(OSError, IndexError):
            if len(_numbers(pid)) > len(own_namespaces()):
                found.append(pid)
    return found


def own_namespaces() -> list[str]:
    """Our own pid in each pid namespace."""
    return _numbers(os.getpid())


def slot_processes(agent: int) -> list[int]:
    """Process 1 of each jail of the agent: what the slot's leases are fed to.

    A mother is no slot: her children are jails of their own, in deeper namespaces.
    """
    found = []
    for pid in inside(agent):
        with contextlib.suppress(OSError, IndexError):
            if _numbers(pid)[-1] == "1" and not is_mother(pid):
                found.append(pid)
    return found


def is_mother(pid: int) -> bool:
    """She is told her children's walls as JSON. They and theirs have her words, but not nsjail.

    Raises:
        OSError: there is no such process any more.
    """
    above = _words(_parent(pid))
    return _words(pid).endswith(b"}") and b"--seccomp_policy" in above


def _words(pid: int) -> bytes:
    return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0")


def _numbers(pid: int) -> list[str]:
    """Its number in each pid namespace."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return status.split("NSpid:")[1].splitlines()[0].split()


def _parent(pid: int) -> int:
    return int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def child_of(agent: int, word: bytes) -> int:
    """The direct child of the agent whose command line has this word."""
    for pid in descendants(agent):
        with contextlib.suppress(OSError):
            if word in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    raise AssertionError(f"no process below {agent} has {word!r}")


def is_running(pid: int) -> bool:
    """Whether it is there and no zombie."""
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def groups_of(pids: list[int]) -> set[pathlib.Path]:
    """Directories of the cgroups that these processes do not share with this one."""
    tree, own = pathlib.Path("/sys/fs/cgroup"), pathlib.Path("/proc/self/cgroup").read_text()
    found = set()
    for pid in pids:
        try:
            lines = pathlib.Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        except OSError:
            continue
        for line in set(lines) - set(own.splitlines()):
            _, names, path = line.split(":", 2)
            found.add(tree / names / path.lstrip("/"))
    return {path for path in found if path.exists()}
