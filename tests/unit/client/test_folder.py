"""Files whose names others chose, written below one folder and nowhere else."""

import os
import pathlib

import pytest

from gristmill.client.folder import Folder, check_name
from gristmill.wire.errors import RemoteError


def test_files_and_folders_are_made(tmp_path: pathlib.Path) -> None:
    folder = Folder(tmp_path / "new")
    assert folder.write("3/a/b.txt", b"one") == str(tmp_path / "new/3/a/b.txt")
    folder.write("3/a/b.txt", b"2")
    assert (tmp_path / "new/3/a/b.txt").read_bytes() == b"2"
    assert folder.files == 2


@pytest.mark.parametrize(
    "name",
    [
        "", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", "./a", "a/.", "..", "a\0b", "a\nb",
        "a\x1b[2J", "x" * 256, "/".join("a" * 65),
    ],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_refused(tmp_path: pathlib.Path, name: str) -> None:
    with pytest.raises(RemoteError, match="not a path below the folder") as caught:
        Folder(tmp_path).write(name, b"x")
    assert caught.value.code == "MALFORMED"
    assert "\x1b" not in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_no_link_is_followed(tmp_path: pathlib.Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    root = tmp_path / "root"
    root.mkdir()
    (root / "way-out").symlink_to(outside)
    (root / "file").symlink_to(outside / "kept")
    for name in ("way-out/new", "file"):
        with pytest.raises(RemoteError, match="cannot write"):
            Folder(root).write(name, b"x")
    assert sorted(path.name for path in outside.iterdir()) == ["kept"]
    assert (outside / "kept").read_text() == "kept"


def test_a_folder_that_is_itself_a_link_is_the_users_own_choice(tmp_path: pathlib.Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    Folder(tmp_path / "link").write("a", b"x")
    assert (tmp_path / "real" / "a").read_bytes() == b"x"


def test_a_file_where_a_folder_should_be_is_told(tmp_path: pathlib.Path) -> None:
    (tmp_path / "3").write_text("")
    with pytest.raises(RemoteError, match="Not a directory") as caught:
        Folder(tmp_path).write("3/a", b"x")
    assert caught.value.code == "FORBIDDEN"


def test_unusual_but_harmless_names(tmp_path: pathlib.Path) -> None:
    for name in ("a b", "ä/ö", "...", "a..b", "-n", "~", "C:x"):
        assert check_name(name) == name.split("/")
        Folder(tmp_path).write(name, name.encode())
    assert os.path.isfile(tmp_path / "...")
