"""Can this host run jailed work? Answered by real trial jails, never by reading settings alone.

Settings lie: on some systems AppArmor lets a user namespace be made and then denies the mount. So
a jail is started with the very interpreter, policy and limits that work will have, looks around
from inside, and runs into its memory and process limits. Settings are read only to word the remedy.
No fallback: the caller that gets ``is_able`` False exits 78 (EX_CONFIG).
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path

from gristmill.sandbox.errors import SandboxError
from gristmill.sandbox.host import Host, prepare_host
from gristmill.sandbox.interpreter import Interpreter, find_interpreter
from gristmill.sandbox.limits import MEBIBYTE, Limits
from gristmill.sandbox.remedies import SETTINGS, apparmor_restricts, user_namespaces_off
from gristmill.sandbox.run import Result, run
from gristmill.sandbox.spec import JailSpec
from gristmill.wire.outcome import Outcome

TRIAL_MEMORY_BYTES = 96 * MEBIBYTE
TRIAL_PIDS_MAX = 16
TRIAL_WALL_MS = 20_000  # a loaded machine is slow, not unable


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried: ``name``, whether it held, what was seen."""

    name: str
    is_ok: bool
    detail: str


@dataclasses.dataclass(frozen=True, slots=True)
class HostReport:
    """What this host can do for jails.

    Attributes:
        is_able: jailed work may run. A missing cgroup alone does not make a host unable: rlimits
            stand in, every outcome says so, and the operator's policy decides.
        checks: everything that was tried, in order.
        reasons: why not, one sentence each; empty when able.
        remedies: what to type, in the order of ``reasons`` where one is known.
        cgroup_version: 1, 2 or 0.
        cgroup_reason, cgroup_remedy: why 0, and what to type.
        limits: limit -> who holds it: ``cgroup-v1``, ``cgroup-v2``, ``rlimit``, ``tmpfs``,
            ``worker`` or ``nobody``.
        interpreter: the Python that the trial ran.
        kernel: release and machine.
    """

    is_able: bool
    checks: tuple[Check, ...] = ()
    reasons: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()
    cgroup_version: int = 0
    cgroup_reason: str = ""
    cgroup_remedy: str = ""
    limits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    interpreter: str = ""
    kernel: str = ""


_LOOK = r"""
import errno, json, os, socket
lines = open("/proc/self/status").read().splitlines()
status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
def is_read_only(path):  # told by the mount: where the jail fails, nothing must be written
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
def connect(address):
    try:
        socket.create_connection(address, 1).close()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    return "connected"
fds = []
for fd in range(3, 250):
    try:
        os.fstat(fd)
        fds.append(fd)
    except OSError:
        pass
print(json.dumps({
    "pid": os.getpid(),
    "no_new_privs": status["NoNewPrivs"].strip(),
    "seccomp": status["Seccomp"].strip(),
    "capabilities": sum(int(status[name], 16) for name in ("CapEff", "CapBnd", "CapPrm")),
    "interfaces": [line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]],
    "shadow": os.path.exists("/etc/shadow"),
    "usr": is_read_only("/usr"),
    "root": is_read_only("/"),
    "tmp": is_read_only("/tmp"),
    "connect": connect(("192.0.2.1", 9)),
    "descriptors": fds,
    "environment": sorted(os.environ),
}))
"""

_FORK = r"""
import os, time
count = 0
while count < 200:
    try:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
    except OSError:
        break
    count += 1
print(count)
"""

_EAT = """
held = bytearray(1 << 30)
for at in range(0, len(held), 4096):
    held[at] = 1
"""


def probe(state_dir: Path, executable: str | None = None) -> HostReport:
    """Prepare the host, try, and clean up. Takes about half a second.

    Args:
        state_dir: as for ``prepare_host``.
        executable: the Python that work will run; None for our own.
    """
    try:
        with prepare_host(state_dir) as host:
            return probe_host(host, executable)
    except SandboxError as error:
        remedies = (error.remedy or remedy_of("nsjail"),)
        return HostReport(False, reasons=(str(error),), remedies=remedies, kernel=_kernel())


def probe_host(host: Host, executable: str | None = None) -> HostReport:
    """Try on a host that is already prepared, as a worker does at its start."""
    checks: list[Check] = []
    try:
        interpreter = find_interpreter(executable)
        looked = _run_python(host, interpreter, _LOOK, Limits(wall_ms=TRIAL_WALL_MS))
    except SandboxError as error:
        return _report(host, [Check("start", False, str(error))], "", error.remedy)
    started = looked.verdict.outcome is Outcome.OK
    checks.append(Check("start", started, _said(looked)))
    if started:
        checks += _judge_look(looked.stdout)
    if started and all(check.is_ok for check in checks):  # never eat memory without walls
        checks += _try_limits(host, interpreter)
    remedy = "" if started else remedy_of(host.nsjail)
    return _report(host, checks, interpreter.executable, remedy)


