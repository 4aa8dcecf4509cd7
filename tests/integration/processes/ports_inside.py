"""Runs in a network namespace of its own: a grid there, and who listens on what. Prints JSON.

``python ports_inside.py default``: a grid as ``gristmill up`` makes it, then with a process beside
it that listens everywhere. ``python ports_inside.py tcp HOST...``: one with every address on TCP,
then each process told to listen on these hosts.
"""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Iterator

from gristmill.cli.grid import Grid

_LISTENS, _ACCEPTS = "0A", 0x10000  # of a TCP state, of a unix socket's flags


def listening() -> Iterator[tuple[str, str, str]]:
    """(protocol, address, inode) of every socket of this namespace that takes from others."""
    for protocol in ("tcp", "tcp6", "udp", "udp6", "udplite", "raw", "raw6"):
        with contextlib.suppress(FileNotFoundError):
            for line in _lines(protocol):
                fields = line.split()
                if protocol.startswith("tcp") and fields[3] != _LISTENS:
                    continue
                host, _, port = fields[1].rpartition(":")
                yield protocol, f"{_host(host)}:{int(port, 16)}", fields[9]
    for line in _lines("unix"):
        fields = line.split()
        if int(fields[3], 16) & _ACCEPTS:
            yield "unix", fields[7] if len(fields) > 7 else "", fields[6]
    for line in _lines("packet"):
        yield "packet", line, line.split()[-1]


def _lines(table: str) -> list[str]:
    return pathlib.Path("/proc/net", table).read_text().splitlines()[1:]


def _host(text: str) -> str:
    words = [bytes.fromhex(text[at : at + 8])[::-1] for at in range(0, len(text), 8)]
    family = socket.AF_INET if len(words) == 1 else socket.AF_INET6
    return socket.inet_ntop(family, b"".join(words))


def holders(pids: dict[str, int]) -> dict[str, str]:
    """Inode of a socket to the name of the process that has it, children of ours included."""
    found = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name = next((one for one, pid in pids.items() if pid == int(folder.name)), "")
            for entry in os.scandir(folder / "fd"):
                with contextlib.suppress(OSError):
                    target = os.readlink(entry.path)
                    if target.startswith("socket:["):
                        found.setdefault(target[8:-1], name or f"pid {folder.name}")
    return found


def told(grid: Grid) -> list[list[str]]:
    """Protocol, address and holder of each."""
    who = holders({name: grid.pid(name) for name in grid.names})
    return [[protocol, address, who.get(inode, "")] for protocol, address, inode in listening()]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def refusals(grid: Grid, host: str) -> dict[str, list[object]]:
    """Each process without keys told to listen where others are: its exit code, what it says."""
    ended: dict[str, list[object]] = {}
    started = {}
    state = grid.state / "other"
    for name, arguments in (
        ("ledger", ["ledger", "--listen", f"tcp://{host}:7933"]),
        ("store", ["store", "--listen", f"http://{host}:7934", "--key", "0" * 64]),
        ("treasury", ["ledger.payments", "--ledger", f"ipc://{grid.run}/ledger",
                      "--listen", f"http://{host}:7935"]),
    ):  # fmt: skip
        command = [sys.executable, "-P", "-m", f"gristmill.{arguments[0]}", *arguments[1:]]
        command += ["--state", str(state / f"{name}-{len(host)}")]
        started[name] = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for name, process in started.items():
        try:
            ended[name] = [process.wait(20), process.communicate()[1]]
        except subprocess.TimeoutExpired:
            process.kill()
            ended[name] = [None, process.communicate()[1]]
    return ended


def main(what: str) -> None:
    tcp = what == "tcp"
    front, back = (f"tcp://127.0.0.1:{free_port()}" if tcp else "" for _ in range(2))
    grid = Grid.temporary(workers=1, slots=1, payments="", front=front, back=back)
    if tcp:
        store = f"http://127.0.0.1:{free_port()}"
        grid.options = {"store": ["--listen", store], "broker": ["--store", store]}
        grid.options["treasury"] = ["--listen", f"http://127.0.0.1:{free_port()}"]
    with grid, contextlib.ExitStack() as stack:
        document: dict[str, object] = {
            "listening": told(grid),
            "interfaces": sorted(name for _, name in socket.if_nameindex()),
            "run": str(grid.run),
            "mode": os.stat(grid.run).st_mode & 0o777,
        }
        if tcp:
            document["refused"] = {host: refusals(grid, host) for host in sys.argv[2:]}
        else:
            stack.enter_context(socket.create_server(("0.0.0.0", 7999)))
            stack.enter_context(socket.create_server(("::", 7998), family=socket.AF_INET6))
            stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)).bind(("", 7997))
            abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
            abstract.bind("\0gristmill-planted")
            abstract.listen()
            document["planted"] = told(grid)
        print(json.dumps(document))


if __name__ == "__main__":
    main(sys.argv[1])
