"""What a stranger gets: the wheel, installed alone, imports and answers."""

import configparser
import email
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

ROOM_FILES = {".py", ".typed", ".kafel", ".service", ".target", ".conf", ".env"}

pytestmark = pytest.mark.slow


def run(*command: str | pathlib.Path, cwd: pathlib.Path) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(
    root: pathlib.Path, files: list[pathlib.Path], tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    # Built from a copy: setuptools leaves a build/ folder, and would pack what an old one holds.
    source = tmp_path_factory.mktemp("source")
    for path in files:
        target = source / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    made = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-P", "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", made, source, cwd=made)
    (found,) = made.glob("gristmill-*-py3-none-any.whl")
    return found


@pytest.fixture(scope="module")
def bare(wheel: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The bin folder of a new environment that holds the wheel without extras."""
    folder = tmp_path_factory.mktemp("a place with spaces") / "venv"
    run(sys.executable, "-P", "-m", "venv", folder, cwd=wheel.parent)
    pip = ["-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    run(folder / "bin" / "python", *pip, wheel, cwd=wheel.parent)
    return folder / "bin"


def test_the_wheel_holds_the_rooms_only(
    wheel: pathlib.Path, root: pathlib.Path, files: list[pathlib.Path], rooms: list[str]
) -> None:
    expected = set()
    for path in files:
        relative = path.relative_to(root)
        is_artifact = relative.parts[:2] == ("contracts", "artifacts")
        if relative.parts[0] in rooms and (path.suffix in ROOM_FILES or is_artifact):
            expected.add(f"gristmill/{relative}")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == expected


def test_the_wheel_says_what_it_is(
    wheel: pathlib.Path, setup_cfg: configparser.ConfigParser
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
        assert any(name.endswith("/LICENSE") for name in archive.namelist())
    assert metadata["Name"] == "gristmill"
    assert metadata["Version"] == setup_cfg["metadata"]["version"]
    base = [line for line in metadata.get_all("Requires-Dist", []) if "extra ==" not in line]
    assert len(base) == len(setup_cfg["options"]["install_requires"].split())


def test_the_client_needs_no_extra(bare: pathlib.Path, tmp_path: pathlib.Path) -> None:
    statement = "import gristmill.client as client; print(client.__file__)"
    told = run(bare / "python", "-c", statement, cwd=tmp_path)
    assert str(bare.parent) in told


def test_the_command_needs_no_extra(bare: pathlib.Path, tmp_path: pathlib.Path) -> None:
    told = run(bare / "gristmill", "--help", cwd=tmp_path)
    for verb in ("up", "submit", "status", "result", "usage", "doctor"):
        assert verb in told.split()


def test_the_chain_says_what_it_needs(bare: pathlib.Path, tmp_path: pathlib.Path) -> None:
    command = [str(bare / "gristmill"), "chain", "verify", "grid.json"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        "INVALID_SPEC the chain needs eth_account\n  next: pip install 'gristmill[chain]'\n"
    )
