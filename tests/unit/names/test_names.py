"""Names from elsewhere at every function of ours that makes a path or a name of one.

``WRITERS`` has every module of the rooms that hear from the wire which changes a file system, and
where its names come from: a module that begins to is an error here until somebody says so.
"""

import ast
import os
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from names_rig import (
    ALIKE,
    DIGEST,
    EVERY,
    LEAVES,
    NEARLY_DIGESTS,
    OVERLONG,
    RESERVED,
    TRICKS,
)

from gristmill.broker.principals import FILE_NAME, make_token, read
from gristmill.cli.output import clean
from gristmill.client.command import CommandOutput
from gristmill.client.folder import Folder
from gristmill.ledger.core.accounts import is_name
from gristmill.sandbox.collect import collect
from gristmill.store import ranges
from gristmill.store.local import LocalStore
from gristmill.wire import limits
from gristmill.wire.errors import RemoteError
from gristmill.wire.ids import is_digest, parse_job, parse_subtask
from gristmill.wire.socket import check_listen_address
from gristmill.wire.spec import Command, FileIn, JobSpec, check_spec
from gristmill.wire.tokens import parse_token
from gristmill.wire.values import BlobRef
from gristmill.worker.blobs import Blobs
from gristmill.worker.runners.commands import CannotTravelError, CommandRunner

