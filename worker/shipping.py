"""What leaves by way of the store: large values, long logs, output files."""

import hashlib
import pathlib
import secrets
from typing import Any, BinaryIO

import msgspec

from gristmill.wire.errors import RemoteError
from gristmill.wire.failure import Failure, LogEntry, pack_logs
from gristmill.wire.limits import FILES_MAX, FRAME_BYTES_MAX, RESULT_VALUES_BYTES_MAX
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import JobSpec
from gristmill.wire.values import BlobRef, encode_ref
from gristmill.worker import results
from gristmill.worker.blobs import Blobs
from gristmill.worker.runners import protocol

_decode_values = msgspec.msgpack.Decoder(list[dict[str, Any]]).decode
_encode_values = msgspec.msgpack.Encoder().encode


class Spooled:
    """An output file on its way: ``path`` in the work folder, ``file`` of ours, its digest."""

    def __init__(self, path: str, at: pathlib.Path) -> None:
        self.path = path
        self.at = at
        self._file: BinaryIO = at.open("xb")
        self._hasher = hashlib.sha256()

    def write(self, piece: bytes) -> None:
        """Add to its end."""
        self._file.write(piece)
        self._hasher.update(piece)

    def close(self) -> None:
        """All of it was written."""
        self._file.close()

    def drop(self) -> None:
        """It is not needed any more."""
        self._file.close()
        self.at.unlink(missing_ok=True)

    @property
    def digest(self) -> str:
        """Of what was written."""
        return self._hasher.hexdigest()


class FileTray:
    """Output files that a slot sent and whose result has not come yet, within the job's limits."""

    def __init__(self, folder: pathlib.Path, spec: JobSpec) -> None:
        self._folder = folder
        self._spec = spec
        self._files: list[Spooled] = []
        self._bytes = 0

    def add(self, part: protocol.FilePart, body: bytes) -> None:
        """A piece; an empty one begins a file.

        Raises:
            ValueError: no slot of ours sends this.
        """
        self._bytes += len(body)
        if self._spec.kind != "command" or self._bytes > self._spec.limits.scratch_bytes:
            raise ValueError("a file that no subtask may have")
        if not body:
            if len(self._files) >= FILES_MAX:
                raise ValueError("too many files")
            self._files.append(Spooled(part.path, self._folder / secrets.token_hex(16)))
        elif not self._files or self._files[-1].path != part.path:
            raise ValueError("a piece of no file")
        else:
            self._files[-1].write(body)

    def take(self, done: protocol.Done) -> list[Spooled]:
        """The files of a result.

        Raises:
            ValueError: they are not those that it speaks of.
        """
        files, self._files, self._bytes = self._files, [], 0
        for file in files:
            file.close()
        if len(files) != done.files or (done.count > 1 and (files or done.refused)):
            for file in files:
                file.drop()
            raise ValueError("a result whose files do not fit it")
        return files

    def drop(self) -> None:
        """The slot is gone."""
        for file in self._files:
            file.drop()
        self._files.clear()


class Cargo:
    """A result with what of it must go to the store. ``ship`` blocks: call it from an errand."""

    def __init__(self, draft: results.Draft, files: list[Spooled]) -> None:
        self.draft = draft
        self.files = files
        self._logs = results.large_logs(draft.frames[3])

    @property
    def is_light(self) -> bool:
        """It can go as it is."""
        return not self.files and self._logs is None and not self._is_large(self.draft.frames[0])

    def _is_large(self, values: bytes) -> bool:
        is_one = self.draft.done.count == 1
        return len(values) > (FRAME_BYTES_MAX if is_one else RESULT_VALUES_BYTES_MAX)

    def ship(self, blobs: Blobs, grant: str) -> None:
        """Put what is large; the draft then has references.

        Raises:
            RemoteError: the store did not take a value or a file (a log is given up instead).
        """
        draft = self.draft
        values, meter, failures, logs = draft.frames
        if self._logs is not None:
            logs = pack_logs([_ship_log(entry, blobs, grant) for entry in self._logs])
            draft.frames = (values, meter, failures, logs)
        if self.files and values:
            taken = {}
            for file in self.files:
                ref = blobs.put(grant, file.at)
                assert ref.digest == file.digest
                taken[file.path] = (ref.digest, ref.size_bytes)
            (value,) = _decode_values(values)
            value["files"] = taken
            values = _encode_values([value])
            draft.frames = (values, meter, failures, logs)
        if self._is_large(values):
            ref = blobs.put(grant, values)
            draft.codec = f"@{draft.codec}"
            frame = encode_ref(BlobRef(ref.digest, ref.size_bytes))
            draft.frames = (frame, meter, failures, logs)

    def land(self, error: BaseException | None) -> None:
        """After ``ship``, in the loop: what failed becomes the result's end."""
        for file in self.files:
            file.drop()
        if error is None:
            return
        if self.draft.done.count == 1:
            message = f"the result cannot be put into the store: {said(error)}"
            self.draft.fail(Outcome.STORE, Failure(message, kind="StoreError"))
            return
        values, meter, failures, _ = self.draft.frames
        self.draft.frames = (values, meter, failures, b"")  # only logs were to go: values stay


def refuse_files(draft: results.Draft, refused: list[tuple[str, str]]) -> None:
    """Output files that are no plain files fail their subtask, with the reasons."""
    told = "; ".join(f"{path}: {why}" for path, why in refused[:5])
    more = f" and {len(refused) - 5} more" if len(refused) > 5 else ""
    draft.fail(Outcome.FS, Failure(f"output files were refused: {told}{more}", kind="FilesRefused"))


def said(error: BaseException) -> str:
    """An exception in one line."""
    if isinstance(error, RemoteError):
        return f"{error.code}: {error.message}"
    return f"{type(error).__name__}: {error}"


def _ship_log(entry: LogEntry, blobs: Blobs, grant: str) -> LogEntry:
    for name, text in results.long_streams(entry):
        try:
            digest = blobs.put(grant, text).digest
        except RemoteError:
            digest = ""  # the log is lost, the result is not
        entry = results.moved_to_store(entry, name, digest)
    return entry
