"""What the guards look at: the repository's own files."""

import configparser
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(pathlib.Path(__file__).parent))  # for danger_rules, in importlib mode


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
    return ROOT


@pytest.fixture(scope="session")
def files(root: pathlib.Path) -> list[pathlib.Path]:
    """Every file that is committed or would be by ``git add``, links left out."""
    # A checkout of another user's is fine to read; git would refuse it by default.
    command = ["git", "-c", f"safe.directory={root}", "ls-files", "-z"]
    command += ["--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=root, capture_output=True, check=True).stdout
    paths = [root / name for name in sorted(names.decode().split("\0")) if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


@pytest.fixture(scope="session")
def setup_cfg(root: pathlib.Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(root / "setup.cfg")
    return parser


@pytest.fixture(scope="session")
def rooms(setup_cfg: configparser.ConfigParser) -> list[str]:
    """The top-level folders that are installed."""
    packages = setup_cfg["options"]["packages"].split()
    return sorted({package.split(".")[1] for package in packages})
