"""Disks as a power cut may leave them, from a recording of what was written.

What was synced is there. What was written and not synced may be there or not: see ``MODES``.
A file's name is taken as durable once it is made or deleted; file systems order that by journals.
"""

import pathlib
import random
from collections.abc import Iterator, Sequence

from disk_record import Op

SECTOR = 512
#: what becomes of writes that no sync followed
MODES = ("kept", "dropped", "prefix", "torn", "subset")

Files = dict[str, bytearray]


def images(
    operations: Sequence[Op], cuts: Sequence[int], dice: random.Random
) -> Iterator[tuple[int, str, Files]]:
    """(place, mode, files) for each place in ``cuts``, which rise, in every mode."""
    durable: Files = {}
    pending: dict[str, list[Op]] = {}
    at = 0
    for cut in cuts:
        while at < cut:
            _do(operations[at], durable, pending)
            at += 1
        for mode in MODES:
            yield cut, mode, _cut(durable, pending, mode, dice)


def _do(op: Op, durable: Files, pending: dict[str, list[Op]]) -> None:
    if op.kind == "d":
        durable.pop(op.file, None)
        pending.pop(op.file, None)
    elif op.kind == "s":
        file = durable.setdefault(op.file, bytearray())
        for each in pending.pop(op.file, ()):
            _apply(each, file)
    else:
        durable.setdefault(op.file, bytearray())
        pending.setdefault(op.file, []).append(op)


def _cut(durable: Files, pending: dict[str, list[Op]], mode: str, dice: random.Random) -> Files:
    files = {name: bytearray(body) for name, body in durable.items()}
    for name, ops in pending.items():
        file = files.setdefault(name, bytearray())
        if mode == "dropped":
            continue
        end = dice.randrange(len(ops) + 1) if mode in ("prefix", "torn") else len(ops)
        for number, op in enumerate(ops[:end]):
            if mode == "subset" and dice.random() < 0.5:
                continue
            is_last = number == end - 1
            is_torn = (mode == "torn" and is_last) or (mode == "subset" and dice.random() < 0.3)
            _apply(op, file, dice if is_torn else None)
    return files


def _apply(op: Op, file: bytearray, dice: random.Random | None = None) -> None:
    """Does one operation; with ``dice``, of a write only some of its sectors."""
    if op.kind == "t":
        del file[op.offset :]
        file.extend(bytes(max(0, op.offset - len(file))))
        return
    end = op.offset + len(op.body)
    if dice is None:
        _write(file, op.offset, op.body)
        return
    start = op.offset
    while start < end:  # sectors of the disk, not of the write
        stop = min(end, (start // SECTOR + 1) * SECTOR)
        if dice.random() < 0.5:
            _write(file, start, op.body[start - op.offset : stop - op.offset])
        start = stop


def _write(file: bytearray, offset: int, body: bytes) -> None:
    if len(file) < offset + len(body):
        file.extend(bytes(offset + len(body) - len(file)))
    file[offset : offset + len(body)] = body


def write_out(files: Files, folder: pathlib.Path) -> None:
    """The files of an image, below a folder."""
    for name, body in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
