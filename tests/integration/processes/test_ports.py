"""Who listens on what, in a network namespace with an interface that others could reach.

Compared with an allow-list: a process that begins to listen anywhere else fails this test, also
where a library does it.
"""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

INSIDE = pathlib.Path(__file__).with_name("ports_inside.py")
REACHED = "192.0.2.1"  #: of the namespace's second interface
#: both ends of the pair are in the namespace: nothing of the host is reached
SCRIPT = f"""
ip link set lo up
ip link add v0 type veth peer name v1
ip addr add {REACHED}/24 dev v0
ip addr add 2001:db8::1/64 dev v0 nodad
ip link set v0 up
ip link set v1 up
exec "$@"
"""
#: process to the unix sockets that it may have, in the grid's run folder
SOCKETS = {"broker": {"front", "back"}, "ledger": {"ledger"}, "store": {"store"}}
#: process to how many TCP ports it may have, on loopback, where it is told to
PORTS = {"broker": 2, "store": 1, "treasury": 1}


def inside(*arguments: str) -> Any:
    flags = "-n" if os.geteuid() == 0 else "-Urn"
    command = ["unshare", flags, "sh", "-euc", SCRIPT, "sh", sys.executable, "-P", str(INSIDE)]
    try:
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, timeout=120, check=False
        )
    except FileNotFoundError as error:
        pytest.skip(f"no network namespace can be made here: {error}")
    if not done.stdout and ("unshare" in done.stderr or "ip:" in done.stderr):
        pytest.skip(f"no network namespace can be made here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def beyond(document: Any, ports: dict[str, int]) -> list[Any]:
    """What listens and may not; an entry of the allow-list that nobody uses is one, too."""
    wrong, left = [], dict(ports)
    for protocol, address, holder in document["listening"]:
        host = address.rpartition(":")[0]
        if protocol == "unix":
            allowed = {f"{document['run']}/{name}" for name in SOCKETS.get(holder, ())}
            is_allowed = address in allowed
        else:
            is_allowed = protocol == "tcp" and host == "127.0.0.1" and left.get(holder, 0) > 0
            left[holder] = left.get(holder, 0) - 1
        if not is_allowed:
            wrong.append([protocol, address, holder])
    return wrong + [[name, "has no port"] for name, count in left.items() if count > 0]


def test_by_default_nothing_listens_on_any_interface() -> None:
    document = inside("default")
    assert set(document["interfaces"]) >= {"lo", "v0", "v1"}
    assert beyond(document, {}) == []
    assert document["mode"] == 0o700
    found = {(holder, pathlib.Path(at).name) for _, at, holder in document["listening"]}
    assert found == {(who, name) for who, names in SOCKETS.items() for name in names}
    # And what is planted there is found.
    wrong = beyond({**document, "listening": document["planted"]}, {})
    assert {(protocol, at) for protocol, at, _ in wrong} == {
        ("tcp", "0.0.0.0:7999"),
        ("tcp6", ":::7998"),
        ("udp", "0.0.0.0:7997"),
        ("unix", "@gristmill-planted"),
    }
    assert beyond({"listening": [], "run": ""}, {"broker": 1}) == [["broker", "has no port"]]


def test_on_tcp_only_loopback_and_nobody_starts_elsewhere() -> None:
    document = inside("tcp", REACHED, "[::]")
    assert beyond(document, PORTS) == []
    for host, told in document["refused"].items():
        assert set(told) == {"ledger", "store", "treasury"}, "a broker has keys"
        for name, (code, said) in told.items():
            assert code not in (0, None) and "NOT_LOOPBACK" in said, (host, name, code, said)
