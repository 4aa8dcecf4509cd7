"""The store as the process that ``gristmill up`` starts."""

import os
import pathlib
import select
import subprocess
import sys
from typing import Any

import pytest

from gristmill.store.client import StoreClient
from gristmill.store.settings import read_settings
from gristmill.wire.errors import EXIT_POLICY, EXIT_USAGE, RemoteError
from gristmill.wire.ids import digest_of

KEY = "ab" * 32


def test_it_serves_says_ready_and_ends(process: Any, grant: Any) -> None:
    process.start()
    with StoreClient(process.address) as client:
        ref = client.put(grant("put"), b"across processes")
        assert client.get(grant("get"), ref.digest, 100) == b"across processes"
    code, told = process.end()
    assert code == 0
    assert f"ready store {process.address}" in told
    assert not pathlib.Path(process.address.removeprefix("unix://")).exists()


def test_a_worker_cannot_read_another_tenants_blobs(process: Any, grant: Any) -> None:
    process.start()
    with StoreClient(process.address) as client:
        ref = client.put(grant("put", tenant="ann"), b"ann's input")
        # What a worker has while it works for bob: get and put, any blob of bob's.
        for verb in ("get", "put"):
            with pytest.raises(RemoteError):
                client.get(grant(verb, tenant="bob"), ref.digest, 100)
            with pytest.raises(RemoteError):
                client.get_range(grant(verb, tenant="bob"), ref.digest, 0, 10)
            assert client.size_of(grant(verb, tenant="bob"), ref.digest) is None
        # Nor by claiming it: a put must bring the bytes.
        with pytest.raises(RemoteError, match="BLOB_CORRUPT"):
            client.put(grant("put", tenant="bob"), b"bob guesses", ref.digest)
        with pytest.raises(RemoteError, match="BLOB_MISSING"):
            client.get(grant("get", tenant="bob"), ref.digest, 100)
        assert client.get(grant("get", tenant="ann"), ref.digest, 100) == b"ann's input"
        with pytest.raises(RemoteError, match="FORBIDDEN"):
            client.get(grant("put", tenant="ann"), ref.digest, 100)
    _, told = process.end()
    assert "refused GET" in told  # on record


def test_a_kill_loses_nothing_that_was_answered(process: Any, grant: Any) -> None:
    process.start()
    with StoreClient(process.address) as client:
        refs = [client.put(grant("put"), b"%d" % number * 5000) for number in range(20)]
        process.kill()
        process.start()
        for number, ref in enumerate(refs):
            assert client.get(grant("get"), ref.digest, 1 << 20) == b"%d" % number * 5000
        assert client.health()["blobs"] == 20


def test_memory_is_bounded(process: Any, grant: Any, tmp_path: pathlib.Path) -> None:
    def peak_kib() -> int:
        status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0])

    size = 256 << 20
    with (tmp_path / "large").open("wb") as file:
        file.truncate(size)
    process.start()
    with StoreClient(process.address) as client:
        client.put(grant("put"), b"warm")
        before = peak_kib()
        ref = client.put(grant("put"), tmp_path / "large")
        assert client.get_to_file(grant("get"), ref.digest, tmp_path / "out", size) == size
        assert peak_kib() - before < 16 << 10
    assert digest_of((tmp_path / "out").read_bytes()) == ref.digest


def test_tcp_on_loopback(tmp_path: pathlib.Path, process: Any, grant: Any) -> None:
    process.arguments[3] = "http://127.0.0.1:0"
    process.start()
    told = ""
    while "ready store" not in told:
        told = process.process.stderr.readline()
    with StoreClient(told.split()[2]) as client:
        assert client.get(grant("get"), client.put(grant("put"), b"tcp").digest, 3) == b"tcp"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "gristmill.store", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_it_listens_on_loopback_only(tmp_path: pathlib.Path) -> None:
    done = run("--state", str(tmp_path / "s"), "--listen", "http://0.0.0.0:7033", "--key", KEY)
    assert done.returncode == EXIT_USAGE
    assert "NOT_LOOPBACK: http://0.0.0.0:7033 is not on loopback" in done.stderr
    os.mkdir(tmp_path / "open", 0o755)
    address = f"unix://{tmp_path}/open/store"
    done = run("--state", str(tmp_path / "s"), "--listen", address, "--key", KEY)
    assert done.returncode == EXIT_USAGE
    assert f"chmod 700 {tmp_path}/open" in done.stderr