NAME_OF_A_TOKEN = re.compile("[a-z0-9][a-z0-9.-]{0,39}")
ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture
def fenced(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write in; whatever appears or changes beside it is a fault."""
    for name in ("canary", "x", "root/kept"):
        (tmp_path / "outside" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "outside" / name).write_text("kept")
    inside = tmp_path / "outside" / "a" / "b" / "inside"
    inside.mkdir(parents=True)
    before = _seen(tmp_path, inside)
    yield inside
    assert _seen(tmp_path, inside) == before


def _seen(folder: pathlib.Path, but: pathlib.Path) -> dict[str, bytes]:
    return {
        str(path): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
        if not path.is_relative_to(but)
    }


# ---------------------------------------------------------------- digests


@pytest.mark.parametrize("name", EVERY)
def test_only_a_digest_is_a_digest(name: str) -> None:
    assert not is_digest(name)
    with pytest.raises(RemoteError) as caught:
        ranges.parse_target(f"/blobs/{name}")
    assert caught.value.code == "MALFORMED" and len(caught.value.message) < 400


def test_the_store_and_the_cache_make_paths_of_digests_only(fenced: pathlib.Path) -> None:
    blobs = Blobs(fenced / "cache", 1 << 20)
    try:
        for name in EVERY:
            for ask in (blobs.fetch, blobs.fetch_file, blobs.share):
                with pytest.raises(RemoteError, match="is no digest"):
                    ask("grant", BlobRef(name, 4))
    finally:
        blobs.close()
    assert list((fenced / "cache").iterdir()) == []


def test_the_store_keeps_what_it_is_given_inside(fenced: pathlib.Path) -> None:
    store = LocalStore(fenced, 0, lambda: 0)
    try:
        for name in EVERY:
            with pytest.raises((RemoteError, AssertionError)):  # its server has looked before
                store.put("tenant", name, 4, iter([b"kept"]))
            with pytest.raises((RemoteError, AssertionError)):
                store.open("tenant", name)
    finally:
        store.close()


# ---------------------------------------------------------------- files of jobs


@pytest.mark.parametrize("name", [*LEAVES, "a\0", "\0", "a/\0b", *OVERLONG[1:]])
def test_input_files_have_paths_below_the_folder(name: str) -> None:
    spec = JobSpec("command", command=Command(["true"], files_in=[FileIn(name, DIGEST, 4)]))
    with pytest.raises(RemoteError, match="must be relative, without") as caught:
        check_spec(spec)
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("name", [*NEARLY_DIGESTS, "..", ""])
def test_input_files_have_digests(name: str) -> None:
    with pytest.raises(RemoteError, match="and a digest"):
        check_spec(JobSpec("command", command=Command(["true"], files_in=[FileIn("a", name, 4)])))


@pytest.mark.parametrize("name", ["", "=", "A=B", "=A", "A\0", "\0"])
def test_variables_have_names_that_the_kernel_takes(name: str) -> None:
    with pytest.raises(RemoteError, match="command"):
        check_spec(JobSpec("command", command=Command(["true"], env={name: "x"})))


def test_an_input_that_becomes_a_file_stays_in_the_work_folder(fenced: pathlib.Path) -> None:
    """In the jail; here the same code without one."""
    setting = _setting(fenced)
    refused = 0
    for name in EVERY:
        try:
            CommandRunner(setting).plan([name, b"body"], _feed(), 0)
        except CannotTravelError:
            refused += 1
    assert refused >= len(LEAVES)


def _setting(folder: pathlib.Path) -> Any:
    from gristmill.worker.runners import protocol

    given = {"kind": "command", "mode": "fork", "argv": ["cat", "{}"], "is_file_value": True}
    given |= {"work_dir": str(folder), "inputs_dir": "/run/inputs"}
    fields = msgspec.inspect.type_info(protocol.Setting).fields  # type: ignore[union-attr]
    empty = {msgspec.inspect.IntType: 0, msgspec.inspect.BoolType: False}
    for field in fields:
        if field.required and field.name not in given:
            given[field.name] = empty.get(type(field.type), "" if field.name != "argv" else [])
    return protocol.Setting(**given)


def _feed() -> Any:
    class Feed:
        attempt, lease_id = 1, 1

    return Feed()


@pytest.mark.parametrize(
    "write",
    [
        lambda folder, name: Folder(folder).write(name, b"body"),
        lambda folder, name: CommandOutput(
            {"files": {name: (DIGEST, 4)}}, lambda ref: b"body"
        ).save(folder),
    ],
    ids=["result --out", "save"],
)
def test_collected_files_are_written_below_one_folder(
    write: Callable[[pathlib.Path, str], Any], fenced: pathlib.Path
) -> None:
    (fenced / "way-out").symlink_to(fenced.parent.parent)
    (fenced / "link").symlink_to(fenced.parent.parent / "canary")
    (fenced / "loop").symlink_to("loop")
    links = ["way-out/canary", "way-out/new", "link", "loop", "loop/x", "way-out/../canary"]
    for name in [*LEAVES, *TRICKS, *links, *OVERLONG[1:6]]:
        with pytest.raises(RemoteError) as caught:
            write(fenced, name)
        assert caught.value.code in ("MALFORMED", "FORBIDDEN")
        assert "\x1b" not in caught.value.message and "\u202e" not in caught.value.message
    for name in [*ALIKE[:-1], *RESERVED]:  # as they are written, below the folder
        write(fenced / "new", name)
        assert (fenced / "new" / name).read_bytes() == b"body"


def test_what_a_jail_leaves_is_taken_by_its_real_path_or_not_at_all(
    fenced: pathlib.Path,
) -> None:
    outside = fenced.parent.parent
    for name in [*TRICKS, *ALIKE, *RESERVED]:
        if "\0" not in name and "/" not in name:
            (fenced / name).write_text(name)
    (fenced / "link").symlink_to(outside / "canary")
    (fenced / "way-out").symlink_to(outside)
    (fenced / "hard").mkdir()
    os.mkfifo(fenced / "fifo")
    with open(os.fsencode(fenced) + b"/\xff\xfe", "wb") as file:
        file.write(b"no text")
    taken: dict[str, bytes] = {}
    found = collect(
        str(fenced),
        ["*", "**", "../*", "/etc/passwd", "way-out/*", "", "..", "a\0b", "[", "*" * 1_000],
        lambda path, chunks: taken.update({path: b"".join(chunks)}),
        files_max=1_000,
        bytes_max=1 << 20,
    )
    assert b"kept" not in taken.values()
    assert {"link", "fifo", "way-out"} <= {path for path, _ in found.refused}
    for path, body in taken.items():
        assert path == os.path.normpath(path) and ".." not in path.split("/") and path[:1] != "/"
        assert (fenced / path).read_bytes() == body


# ---------------------------------------------------------------- names of people and things


def test_a_principal_is_a_line_whatever_its_tenants_name(fenced: pathlib.Path) -> None:
    made = []
    for name in EVERY:
        try:
            make_token(fenced, name, False)
            made.append(name)
        except RemoteError as error:
            assert error.code == "INVALID_SPEC" and len(error.message) < 400
    kept = read(fenced / FILE_NAME)
    assert [one.tenant for one in kept] == made and {one.role for one in kept} == {"client"}
    assert len((fenced / FILE_NAME).read_text().splitlines()) == len(made)
    assert os.stat(fenced / FILE_NAME).st_mode & 0o777 == 0o600
    assert not [name for name in made if not name.isprintable() or "/" in name]


@pytest.mark.parametrize("name", EVERY)
def test_no_name_is_a_token(name: str) -> None:
    for token in (name, f"gm_{name}_{DIGEST}_{DIGEST}"[:4_000], f"gm_ab_{name}", f"gm__{name}_"):
        if token.startswith(f"gm_{name}_") and NAME_OF_A_TOKEN.fullmatch(name):
            continue
        with pytest.raises(RemoteError) as caught:
            parse_token(token)
        assert caught.value.code == "UNAUTHORISED"
        assert len(caught.value.message) < 120 and caught.value.message.isprintable()


@pytest.mark.parametrize("name", [name for name in EVERY if "\0" in name or len(name) > 200] + [""])
def test_no_account_has_such_a_name(name: str) -> None:
    assert not is_name(name)


@pytest.mark.parametrize("name", [*LEAVES, *TRICKS, *ALIKE, *OVERLONG, "0", "-1", "1e9", "\u0661"])
def test_no_job_has_such_a_number(name: str) -> None:
    for text in (name, f"j{name}", f"j1/{name}", f"j1{name}"):
        for parse in (parse_job, parse_subtask):
            try:
                found = parse(text)
            except ValueError as error:
                assert len(str(error)) < 400
            else:  # what is left is a number, as it was written
                assert text.strip() in ("j1/0", "j10", "j1"), (text, found)


@pytest.mark.parametrize("name", [*LEAVES, *TRICKS, *ALIKE, *OVERLONG])
def test_a_terminal_is_shown_no_control(name: str) -> None:
    assert clean(name).isprintable()


@pytest.mark.parametrize(
    "address",
    ["tcp://127.0.0.1.evil:1", "tcp://127.0.0.1@evil:1", "tcp://127.0.0.1:1\n", "tcp://0x7f.1:1",
     "tcp://2130706433:1", "tcp://[::ffff:192.0.2.1]:1", "tcp://localhost.:1", "tcp://LOCALHOST:1",
     "tcp://127.0.0.\u0661:1", "tcp://:1", "tcp://*:1", "tcp://eth0:1", "TCP://127.0.0.1:1",
     "tcp://127.0.0.1:1;tcp://0.0.0.0:1", "inproc://x", "pgm://x", "udp://127.0.0.1:1", ""],
)  # fmt: skip
def test_no_process_listens_there(address: str) -> None:
    with pytest.raises(RemoteError) as caught:
        check_listen_address(address)
    assert caught.value.code in ("NOT_LOOPBACK", "INVALID_SPEC")


# ---------------------------------------------------------------- that these are all

#: module to where the names of what it makes, changes or removes come from
WRITERS = {
    "broker/__main__.py": "settings", "broker/app.py": "settings",
    "broker/bodies.py": "numbers of its own", "broker/catalog.py": "settings",
    "broker/journal.py": "settings", "broker/ports.py": "settings",
    "broker/memory.py": "/proc", "broker/salvage.py": "settings",
    "broker/principals.py": "settings; names are in its lines",
    "broker/registry/app.py": "settings", "broker/registry/db.py": "settings",
    "ledger/app.py": "settings", "ledger/payments/callbacks.py": "settings",
    "ledger/payments/http.py": "settings", "ledger/payments/settings.py": "settings",
    "ledger/settlement/books.py": "digests", "ledger/settlement/rows.py": "settings",
    "ledger/settlement/settings.py": "settings", "ledger/settlement/settlement.py": "settings",
    "ledger/sqlite.py": "settings",
    "store/address.py": "settings", "store/app.py": "settings",
    "store/bucket.py": "digests", "store/client.py": "what its caller gives",
    "store/folder.py": "settings", "store/indexed.py": "random", "store/local.py": "digests",
    "store/s3.py": "digests",
    "wire/keys.py": "settings", "wire/login.py": "the environment",
    "wire/process.py": "settings", "wire/write_ahead.py": "settings",
    "worker/__main__.py": "settings", "worker/blobs.py": "digests",
    "worker/jobs.py": "numbers: of a file in its list, of the job",
    "worker/runners/broom.py": "what a jail left, in the jail",
    "worker/runners/commands.py": "inputs and specs, in the jail",
    "worker/runners/seal.py": "settings of the jail, in the jail",
    "worker/runners/zygote.py": "settings of the jail, in the jail",
    "worker/enrolment.py": "settings",
    "worker/self_test.py": "random", "worker/shipping.py": "numbers of its own",
    "worker/starter.py": "numbers of its own", "worker/yard.py": "numbers of jobs",
    "client/decompose/suite.py": "what a person typed; in a jail a tar, with a filter",
    "client/folder.py": "names of collected files",
}  # fmt: skip
_CHANGES = {
    "mkdir", "makedirs", "write_text", "write_bytes", "unlink", "rename", "symlink", "symlink_to",
    "hardlink_to", "link", "rmtree", "rmdir", "mkfifo", "mknod", "extractall", "mkdtemp",
    "mkstemp", "copyfile", "copytree", "utime",
}  # fmt: skip


def changes_files(text: str) -> bool:
    """Whether a module calls what opens by name, makes, changes or removes files."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in ("open", "os.open", "os.replace", "io.open"):
                return True
            if isinstance(node.func, ast.Attribute) and node.func.attr in _CHANGES:
                return True
    return False


def test_every_module_that_changes_files_says_where_its_names_come_from() -> None:
    found = {
        str(path.relative_to(ROOT))
        for room in ("broker", "ledger", "store", "wire", "worker", "client")
        for path in sorted((ROOT / room).rglob("*.py"))
        if changes_files(path.read_text())
    }
    assert found == set(WRITERS)


@pytest.mark.parametrize(
    "text", ["open(x)", "import os\nos.open(x, 0)", "x.mkdir()", "p.write_bytes(b)", "s.rmtree(p)"]
)
def test_a_module_that_changes_files_is_found(text: str) -> None:
    assert changes_files(text)
    assert not changes_files("socket.open\nx.read_text()\n'open(x)'")


def test_limits_are_the_kernels() -> None:
    assert limits.PATH_PART_BYTES_MAX == os.pathconf("/", "PC_NAME_MAX")
    assert limits.PATH_BYTES_MAX < os.pathconf("/", "PC_PATH_MAX") - 512