def remedy_of(nsjail: str) -> str:
    """What to type when a jail does not start, guessed from the host's settings."""
    settings = {name: _setting(name) for name in SETTINGS}
    is_root = os.geteuid() == 0
    for _, remedy in (
        user_namespaces_off(settings, is_root),
        apparmor_restricts(settings, is_root, nsjail),
    ):
        if remedy:
            return remedy
    if os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv"):
        return (
            "start the container with --security-opt seccomp=unconfined "
            "--security-opt apparmor=unconfined --security-opt systempaths=unconfined"
        )
    return f"{nsjail} --mode o --bindmount_ro / -- /bin/true"


def _run_python(host: Host, interpreter: Interpreter, code: str, limits: Limits) -> Result:
    argv = (interpreter.executable, "-I", "-S", "-c", code)
    return run(host, JailSpec(argv=argv, binds=interpreter.binds, limits=limits))


def _judge_look(answer: bytes) -> list[Check]:
    try:
        seen: Mapping[str, object] = json.loads(answer)
    except ValueError:
        return [Check("look from inside", False, f"answered {answer[:200]!r}")]
    wanted: tuple[tuple[str, str, object], ...] = (
        ("alone as process 1", "pid", 1),
        ("no new privileges", "no_new_privs", "1"),
        ("seccomp filter", "seccomp", "2"),
        ("no capabilities", "capabilities", 0),
        ("only the loopback interface", "interfaces", ["lo"]),
        ("no network", "connect", "ENETUNREACH"),
        ("no /etc/shadow", "shadow", False),
        ("read-only /usr", "usr", True),
        ("read-only /", "root", True),
        ("writable /tmp", "tmp", False),
        ("no leaked descriptors", "descriptors", []),
    )
    return [Check(name, seen[key] == value, f"{key}: {seen[key]}") for name, key, value in wanted]


def _try_limits(host: Host, interpreter: Interpreter) -> list[Check]:
    limits = Limits(wall_ms=TRIAL_WALL_MS, memory_bytes=TRIAL_MEMORY_BYTES, pids_max=TRIAL_PIDS_MAX)
    eaten = _run_python(host, interpreter, _EAT, limits)
    is_held = eaten.verdict.outcome is Outcome.OOM or b"MemoryError" in eaten.stderr
    forked = _run_python(host, interpreter, _FORK, limits)
    count = int(forked.stdout) if forked.stdout.strip().isdigit() else -1
    return [
        Check("memory limit", is_held, _said(eaten)),
        Check(
            "process limit",
            0 <= count < TRIAL_PIDS_MAX,
            f"{count} forks of at most {TRIAL_PIDS_MAX - 1}; {_said(forked)}",
        ),
    ]


def _said(result: Result) -> str:
    words = [result.verdict.outcome.word, result.verdict.detail]
    if result.verdict.outcome is not Outcome.OK:
        words.append(result.stderr.decode(errors="replace").strip()[-300:])
    return ": ".join(word for word in words if word)


def _report(host: Host, checks: list[Check], interpreter: str, remedy: str) -> HostReport:
    failed = [check for check in checks if not check.is_ok]
    place = host.place
    holder = f"cgroup-v{place.version}" if place.version else "rlimit"
    limits = {
        "wall_ms": "worker",
        "output_bytes_max": "worker",
        "cpu_ms": holder,
        "memory_bytes": holder,
        "pids_max": holder,
        "file_bytes_max": "rlimit",
        "files_max": "rlimit",
        "scratch_bytes": "tmpfs",
        "cpu_quota_ms_per_s": holder if place.has_cpu_quota else "nobody",
    }
    for check in failed:
        if check.name == "memory limit":
            limits["memory_bytes"] = "nobody"
        if check.name == "process limit":
            limits["pids_max"] = "nobody"
    return HostReport(
        is_able=not failed,
        checks=tuple(checks),
        reasons=tuple(f"{check.name}: {check.detail}" for check in failed),
        remedies=(remedy,) if failed and remedy else (),
        cgroup_version=place.version,
        cgroup_reason=place.reason,
        cgroup_remedy=place.remedy,
        limits=limits,
        interpreter=interpreter,
        kernel=_kernel(),
    )


def _kernel() -> str:
    facts = os.uname()
    return f"{facts.sysname} {facts.release} {facts.machine}"


def _setting(name: str) -> str:
    try:
        return Path("/proc/sys", name).read_text().strip()
    except OSError:
        return ""
