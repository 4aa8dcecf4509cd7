"""Starts slot processes: a jail with the job's interpreter and our runners, or (trusted) none."""

import binascii
import dataclasses
import functools
import json
import os
import pathlib
import socket
import sys
from collections.abc import Sequence

from gristmill.sandbox.argv import below_scratch, policy_text, scratch_options
from gristmill.sandbox.errors import SandboxError
from gristmill.sandbox.filter import compile_policy
from gristmill.sandbox.host import Host
from gristmill.sandbox.interpreter import RUNTIME_AT, Interpreter, find_interpreter
from gristmill.sandbox.limits import Limits
from gristmill.sandbox.page import make_shared_page
from gristmill.sandbox.runtime import compiled_runtime
from gristmill.sandbox.spec import BASE_ENV, Bind, JailSpec
from gristmill.sandbox.warm import Mother
from gristmill.wire.spec import JobSpec
from gristmill.worker import runners
from gristmill.worker.port import Port
from gristmill.worker.process import JailedProcess, OpenProcess, SlotProcess
from gristmill.worker.runners import protocol

#: Our modules that a slot imports; everything else it uses is the standard library's.
MODULES = (
    "gristmill.wire",
    "gristmill.worker.runners",
    "gristmill.sandbox.collect",
    "gristmill.sandbox.errors",
)
INPUTS_AT = "/run/inputs"
WORK_DIR = "/tmp/work"
BOOT = "gristmill/worker/runners/boot.py"
SLOT_FD, PAGE_FD = 3, 4
#: The slot's own process, and its second thread (loop.py), beside those of the subtask.
OWN_PIDS = {"fork": 1, "loop": 2}
OPEN_FILES_MAX = 1_024
SOCKET_BYTES = 1 << 20
#: Every symbol is looked up at the start, not at its first use in each child. boot.py removes it.
START_ENV = {"LD_BIND_NOW": "1"}
#: A jail has no cpu or wall limit of its own: they are the subtask's, and the agent's to hold.
ENDLESS_MS = 1 << 40
#: A mother's own: her interpreter, and children that have not yet entered a cgroup of their own.
MOTHER_BYTES, MOTHER_PIDS = 256 << 20, 64


def jail_limits(spec: JobSpec, has_cpu_quota: bool) -> Limits:
    """What the jail of a job may use: a subtask's limits, one subtask at a time."""
    ask = spec.limits
    return Limits(
        wall_ms=ENDLESS_MS,
        cpu_ms=ENDLESS_MS,
        memory_bytes=ask.memory_bytes,
        pids_max=ask.pids_max + OWN_PIDS[mode_of(spec)],
        output_bytes_max=max(1, ask.output_bytes),
        file_bytes_max=ask.scratch_bytes,
        files_max=OPEN_FILES_MAX,
        scratch_bytes=ask.scratch_bytes,
        cpu_quota_ms_per_s=ask.cpus_milli if has_cpu_quota else 0,
    )