def test_a_second_store_does_not_take_the_first_ones_place(
    process: Any, tmp_path: pathlib.Path, run_folder: pathlib.Path
) -> None:
    process.start()
    same_state = run(*process.arguments)
    assert same_state.returncode == EXIT_POLICY
    assert "another store has" in same_state.stderr
    same_address = run("--state", str(tmp_path / "other"), *process.arguments[2:])
    assert same_address.returncode == EXIT_USAGE
    assert f"cannot listen on {process.address}" in same_address.stderr
    assert StoreClient(process.address).health()["status"] == "ok"


def test_collecting_by_hand(process: Any, grant: Any, tmp_path: pathlib.Path) -> None:
    process.start()
    with StoreClient(process.address) as client:
        ref = client.put(grant("put"), b"old")
    process.end()
    arguments = ["--state", str(tmp_path / "state"), "--collect", "--grace", "0s"]
    told = run(*arguments, "--dry-run")
    assert (told.returncode, told.stdout) == (0, f"{ref.digest}\n")
    assert "would free 1 blobs, 3 B" in told.stderr
    assert "freed 1 blobs" in run(*arguments).stderr
    assert "freed 0 blobs" in run(*arguments).stderr


def test_settings_name_every_bad_option() -> None:
    with pytest.raises(RemoteError) as caught:
        read_settings(["--state", "s", "--key", "short", "--size-max", "many"], {})
    assert "--key" in caught.value.message
    assert "--size-max" in caught.value.message
    with pytest.raises(RemoteError, match="--key"):
        read_settings(["--state", "s", "--listen", "unix:///s", "--key", KEY + "\n"], {})
    for address in ("s3://UPPER/x", "s3://bucket/x\n", f"s3://bucket/{'x' * 201}"):
        with pytest.raises(RemoteError, match="--s3"):
            read_settings(
                ["--state", "s", "--listen", "unix:///s", "--key", KEY, "--s3", address], {}
            )
    with pytest.raises(RemoteError, match="--listen and --key must be given"):
        read_settings(["--state", "s"], {})
    with pytest.raises(RemoteError, match="sise-max"):
        read_settings(["--state", "s"], {"GRISTMILL_STORE_SISE_MAX": "5G"})


def test_options_come_before_the_environment() -> None:
    environment = {
        "GRISTMILL_STORE_STATE": "there",
        "GRISTMILL_STORE_LISTEN": "unix:///run/a",
        "GRISTMILL_STORE_KEY": KEY,
        "GRISTMILL_STORE_SIZE_MAX": "2G",
        "GRISTMILL_STORE_GRACE": "2d",
        "GRISTMILL_OTHER": "not ours",
    }
    settings = read_settings(["--state", "here"], environment)
    assert (str(settings.state), settings.size_max) == ("here", 2 << 30)
    assert settings.grace_ms == 2 * 86_400_000


def test_the_client_side_is_thin() -> None:
    script = "import sys, gristmill.store.client; print(*sorted(sys.modules))"
    command = [sys.executable, "-P", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not {"pydantic", "sqlite3", "gristmill.store.local"} & set(done.stdout.split())


def test_it_ends_with_its_starter(process: Any) -> None:
    # The starter is killed, so nobody is left to end the store: the kernel must.
    script = (
        "import os, subprocess, sys\n"
        "readable, writable = os.pipe()\n"
        "child = subprocess.Popen([sys.executable, '-P', '-m', 'gristmill.store', *sys.argv[1:],\n"
        "    '--ready-fd', str(writable)], pass_fds=[writable], stderr=subprocess.DEVNULL)\n"
        "assert os.read(readable, 64) == b'READY\\n'\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    starter = subprocess.Popen(
        [sys.executable, "-P", "-c", script, "--die-with-parent", *process.arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert starter.stdout is not None
    ended = os.pidfd_open(int(starter.stdout.readline()))
    starter.kill()
    starter.communicate(timeout=20)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    assert poll.poll(20_000), "the process outlived its starter"
    os.close(ended)
