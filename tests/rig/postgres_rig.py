"""A PostgreSQL cluster of the tests' own: on a unix socket, as a plain user, gone with the test."""

import contextlib
import os
import pathlib
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator

import psycopg


def find_programs() -> pathlib.Path | None:
    """The folder that has ``initdb`` and ``postgres``: Debian keeps them off the PATH."""
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if on_path := shutil.which("initdb"):
        found.append(pathlib.Path(on_path).resolve().parent)
    return next((place for place in found if (place / "postgres").exists()), None)


class Cluster:
    """A running server; ``new`` makes an empty database in it."""

    def __init__(self, folder: pathlib.Path, server: "subprocess.Popen[bytes]") -> None:
        self.folder = folder
        self._server = server

    def stop(self, way: signal.Signals = signal.SIGINT) -> None:
        """End the server with all its connections; SIGINT is a fast shutdown."""
        if self._server.poll() is None:
            self._server.send_signal(way)
            self._server.wait(30)

    def url(self, name: str) -> str:
        """How to reach a database of it."""
        return f"postgresql:///{name}?host={self.folder}&user=mill"

    def new(self) -> str:
        """The url of an empty database."""
        name = f"books_{uuid.uuid4().hex}"
        with psycopg.connect(self.url("postgres"), autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
        return self.url(name)


def _place() -> str | None:
    """In memory where there is room: its 9,000 files take a busy disk half a minute to remove.

    Servers end here by signals, never with their machine, so that no test can tell.
    """
    memory = pathlib.Path("/dev/shm")
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > 2 << 30
    return str(memory) if has_room and os.access(memory, os.W_OK) else None


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """A server with fsync on; root runs it as ``nobody``, which initdb insists on."""
    programs = find_programs()
    assert programs is not None
    folder = pathlib.Path(tempfile.mkdtemp(prefix="gm-pg-", dir=_place()))
    who = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    as_who = {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": []} if who else {}
    if who:
        os.chown(folder, who.pw_uid, who.pw_gid)
    data = folder / "data"
    server: subprocess.Popen[bytes] | None = None
    try:
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "mill", "-A", "trust", "-E", "UTF8",
             "--locale=C", "--no-sync"],
            check=True, capture_output=True, cwd=folder, **as_who,  # type: ignore[call-overload]
        )  # fmt: skip
        server = subprocess.Popen(
            [programs / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=",
             "-c", "max_connections=20", "-c", "shared_buffers=32MB"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, **as_who,
        )  # fmt: skip
        made = Cluster(folder, server)
        for _ in range(600):
            assert server.poll() is None, "the server ended"
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(made.url("postgres"), connect_timeout=2).close()
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(0.05)
        yield made
    finally:
        if server is not None:
            # At once: a checkpoint would bring to the disk what is removed next, in up to 40 s.
            Cluster(folder, server).stop(signal.SIGQUIT)
        shutil.rmtree(folder, ignore_errors=True)
