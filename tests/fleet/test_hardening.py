"""What systemd itself says of the units: they are well-formed, and how exposed each is."""

import pathlib
import shutil
import subprocess
from collections.abc import Callable

import pytest

from gristmill.deploy.install import UNITS

EXPOSURE_MAX = 3.0
ROOMS = ("broker", "ledger", "store", "registry", "worker@")
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "deploy.md"

pytestmark = pytest.mark.skipif(
    not shutil.which("systemd-analyze"), reason="this host has no systemd-analyze"
)


def exposure(unit: pathlib.Path) -> float:
    """The overall exposure level, from 0 (none) to 10."""
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    (line,) = [line for line in done.stdout.splitlines() if "Overall exposure level" in line]
    return float(line.rpartition(": ")[2].split()[0])


def systemd_version() -> str:
    told = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True)
    return told.stdout.split()[1]


def test_each_unit_is_hardened(image: pathlib.Path, figures: Callable[..., None]) -> None:
    """The scores are also those of docs/deploy.md, where this systemd is the one it names."""
    found = {room: exposure(image / UNITS / f"gristmill-{room}.service") for room in ROOMS}
    figures(**{room.rstrip("@"): score for room, score in found.items()})
    assert {room: score for room, score in found.items() if score > EXPOSURE_MAX} == {}
    page, version = PAGE.read_text(), systemd_version()
    for room, score in found.items() if f"systemd {version}" in page else ():
        assert f"| `gristmill-{room}.service` | {score} |" in page, f"{room} has {score}"


def test_a_unit_without_hardening_would_be_found(image: pathlib.Path) -> None:
    unit = image / UNITS / "gristmill-broker.service"
    begin, _, _ = unit.read_text().partition("NoNewPrivileges=")
    unit.write_text(begin)
    assert exposure(unit) > 8


def verify(image: pathlib.Path) -> str:
    """What systemd has to say against our units; those of the host are at hand."""
    for folder in ("usr/lib/systemd/system", "run", "var", "dev", "proc", "sys"):
        (image / folder).mkdir(parents=True, exist_ok=True)
    for name in ("sysinit", "basic", "shutdown", "network", "network-online", "multi-user"):
        (image / "usr/lib/systemd/system" / f"{name}.target").write_text("[Unit]\n")
    for program in ("usr/bin/env", "bin/sh"):
        (image / program).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(f"/{program}", image / program)
    names = [f"gristmill-{room}.service" for room in ROOMS[:-1]]
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", f"--root={image}", "gristmill.target",
         "gristmill-worker@1.service", *names],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.stderr + (f"exit {done.returncode}" if done.returncode else "")


def test_systemd_understands_every_line(image: pathlib.Path) -> None:
    assert verify(image) == ""


def test_a_line_that_systemd_does_not_understand_would_be_found(image: pathlib.Path) -> None:
    unit = image / UNITS / "gristmill-store.service"
    unit.write_text(unit.read_text().replace("ProtectHome=yes", "ProtectHouse=yes"))
    assert "ProtectHouse" in verify(image)


def test_each_unit_is_watched_and_has_its_own_user(image: pathlib.Path) -> None:
    """Units differ in what they may do, not in how they are watched and ended."""
    units = {room: (image / UNITS / f"gristmill-{room}.service").read_text() for room in ROOMS}
    for room, text in units.items():
        lines = dict(line.partition("=")[::2] for line in text.splitlines() if "=" in line)
        assert lines["Type"] == "notify", room
        assert int(lines["WatchdogSec"]) >= 30
        assert lines["Restart"] == "on-failure"
        assert lines["User"] == f"gristmill-{room.rstrip('@')}"
        assert lines["StateDirectoryMode"] == "0700"


@pytest.mark.root
def test_whoever_sees_a_covered_proc_gets_none_of_its_own() -> None:
    """Why ProtectKernelTunables= and ProtectKernelLogs=, which cover parts of it, are left out."""
    jail = "setpriv --reuid=65534 --regid=65534 --clear-groups unshare -Urmpf --mount-proc true"
    codes = [
        subprocess.run(
            ["unshare", "-m", "sh", "-c", f"mount --make-rprivate / && {cover} && {jail}"],
            capture_output=True,
            timeout=60,
            check=False,
        ).returncode
        for cover in (
            "true",
            "mount --bind /dev/null /proc/kmsg",
            "mount --bind /proc/sys /proc/sys",
        )
    ]
    assert codes[0] == 0, "this host makes no user namespaces at all"
    assert 0 not in codes[1:], codes
