"""The floor of tier ``job``: fork and wait, from a process that has what a slot's process has.

Run as a process of its own, in a jail or outside: ``python forks.py COUNT [RUNTIME]``; RUNTIME is
where our modules lie in a jail. Prints one JSON object: for ``fork`` (the child ends at once, the
parent waits) and ``fork_reply`` (the child also writes a byte on a pipe that the parent reads to
its end) the wall and CPU us of one, and the size of this process in KiB.
"""

import gc
import json
import os
import resource
import sys
import time


def cpu_us() -> float:
    """Of this process and its children that ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both) * 1e6


def fork() -> None:
    """One child that does nothing."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def fork_reply() -> None:
    """One child that answers on a pipe."""
    reply, reply_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(reply_end, b"x")
        os._exit(0)
    os.close(reply_end)
    got = b""
    while part := os.read(reply, 4096):
        got += part
    os.close(reply)
    assert got == b"x" and os.waitpid(pid, 0)[1] == 0


def main() -> None:
    """Both kinds, after a few to warm up."""
    count = int(sys.argv[1])
    if len(sys.argv) > 2:
        sys.path.insert(0, sys.argv[2])
    import cloudpickle  # noqa: F401  (what boot.py gives a slot of functions)

    import gristmill.worker.runners.zygote  # noqa: F401  (what a slot's process holds)

    gc.collect()
    gc.freeze()  # as a slot does before it forks
    found: dict[str, float] = {}
    for work in (fork, fork_reply):
        for _ in range(10):
            work()
        walls, before = [], cpu_us()
        for _ in range(count):
            began = time.perf_counter()
            work()
            walls.append(time.perf_counter() - began)
        found[f"{work.__name__}_cpu_us"] = (cpu_us() - before) / count
        found[f"{work.__name__}_wall_us"] = sum(walls) / count * 1e6
        found[f"{work.__name__}_p50_us"] = sorted(walls)[count // 2] * 1e6
    with open("/proc/self/statm") as file:
        found["size_kib"] = int(file.read().split()[1]) * resource.getpagesize() // 1024
    print(json.dumps(found))


if __name__ == "__main__":
    main()
