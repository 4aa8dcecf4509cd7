"""Names from a corpus of hostile ones at the real broker: what it takes, keeps, logs and shows."""

import os
import pathlib
from typing import Any

from names_rig import EVERY

import gristmill.wire.client as wc
import gristmill.wire.worker as ww
from gristmill.wire.frames import encode
from gristmill.wire.limits import NAME_CHARS_MAX, PROTOCOL

SAID = ("Traceback", "CRITICAL")


def files(folder: pathlib.Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def is_shown(name: str) -> bool:
    return 0 < len(name) <= NAME_CHARS_MAX and name.isprintable()


def test_names_of_tenants_workers_jobs_and_labels(grid: Any, tmp_path: pathlib.Path) -> None:
    lines = len(grid.text().splitlines())
    before = files(tmp_path)
    client = grid.client()
    tenants, workers = set(), set()
    for name in EVERY:
        if len(name) > 10_000:
            continue  # no header has room for it
        stranger = type(client)(grid.front, tenant=name)
        answer = stranger.hello()
        if isinstance(answer, wc.Welcome):
            tenants.add(answer.tenant)
        else:
            assert answer.code in ("MALFORMED", "UNAUTHORISED"), answer
        stranger.close()
        peer = type(grid.worker("x"))(grid.back, name)
        hello = ww.Hello(
            PROTOCOL, name, os.urandom(32).hex(), os.urandom(16), 1, 1_000, 1 << 30, 1 << 30, {},
            ["batch"], ["3.11"], "wait4", name,
        )  # fmt: skip
        peer.socket.send(encode(hello))
        got = peer.receive()
        assert got is not None
        if isinstance(got[0], ww.Welcome):
            workers.add(name)
        else:
            assert got[0].code == "MALFORMED" and len(got[0].message) < 500, got
        peer.close()
        spec = grid.function_spec(name=name, labels={name: name}, environment=name)
        answer = client.submit(spec)
        assert isinstance(answer, wc.Accepted) or answer.code == "INVALID_SPEC", (name, answer)
    assert workers == {name for name in EVERY if is_shown(name)}
    assert all(tenant.isprintable() and "/" not in tenant for tenant in tenants)
    # Nothing has such a name on the disk, and each log line is one of ours.
    new = files(tmp_path) - before
    assert not [path for path in new if not path.startswith(("state/", "broker.log"))], new
    assert not [path for path in new if any(part in path for part in ("..", "passwd", "\x1b"))]
    for line in grid.text().splitlines()[lines:]:
        assert line.isprintable() and line[:2] == "20", line
        assert not any(word in line for word in SAID), line
    assert client.ask("workers") and client.ask("jobs")
    # All of it is read again.
    grid.kill()
    grid.start()
    assert isinstance(grid.client().ask("jobs"), list)
