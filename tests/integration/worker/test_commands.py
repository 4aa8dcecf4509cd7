"""Commands: substitution, files in and out, exit codes, and what is refused."""

import pathlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
from nacl.signing import SigningKey

from gristmill.store.client import StoreClient
from gristmill.wire.grants import ANY, Grant, sign_grant
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import Command, FileIn

TIERS = ["job", "strict"]


@pytest.mark.parametrize("tier", TIERS)
def test_a_command_gets_its_input_and_gives_exit_code_and_output(pair: Any, tier: str) -> None:
    script = 'echo "$0 $1 $GRISTMILL_INDEX $WHO"; echo oops >&2; exit $2'
    command = Command(
        ["/bin/sh", "-c", script, "{0}", "{}", "{1}"],
        env={"WHO": "me-{index}"},
        ok_exit_codes=(0, 4),
    )

    pair.run_command(command, [("a", "0"), ("b", "4"), ("c", "5")], tier=tier)

    peer = pair.peer
    assert peer.outcomes() == {0: Outcome.OK, 1: Outcome.OK, 2: Outcome.EXIT}
    value = peer.values()[1]
    assert (value["exit_code"], value["stdout"]) == (4, b"b b 4 1 me-1\n")
    assert value["stderr"] == b"oops\n"
    assert peer.failures()[2].exit_code == 5
    assert "oops" in peer.failures()[2].message
    logs = [log.stdout for result in peer.results for log in result.logs]
    assert b"c c 5 2 me-2\n" in logs


def test_standard_input_is_the_value(pair: Any) -> None:
    text = "line\n" * 50_000

    pair.run_command(Command(["wc", "-l"], stdin="value"), [text], tier="job")

    assert pair.peer.values()[0]["stdout"].strip() == b"50000"


@pytest.mark.parametrize("tier", TIERS)
def test_a_file_is_the_value(pair: Any, tier: str) -> None:
    command = Command(["wc", "-c", "{}"], env={"AT": "{}"}, stdin="file")
    inputs = [
        ("deep/a.txt", b"12345"),
        ("b c.txt", b""),
        ("a" * 300, b"x"),
        ("deep", b"n" * 99_000),
    ]

    pair.run_command(command, inputs, tier=tier)

    outcomes = pair.peer.outcomes()
    assert outcomes[2] is Outcome.ERROR and "names of 255 bytes" in pair.peer.failures()[2].message
    said = {index: value["stdout"] for index, value in pair.peer.values().items()}
    assert said == {0: b"5 deep/a.txt\n", 1: b"0 b c.txt\n", 3: b"99000 deep\n"}


def test_a_file_of_a_bad_name_is_refused(pair: Any) -> None:
    command = Command(["cat", "{}"], stdin="file")
    bad = [
        ("/etc/x", b""),
        ("../x", b""),
        ("a/../../x", b""),
        ("", b""),
        ("a\0", b""),
        ("a/.", b""),
    ]

    pair.run_command(command, bad, tier="job")

    assert pair.peer.outcomes() == dict.fromkeys(range(6), Outcome.ERROR)
    assert all("no path below" in failure.message for failure in pair.peer.failures().values())
    pair.peer.forget()
    pair.run_command(command, ["text"], tier="job")
    assert "a path and bytes" in pair.peer.failures()[0].message


def test_a_command_that_is_not_there_is_named(pair: Any) -> None:
    pair.run_command(Command(["no-such-command", "{}"]), ["x"], tier="job")

    assert pair.peer.outcomes() == {0: Outcome.EXIT}
    failure = pair.peer.failures()[0]
    assert failure.kind == "NO_COMMAND"
    assert "no-such-command" in failure.message and "PATH" in failure.message


