"""A host of a fleet: a container in which a real systemd is process 1.

Its root is a folder with this machine's /usr and Python bound into it, read-only, so that nothing
is downloaded and a host is there in a second. It has network, processes, mounts and cgroups of its
own. Cgroups of version 1, which systemd-nspawn makes read-only, can be written as on a machine. It
cannot show that the kernel refuses a /proc to whoever sees a covered one: the machine's own stays
in the kernel's sight. test_hardening.py shows that without a container.
"""

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from gristmill.deploy.install import LOOPBACK, OPERATOR_TOKEN
from gristmill.wire.keys import load_key

ROOMS = pathlib.Path(__file__).parents[2]
SECONDS = 60.0
PREFIX = pathlib.Path("/opt/gristmill")
PYTHON = PREFIX / "bin/python"
SYSTEMD = pathlib.Path("/usr/lib/systemd/systemd")

_SHARED = "libsystemd-shared-*.so"
_PASSWD = """root:x:0:0:root:/root:/bin/sh
messagebus:x:101:101::/nonexistent:/usr/sbin/nologin
systemd-network:x:102:102::/nonexistent:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
_GROUP = "root:x:0:\nmessagebus:x:101:\nsystemd-network:x:102:\nnogroup:x:65534:\n"
#: what this machine's /usr would start beside ours
_MASKED = ("getty.target", "systemd-logind.service", "systemd-ask-password-wall.path")
_TARGET = """[Unit]
Requires=basic.target dbus.socket systemd-journald.service
Wants=multi-user.target
After=basic.target dbus.socket systemd-journald.service
AllowIsolate=yes
"""


def why_not() -> str:
    """Why no host can be made here, or nothing."""
    if os.geteuid():
        return f"a container with systemd needs uid 0, runs as {os.geteuid()}"
    needed = {
        "systemd-nspawn": bool(shutil.which("systemd-nspawn")),
        str(SYSTEMD): SYSTEMD.exists(),
        "dbus-daemon": bool(shutil.which("dbus-daemon")),
        "nsenter": bool(shutil.which("nsenter")),
        "/bin -> usr/bin": pathlib.Path("/bin").is_symlink(),
    }
    missing = [name for name, is_there in needed.items() if not is_there]
    if missing:
        return f"this host has no {', '.join(missing)}: apt-get install systemd-container dbus"
    return ""


def _trees() -> list[pathlib.Path]:
    """Cgroup trees of this machine that a host gets a group of its own in."""
    found = []
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if right.startswith("cgroup ") and "cpuset" not in right:
            found.append(pathlib.Path(left.split()[4]))
    return found


class FleetHost:
    """See the module. ``with FleetHost() as host: host.systemctl("start", "x.service")``.

    Args:
        network: path of the network namespace that it has, where that outlives it.
        address: of this host there.
    """

    def __init__(self, name: str = "alpha", network: str = "", address: str = LOOPBACK) -> None:
        self.name = name
        self.address = address
        self._network = network  # a namespace's path; empty for one of its own, of loopback alone
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="gristmill-fleet-"))
        self.root = self.folder / "root"
        self.log = self.folder / "console"
        self._groups = [tree / self.folder.name for tree in _trees()]
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0
        self._binds = ["/usr"]
        self._make_root()

    # ------------------------------------------------------------ its files

    def _make_root(self) -> None:
        root = self.root
        for name in ("etc/systemd/system", "usr", "var/lib", "run", "tmp", "root", "opt"):
            (root / name).mkdir(parents=True)
        for name in ("proc", "sys", "dev"):
            (root / name).mkdir()
        for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
            if pathlib.Path("/", name).is_symlink():
                (root / name).symlink_to(f"usr/{name}")
        for library in (*SYSTEMD.parent.glob(_SHARED), *SYSTEMD.parents[1].glob(f"*/*/{_SHARED}")):
            # systemd-nspawn looks for the version before it binds /usr: without one it would give
            # a host the oldest kind of cgroups, in which nobody is told that one has become empty
            at = root / library.relative_to("/")
            at.parent.mkdir(parents=True, exist_ok=True)
            at.touch()
        etc = root / "etc"
        shutil.copy("/usr/lib/os-release", etc / "os-release")
        (etc / "passwd").write_text(_PASSWD)
        (etc / "group").write_text(_GROUP)
        (etc / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")
        (etc / "hosts").write_text(f"127.0.0.1 localhost {self.name}\n")
        (etc / "hostname").write_text(f"{self.name}\n")
        (etc / "machine-id").write_text(f"{os.urandom(16).hex()}\n")
        (etc / "systemd/system/fleet.target").write_text(_TARGET)
        (etc / "systemd/system/default.target").symlink_to("fleet.target")
        for unit in _MASKED:
            (etc / "systemd/system" / unit).symlink_to("/dev/null")
        (root / "var/log/journal").mkdir(parents=True)  # outlives a power cut
        self._install()

    def _install(self) -> None:
        """Our rooms and their interpreter, as a virtual environment would have them."""
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        base = pathlib.Path("/usr")
        if not (base / "bin" / version).exists():  # else the one whose libraries are at hand
            self._binds.append(f"{sys.base_prefix}:/opt/python")
            base = pathlib.Path("/opt/python")
        self._binds.append(f"{pathlib.Path(sys.prefix, 'lib', version, 'site-packages')}:/opt/site")
        inside = self.root / PREFIX.relative_to("/")
        packages = inside / "lib" / version / "site-packages"
        for room in (ROOMS / "namespace" / "gristmill").iterdir():
            shutil.copytree(
                room.resolve(), packages / "gristmill" / room.name,
                ignore=shutil.ignore_patterns("__pycache__"),
            )  # fmt: skip
        (packages / "site.pth").write_text("/opt/site\n")
        (inside / "bin").mkdir()
        (inside / "bin" / "python").symlink_to(base / "bin" / version)
        command = inside / "bin" / "gristmill"
        command.write_text(f'#!/bin/sh\nexec {PYTHON} -P -m gristmill.cli.main "$@"\n')
        command.chmod(0o755)
        (inside / "pyvenv.cfg").write_text(f"home = {base / 'bin'}\n")

    # ------------------------------------------------------------ its life

    def __enter__(self) -> "FleetHost":
        try:
            self._boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end(signal.SIGTERM)  # an orderly end of the container
        shutil.rmtree(self.folder, ignore_errors=True)

    def power_cut(self) -> None:
        """Every process of it is gone at once, unasked; the disk stays."""
        if self._leader > 1:  # else it is off
            os.kill(self._leader, signal.SIGKILL)
        self._end(0)

    def boot(self) -> None:
        """After a power cut."""
        self._boot()

    def _end(self, signal_number: int) -> None:
        if self._process is not None:
            if self._process.poll() is None:
                self._process.send_signal(signal_number)
                try:
                    self._process.wait(30)
                except subprocess.TimeoutExpired:
                    self._process.kill()
            self._process.wait()
            self._process, self._leader = None, 0
        for group in self._groups:
            for path in sorted(group.rglob("*"), reverse=True):
                if path.is_dir():
                    with contextlib.suppress(OSError):
                        path.rmdir()
            with contextlib.suppress(OSError):
                group.rmdir()

    def _boot(self) -> None:
        for group in self._groups:
            group.mkdir(exist_ok=True)

        def join() -> None:
            for group in self._groups:
                (group / "cgroup.procs").write_text(str(os.getpid()))

        command = [
            "systemd-nspawn", f"--directory={self.root}", f"--machine={self.name}", "--boot",
            "--register=no", "--keep-unit", "--console=pipe",
            "--link-journal=no", "--resolv-conf=off", "--timezone=off", "--quiet",
        ]  # fmt: skip
        own = f"--network-namespace-path={self._network}"
        command.append(own if self._network else "--private-network")
        command += [f"--bind-ro={bind}" for bind in self._binds]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1"},
                preexec_fn=join,
            )
        self._leader = self.until("process 1", self._find_leader)
        self.until("systemd", self._is_up)
        for tree in ("memory", "pids", "cpu", "cpuacct"):
            if pathlib.Path("/sys/fs/cgroup", tree, "cgroup.clone_children").exists():
                self.run("mount", "-o", "remount,bind,rw", f"/sys/fs/cgroup/{tree}")

    def _find_leader(self) -> int:
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text(errors="replace")
        for pid in children_of(self._process.pid):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/exe") == str(SYSTEMD):
                    return pid
        return 0

    def _is_up(self) -> bool:
        done = self.run("systemctl", "is-system-running", check=False)
        return done.stdout.strip() in ("running", "degraded")

    # ------------------------------------------------------------ what is done in it

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command as root of the host."""
        done = subprocess.run(
            ["nsenter", "-t", str(self._leader), "-m", "-u", "-i", "-n", "-p", "-C", "--",
             "env", "-i", "PATH=/usr/sbin:/usr/bin", "HOME=/root", "LC_ALL=C.UTF-8", *command],
            capture_output=True, text=True, timeout=SECONDS * 3, check=False, cwd="/",
        )  # fmt: skip
        if check and done.returncode:
            raise AssertionError(
                f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}\n"
                f"{self.journal() if 'journalctl' not in command else ''}"
            )
        return done

    def gristmill(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Our command, as root of the host, with the operator's token once there is one."""
        address = f"GRISTMILL_ADDRESS=tcp://{self.address}:7031"
        token = self.root / OPERATOR_TOKEN
        secret = token.read_text().strip() if token.exists() else ""
        command = (str(PYTHON), "-P", "-m", "gristmill.cli.main", *arguments)
        return self.run("env", address, f"GRISTMILL_TOKEN={secret}", *command)

    def shell(self, commands: str) -> subprocess.CompletedProcess[str]:
        """What an administrator types, as root."""
        return self.run("env", f"PATH={PREFIX}/bin:/usr/sbin:/usr/bin", "sh", "-euc", commands)

    def systemctl(self, *words: str, check: bool = True) -> str:
        """What systemctl says."""
        return self.run("systemctl", "--no-pager", *words, check=check).stdout

    def property_of(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.systemctl("show", "--value", f"--property={name}", unit).strip()

    def journal(self, *words: str) -> str:
        """The journal, or a part of it."""
        return self.run("journalctl", "--no-pager", *words, check=False).stdout

    def now(self) -> str:
        """For ``journal``: only what is said from now on."""
        return f"--since=@{time.time():.6f}"

    def groups(self, tree: str) -> list[pathlib.Path]:
        """Cgroups of jails that are there, version 1."""
        return [
            path
            for group in self._groups
            if group.parent.name == tree
            for path in (group / "gristmill").rglob("*")
            if path.is_dir()
        ]

    def until(self, what: str, condition: Callable[[], Any], seconds: float = SECONDS) -> Any:
        """What the condition gives as soon as it is true."""
        deadline = time.monotonic() + seconds
        while True:
            found = condition()
            if found:
                return found
            if time.monotonic() > deadline:
                told = self.journal() if self._leader else self.log.read_text(errors="replace")
                raise AssertionError(f"{what}: not within {seconds} s\n{told[-6000:]}")
            time.sleep(0.05)


def children_of(pid: int) -> list[int]:
    """The direct children of a process."""
    found = []
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(word) for word in (task / "children").read_text().split()]
    return found


WORKERS = ("1", "2", "3")


class FleetGrid:
    """A grid that was deployed on a host as docs/deploy.md says, with short watchdogs."""

    UNITS = (
        "gristmill-ledger", "gristmill-store", "gristmill-registry", "gristmill-broker",
        "gristmill-worker@1",
    )  # fmt: skip

    def __init__(self, host: FleetHost, watchdog_s: int = 4) -> None:
        self.host = host
        self.watchdog_s = watchdog_s
        self._enable: list[str] = []

    def deploy(self) -> None:
        """The commands of the page up to the first start."""
        host = self.host
        workers = [part for name in WORKERS for part in ("--worker", name)]
        said = host.gristmill("deploy", "install", *workers).stderr
        command, _, units = said.partition("next: ")[2].strip().partition(" && systemctl enable ")
        host.run("sh", "-ec", command)
        self._enable = units.replace(" gristmill-worker@2 gristmill-worker@3", "").split()
        assert units.split()[-3:] == [f"gristmill-worker@{name}" for name in WORKERS]
        self.drop_in("gristmill-worker@", f"WatchdogSec={self.watchdog_s}\nTimeoutAbortSec=2")
        self.set("worker", "SLOTS", "2")

    def set(self, room: str, name: str, value: str) -> None:
        """A setting, as an operator writes it."""
        path = self.host.root / f"etc/gristmill/{room}.env"
        path.write_text(f"{path.read_text()}GRISTMILL_{room.upper()}_{name}={value}\n")

    def drop_in(self, unit: str, lines: str, name: str = "test") -> None:
        """Lines of [Service] that are added to a unit; none takes them away."""
        path = self.host.root / f"etc/systemd/system/{unit}.service.d/{name}.conf"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"[Service]\n{lines}\n" if lines else "")
        self.host.systemctl("daemon-reload")

    def start(self) -> None:
        """Every unit; each is active when its start comes back."""
        self.host.systemctl("enable", *self._enable)
        known = self.host.root / "etc/credstore/gristmill-ledger.key"
        key = load_key(known).verify_key.encode().hex()
        ledger = ("--ref", "first", "--ledger", "tcp://127.0.0.1:7033", "--ledger-key", key)
        self.host.gristmill("ledger", "fund", "local", "1000000", *ledger)

    def submit(self, count: int, command: str, *options: str) -> str:
        """An array job; its name."""
        more = ("--array", f"1-{count}", *options)
        return self.host.gristmill("submit", *more, "--", "sh", "-c", command).stdout.strip()

    def finish(self, job: str) -> list[str]:
        """The lines that the subtasks of a job printed, when it has ended well."""
        self.host.gristmill("wait", job, "--timeout", "100s")
        return self.host.gristmill("result", job).stdout.splitlines()

    def main_pid(self, unit: str) -> int:
        """As the host has it; 0 for none."""
        return int(self.host.property_of(unit, "MainPID"))

    def restarts(self, unit: str) -> int:
        """How often systemd has started it again by itself."""
        return int(self.host.property_of(unit, "NRestarts"))

    def until_restarted(self, unit: str, before: int) -> None:
        """Until systemd has started it again more often than before."""
        self.host.until(f"{unit} started again", lambda: self.restarts(unit) > before)

    def until_runs(self, job: str) -> None:
        """Until subtasks of it run."""
        self.host.until(job, lambda: "running" in self.host.gristmill("status", job).stdout)

    def is_active(self, unit: str) -> bool:
        """Whether it serves."""
        return self.host.property_of(unit, "ActiveState") == "active"
