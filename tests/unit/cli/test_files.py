"""What a command writes where it was told to: whole, and never in place of more."""

import os
import threading
from pathlib import Path
from typing import TextIO

import pytest

from gristmill.cli.files import write_file
from gristmill.wire.errors import RemoteError


def write(out: TextIO) -> int:
    return out.write("new\n")


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "statement.csv"
    path.write_text("old\n")
    assert write_file(str(path), "--csv", write) == 4
    assert path.read_text() == "new\n"
    assert os.listdir(tmp_path) == ["statement.csv"]


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    path, link = tmp_path / "real", tmp_path / "link"
    link.symlink_to(path)  # it need not be there yet
    write_file(str(link), "-o", write)
    assert link.is_symlink() and path.read_text() == "new\n"


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(path.read_text()), daemon=True)
    reader.start()
    write_file(str(path), "-o", write)
    reader.join(10)
    assert read == ["new\n"] and path.is_fifo()


@pytest.mark.root
def test_a_device_is_written_to_and_stays_a_device(tmp_path: Path) -> None:
    path = tmp_path / "null"
    os.mknod(path, 0o666 | 0o020000, os.makedev(1, 3))
    try:
        write_file(str(path), "-o", write)
    except RemoteError as error:
        if "Permission" in error.message:
            pytest.skip(f"no devices on the file system of {tmp_path}")
        raise
    assert path.is_char_device()


def test_a_full_device_is_a_fault_and_not_a_file() -> None:
    with pytest.raises(RemoteError) as caught:
        write_file("/dev/full", "--csv", write)
    assert caught.value.code == "INVALID_SPEC"
    assert caught.value.message == "cannot write /dev/full: No space left on device"
    assert "--csv" in caught.value.hint
    assert Path("/dev/full").is_char_device()


@pytest.mark.parametrize("name", ["{}", "{}/no/such/folder", "{}/nul\0", "{}/" + "n" * 300])
def test_a_name_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    given = name.format(tmp_path)
    with pytest.raises(RemoteError) as caught:
        write_file(given, "-o", write)
    assert f"cannot write {given}: " in caught.value.message
    assert os.listdir(tmp_path) == []


def test_a_file_stays_as_it_was_when_the_rest_does_not_come(tmp_path: Path) -> None:
    path = tmp_path / "j1.receipts"
    path.write_text("old\n")

    def fail(out: TextIO) -> None:
        out.write("half")
        raise RemoteError("LEDGER_DOWN", "gone")

    with pytest.raises(RemoteError, match="gone"):
        write_file(str(path), "-o", fail)
    assert path.read_text() == "old\n"
    assert os.listdir(tmp_path) == ["j1.receipts"]