@pytest.mark.parametrize("tier", TIERS)
def test_a_program_inherits_nothing_of_its_slot(pair: Any, tier: str) -> None:
    """Descriptors, ignored signals, process group and folder; its cpu limit comes with it."""
    script = """
        ls /proc/self/fd | tr '\\n' ' '; grep SigIgn /proc/self/status
        [ "$(cut -d' ' -f5 /proc/$$/stat)" = $$ ] && pwd
        until [ "$(ulimit -t)" = 3 ]; do :; done; cat
    """
    command = Command(["/bin/sh", "-c", script], stdin="value")

    pair.run_command(command, ["one", "two"], tier=tier, limits={"wall_ms": 20_000, "cpu_ms": 2500})

    # glibc ignores 32 and 33 in what it spawns: they are its own, and each program's libc sets them
    told = "0 1 2 3 SigIgn:\t0000000000000000\n/tmp/work\n"
    for index, word in enumerate(["one", "two"]):
        output = pair.peer.values()[index]["stdout"].decode()
        assert output.replace("\t0000000180000000", "\t0000000000000000") == told + word


def test_a_file_that_is_no_program_is_told_from_one_that_is_missing(pair: Any) -> None:
    pair.run_command(Command(["{}"]), ["/etc/passwd", "/nowhere/x"], tier="job")

    failures = pair.peer.failures()
    assert [failures[at].exit_code for at in (0, 1)] == [126, 127]
    assert pair.peer.outcomes() == {0: Outcome.EXIT, 1: Outcome.EXIT}


def test_a_part_that_the_input_does_not_have_is_named(pair: Any) -> None:
    pair.run_command(Command(["echo", "{2}"]), [("a", "b")], tier="job")

    assert pair.peer.outcomes() == {0: Outcome.ERROR}
    assert "{2}" in pair.peer.failures()[0].message


@pytest.mark.parametrize("tier", TIERS)
def test_a_command_over_its_time_is_ended_with_its_children(pair: Any, tier: str) -> None:
    pair.run_command(
        Command(["/bin/sh", "-c", "sleep 60 & sleep 60"]), ["x"], tier=tier,
        limits={"wall_ms": 300},
    )  # fmt: skip

    assert pair.peer.outcomes() == {0: Outcome.TIME}


# ---------------------------------------------------------------- with a store


class Store:
    """A real store process' library face: grants signed here, as a broker would."""

    def __init__(self, address: str, key: SigningKey) -> None:
        self.address = address
        self._key = key
        self.client = StoreClient(address)

    def grant(self, verb: Any) -> str:
        expires = int(time.time() * 1000) + 600_000
        return sign_grant(Grant("tenant", verb, ANY, 1 << 40, expires, b"n"), self._key)


@pytest.fixture
def store(tmp_path: pathlib.Path) -> Iterator[Store]:
    import os
    import subprocess
    import sys

    key = SigningKey.generate()
    folder = tmp_path / "store"
    folder.mkdir(mode=0o700)
    address = f"unix://{folder}/s"
    read, write = os.pipe()
    with (tmp_path / "store.log").open("wb") as log:
        process = subprocess.Popen(
            [
                sys.executable, "-P", "-m", "gristmill.store", "--state", str(folder / "state"),
                "--listen", address, "--key", key.verify_key.encode().hex(),
                "--ready-fd", str(write),
            ],
            pass_fds=[write], stdout=log, stderr=log,
        )  # fmt: skip
    os.close(write)
    assert os.read(read, 16), (tmp_path / "store.log").read_text()
    os.close(read)
    yield Store(address, key)
    process.terminate()
    process.wait(10)


@pytest.fixture
def stored_pair(start: Any, store: Store) -> Any:
    pair = start()
    peer = pair.peer
    peer.store = store.address
    peer.put_grant, peer.get_grant = store.grant("put"), store.grant("get")
    return pair.greet()


def test_files_travel_by_digest(stored_pair: Any, store: Store) -> None:
    put = store.client.put(store.grant("put"), b"#!/bin/sh\ncat in/words.txt $1 > out/copy\n")
    words = store.client.put(store.grant("put"), b"alpha\n")
    command = Command(
        ["/bin/sh", "-c", "mkdir out; ./run.sh /dev/null; ln -s /etc/passwd out/link; true"],
        files_in=[
            FileIn("run.sh", put.digest, put.size_bytes, is_executable=True),
            FileIn("in/words.txt", words.digest, words.size_bytes),
        ],
        files_out=["out/copy", "*.sh"],
    )

    stored_pair.run_command(command, ["x", "y"], tier="job")

    peer = stored_pair.peer
    assert peer.outcomes() == {0: Outcome.OK, 1: Outcome.OK}, peer.failures()
    assert peer.values()[1]["files"] == {"out/copy": [words.digest, 6]}
    assert store.client.get(store.grant("get"), words.digest, 100) == b"alpha\n"


