"""What a job's jails need before they can start: its function, its files, its interpreter.

All of it may take long (the store, a Python that is asked for its paths), so errands do it; starts
that come meanwhile wait here.
"""

import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import Literal

from gristmill.sandbox.errors import SandboxError
from gristmill.sandbox.host import Host
from gristmill.sandbox.interpreter import Interpreter
from gristmill.wire.errors import RemoteError
from gristmill.wire.failure import Failure
from gristmill.wire.limits import BLOB_BYTES_MAX
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import FileIn, JobSpec
from gristmill.wire.values import BlobRef, decode_ref
from gristmill.wire.worker import JobOpening
from gristmill.worker.blobs import Blobs, Errands
from gristmill.worker.runners import protocol
from gristmill.worker.starter import INPUTS_AT, WORK_DIR, mode_of, ready_python

#: Called when the job is ready (None) or cannot be prepared.
Told = Callable[["Unready | None"], None]


class Unready(Exception):  # noqa: N818  (a state that is told, not an error of ours)
    """The job cannot run here; ``failure`` says why."""

    def __init__(self, outcome: Outcome, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.failure = Failure(message)


class JobRoom:
    """One open job. ``opening`` always has the newest grants."""

    def __init__(
        self, opening: JobOpening, function: bytes, folder: pathlib.Path, host: Host | None
    ) -> None:
        self.opening = opening
        self._host = host
        self.function = function  #: its bytes, once it is prepared
        self._sent = function
        self.folder = folder
        self.interpreter: Interpreter | None = None
        self.inputs: pathlib.Path | None = None
        self._phase: Literal["new", "preparing", "ready"] = "new"
        self._waiting: list[Told] = []

    @property
    def spec(self) -> JobSpec:
        """The job's specification."""
        return self.opening.spec

    def prepare(self, errands: Errands, blobs: Blobs, told: Told) -> None:
        """Call ``told`` once everything is there; at once when it is already."""
        if self._phase == "ready":
            told(None)
            return
        self._waiting.append(told)
        if self._phase == "preparing":
            return
        self._phase = "preparing"

        def then(answer: "BaseException | None") -> None:
            unready = None
            if isinstance(answer, BaseException):
                unready = answer if isinstance(answer, Unready) else _unready(answer)
            self._phase = "new" if unready else "ready"
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                each(unready)

        errands.run(lambda: self._prepare(blobs), then)

    def setting(self, work_dir: pathlib.Path) -> protocol.Setting:
        """The first frame of a slot of this job; its body is ``function``."""
        spec, limits = self.spec, self.spec.limits
        is_open = spec.tier == "trusted"
        cpu_ms = limits.cpu_ms or 4 * limits.wall_ms * max(1, -(-limits.cpus_milli // 1000))
        command = spec.command
        setting = protocol.Setting(
            job=self.opening.job,
            kind=spec.kind,
            mode=mode_of(spec),
            is_star=spec.is_star,
            is_safe=spec.results == "safe" or spec.kind == "command",
            is_single=bool(spec.quorum),
            wall_ms=limits.wall_ms,
            cpu_ms=cpu_ms,
            output_bytes=limits.output_bytes,
            scratch_bytes=limits.scratch_bytes,
            work_dir=str(work_dir) if is_open else WORK_DIR,
            inputs_dir=str(self.inputs) if is_open and self.inputs else INPUTS_AT,
        )
        if command is None:
            return setting
        return protocol.with_command(
            setting,
            argv=command.argv,
            env=command.env,
            is_stdin_value=command.stdin == "value",
            is_file_value=command.stdin == "file",
            files_in=[
                protocol.FilePlace(str(number), file.path)
                for number, file in enumerate(command.files_in)
            ],
            files_out=command.files_out,
            ok_exit_codes=tuple(command.ok_exit_codes),
        )

    def close(self) -> None:
        """Drop its folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _prepare(self, blobs: Blobs) -> None:
        """In a thread. Raises ``Unready``."""
        spec, grant = self.spec, self.opening.get_grant
        try:
            executable = spec.environment or sys.executable
            self.interpreter = ready_python(executable, self._host)
        except SandboxError as error:
            where = f"environment {spec.environment!r}" if spec.environment else "its own Python"
            raise Unready(Outcome.SETUP, f"this worker cannot use {where}: {error}") from None
        try:
            if spec.is_function_stored:
                self.function = blobs.fetch(grant, decode_ref(self._sent))
            if spec.command is not None and spec.command.files_in:
                self.inputs = self._link_inputs(blobs, grant, spec.command.files_in)
        except RemoteError as error:
            raise Unready(Outcome.STORE, f"{error.code}: {error.message}") from None

    def _link_inputs(self, blobs: Blobs, grant: str, files: list[FileIn]) -> pathlib.Path:
        inputs = self.folder / "inputs"
        shutil.rmtree(inputs, ignore_errors=True)
        inputs.mkdir(mode=0o755, parents=True)
        for number, file in enumerate(files):
            size = min(file.size_bytes, BLOB_BYTES_MAX)
            path = blobs.fetch_file(grant, BlobRef(file.digest, size))
            (inputs / str(number)).hardlink_to(path)
        return inputs


def _unready(error: BaseException) -> Unready:
    return Unready(Outcome.SETUP, f"preparing the job: {type(error).__name__}: {error}")