def subtask_limits(spec: JobSpec) -> Limits:
    """The limits that a verdict on a subtask names."""
    ask = spec.limits
    cpu_ms = ask.cpu_ms or 4 * ask.wall_ms * max(1, -(-ask.cpus_milli // 1000))
    return dataclasses.replace(
        jail_limits(spec, False), wall_ms=ask.wall_ms, cpu_ms=cpu_ms, pids_max=ask.pids_max
    )


def mode_of(spec: JobSpec) -> str:
    """``fork`` for a child per subtask, ``loop`` for none."""
    is_forked = spec.kind == "command" or spec.tier in ("job", "strict")
    return "fork" if is_forked else "loop"


def start_slot(
    slot: int,
    jail: int,
    spec: JobSpec,
    interpreter: Interpreter | None,
    inputs: pathlib.Path | None,
    host: Host | None,
    work_dir: pathlib.Path,
    mother: Mother | None = None,
) -> Port:
    """Start the process of a slot. Call it from the main thread.

    ``mother``: of this job (``start_mother``), who makes the jail; None: a cold one.

    Raises:
        SandboxError: the jail cannot be built, or there is nothing that starts jails any more.
    """
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BYTES)
    page_fd = make_shared_page("slot", protocol.PAGE_BYTES)
    out, out_end = os.pipe2(os.O_CLOEXEC)
    err, err_end = os.pipe2(os.O_CLOEXEC)
    try:
        page = protocol.Page(page_fd)
        process: SlotProcess
        if spec.tier == "trusted":
            process = _start_open(
                theirs.fileno(), page_fd, out_end, err_end, interpreter, work_dir, spec.kind
            )
        elif mother is not None:
            assert host is not None
            limits = jail_limits(spec, host.place.has_cpu_quota)
            fds = theirs.fileno(), page_fd, out_end, err_end
            process = JailedProcess(host.start_warm(mother, limits, *fds))
        else:
            assert host is not None and interpreter is not None
            process = _start_jailed(
                spec,
                interpreter,
                inputs,
                host,
                {SLOT_FD: theirs.fileno(), PAGE_FD: page_fd},
                (out_end, err_end),
            )
    except BaseException:
        ours.close()
        os.close(out)
        os.close(err)
        raise
    finally:
        theirs.close()
        for fd in (page_fd, out_end, err_end):
            os.close(fd)
    # What is sent was in the jail's memory; a slot that lies must not fill ours with more.
    frame_bytes_max = min(protocol.BODY_BYTES_MAX, max(spec.limits.memory_bytes, 1 << 20))
    return Port(
        slot, jail, process, ours, page, (out, err), spec.limits.output_bytes, frame_bytes_max
    )


def runtime_folder(host: Host) -> pathlib.Path:
    """Where our code lies for jails, compiled."""
    return host.state_dir / "runtime"


def ready_python(executable: str, host: Host | None) -> Interpreter:
    """A Python with all that its jails need. May take a second; any thread may call it.

    Raises:
        SandboxError: it does not run or does not answer.
        OSError: our code cannot be laid out for it.
    """
    interpreter = find_interpreter(executable)
    if host is not None:
        compiled_runtime(runtime_folder(host), interpreter, MODULES)
    return interpreter


def start_mother(
    spec: JobSpec,
    interpreter: Interpreter,
    inputs: pathlib.Path | None,
    host: Host,
    output: int,
) -> Mother:
    """Start a mother for jobs like this one. ``output``: a pipe for what goes wrong in her.

    Raises:
        SandboxError: there can be none here.
    """
    limits = jail_limits(spec, False)
    jail = _jail_spec(spec, interpreter, inputs, host, walls_of(limits, interpreter.binds))
    mine = dataclasses.replace(limits, memory_bytes=MOTHER_BYTES, pids_max=MOTHER_PIDS)
    jail = dataclasses.replace(
        jail, limits=mine, cwd="/", is_mother=True, stdout=output, stderr=output
    )
    return host.start_mother(jail, SLOT_FD)


def walls_of(limits: Limits, binds: Sequence[Bind]) -> str:
    """What a mother is told of her children's walls (``seal.Walls``, JSON).

    Raises:
        SandboxError: no seccomp program for this machine.
    """
    tmp, shm = scratch_options(limits)
    shown = below_scratch(binds)
    return json.dumps({"tmp": tmp, "shm": shm, "program": seccomp_program(), "shown": shown})


@functools.cache
def seccomp_program() -> str:
    """The filter of all jails, for a mother's children.

    Raises:
        SandboxError: there is none for this machine.
    """
    try:
        program = compile_policy(policy_text())
    except ValueError as error:
        raise SandboxError(f"the seccomp policy of warm jails: {error}") from None
    return binascii.b2a_base64(program, newline=False).decode()


def _start_jailed(
    spec: JobSpec,
    interpreter: Interpreter,
    inputs: pathlib.Path | None,
    host: Host,
    fds: dict[int, int],
    outputs: tuple[int, int],
) -> SlotProcess:
    jail = _jail_spec(spec, interpreter, inputs, host)
    return JailedProcess(
        host.start(dataclasses.replace(jail, fds=fds, stdout=outputs[0], stderr=outputs[1]))
    )


def _jail_spec(
    spec: JobSpec,
    interpreter: Interpreter,
    inputs: pathlib.Path | None,
    host: Host,
    *more: str,
) -> JailSpec:
    runtime = compiled_runtime(runtime_folder(host), interpreter, MODULES)  # there by now
    binds = [*interpreter.binds, *runtime]
    if inputs is not None:
        binds.append(Bind(str(inputs), INPUTS_AT))
    return JailSpec(
        argv=(
            *(interpreter.executable, *_start_flags(spec, runtime[0]), f"{RUNTIME_AT}/{BOOT}"),
            *(str(SLOT_FD), str(PAGE_FD), RUNTIME_AT, spec.kind, *more),
        ),
        limits=jail_limits(spec, host.place.has_cpu_quota),
        binds=tuple(binds),
        env=START_ENV,
    )


def _start_flags(spec: JobSpec, runtime: Bind) -> tuple[str, ...]:
    """A command's slot runs no code of a tenant's and needs no packages but ours: no ``site``."""
    is_whole = pathlib.Path(runtime.source, "msgspec").exists()
    return ("-I", "-B", "-S") if spec.kind == "command" and is_whole else ("-I", "-B")


def _start_open(
    slot_fd: int,
    page_fd: int,
    stdout: int,
    stderr: int,
    interpreter: Interpreter | None,
    work_dir: pathlib.Path,
    kind: str,
) -> SlotProcess:
    boot = str(pathlib.Path(runners.__file__).with_name("boot.py"))
    executable = interpreter.executable if interpreter else sys.executable
    argv = [executable, "-I", "-B", boot, str(slot_fd), str(page_fd), "", kind]
    work_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    env = {**BASE_ENV, "PATH": os.environ.get("PATH", BASE_ENV["PATH"]), "HOME": str(work_dir)}
    return OpenProcess(argv, env, (slot_fd, page_fd), stdout, stderr, str(work_dir))