def test_a_command_with_standard_input_names_its_files_by_index(stored_pair: Any) -> None:
    script = 'cat > "$NAME"; echo "{index} {} {0}"'
    command = Command(
        ["/bin/sh", "-c", script],
        env={"NAME": "{index}.txt", "BRACES": "{} {0}"},
        stdin="value",
        files_out=["{index}.txt"],
    )

    stored_pair.run_command(command, ["a", "b"], tier="job")

    peer = stored_pair.peer
    assert peer.outcomes() == {0: Outcome.OK, 1: Outcome.OK}, peer.failures()
    assert [list(value["files"]) for _, value in sorted(peer.values().items())] == [
        ["0.txt"],
        ["1.txt"],
    ]
    assert peer.values()[0]["stdout"] == b"{index} {} {0}\n", "argv is used as it is"


def test_an_input_file_is_no_output_unless_it_was_changed(stored_pair: Any) -> None:
    script = 'test "$1" = a.csv || echo more >> "$1"; echo new > new.csv'
    command = Command(["sh", "-c", script, "sh", "{}"], stdin="file", files_out=["*.csv"])

    stored_pair.run_command(command, [("a.csv", b"1"), ("b.csv", b"2")], tier="job")

    peer = stored_pair.peer
    assert peer.outcomes() == {0: Outcome.OK, 1: Outcome.OK}, peer.failures()
    assert set(peer.values()[0]["files"]) == {"new.csv"}
    assert set(peer.values()[1]["files"]) == {"b.csv", "new.csv"}


def test_a_link_as_output_file_is_refused(stored_pair: Any) -> None:
    command = Command(["/bin/sh", "-c", "ln -s /etc/passwd out"], files_out=["out"])

    stored_pair.run_command(command, ["x"], tier="job")

    assert stored_pair.peer.outcomes() == {0: Outcome.FS}
    assert "out" in stored_pair.peer.failures()[0].message
    assert not list((stored_pair.worker.state / "spool").iterdir())


def test_a_missing_input_file_is_the_stores_doing(stored_pair: Any) -> None:
    command = Command(["true"], files_in=[FileIn("a", "0" * 64, 1)])

    stored_pair.run_command(command, ["x", "y"], tier="job")

    assert set(stored_pair.peer.outcomes().values()) == {Outcome.STORE}
    assert "BLOB_MISSING" in stored_pair.peer.failures()[0].message


def test_large_values_inputs_functions_and_logs_go_by_the_store(
    stored_pair: Any, store: Store
) -> None:
    import cloudpickle
    import msgspec

    from gristmill.wire import values as wire_values
    from gristmill.wire.ids import digest_of
    from gristmill.wire.spec import JobSpec

    def grow(text: str) -> str:
        print("log " * 10_000)
        return text * 2

    function = cloudpickle.dumps(grow)
    big = "z" * 100_000
    codec, frame = wire_values.pack_plain([big]) or ("", b"")
    stored_function = store.client.put(store.grant("put"), function)
    stored_input = store.client.put(store.grant("put"), frame)
    peer = stored_pair.peer
    spec = JobSpec(
        kind="function", function=digest_of(function), is_function_stored=True, tier="job"
    )
    peer._open(1, spec, wire_values.encode_ref(stored_function))
    peer.lease(1, [big], packed=(f"@{codec}", wire_values.encode_ref(stored_input)))
    stored_pair.pump(lambda: peer.results)

    (result,) = peer.results
    assert result.head.codec == "@m"
    ref = wire_values.decode_ref(result.frames[0])
    body = store.client.get(store.grant("get"), ref.digest, ref.size_bytes)
    assert msgspec.msgpack.decode(body) == [big * 2]
    (log,) = result.logs
    assert log.stdout == b"" and log.stdout_bytes == 40_001
    kept = store.client.get(store.grant("get"), log.stdout_digest, 1 << 20)
    assert kept == b"log " * 10_000 + b"\n"
