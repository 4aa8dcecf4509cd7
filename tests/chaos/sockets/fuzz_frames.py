"""Frames that a hostile peer could send, and every decoder that would have to read them.

Two makers: ``Maker`` walks the types of the messages themselves and gives values at and beyond
their bounds, of wrong types, deep and long; ``mutate`` cuts, flips and splices encoded bytes.
"""

import dataclasses
import functools
import itertools
import os
import pathlib
import random
import sqlite3
import struct
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import inspect
from nacl.signing import SigningKey

from gristmill.wire import (
    client,
    failure,
    grants,
    ids,
    keys,
    ledger,
    limits,
    meter,
    receipts,
    spec,
    units,
    values,
    worker,
    write_ahead,
)
from gristmill.wire.errors import RemoteError
from gristmill.wire.frames import encode
from gristmill.wire.outcome import Outcome

INTS = (
    0, 1, -1, 2, 127, 128, 255, 256, 65_535, 65_536, 100_000_000, (1 << 31) - 1, 1 << 31,
    (1 << 32) - 1, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, -(1 << 31), -(1 << 63),
)  # fmt: skip
TEXTS = ("", "a", "\0", "*", "@m", "j1", "t:(is)", "0" * 64, "e" * 63 + "é", "a/b", "-1%", "٣", "²")
FLOATS = (0.0, -0.0, float("nan"), float("inf"), float("-inf"), 5e-324, 1.8e308)
LONG = (201, 4_001, 16_001, 70_000)
_NEST = (b"\x91", b"\x81\xa0", b"\xdc\x00\x01", b"\x92\x00", b"\x81\x91\x00")
_encode = msgspec.msgpack.Encoder().encode
_type_info = functools.cache(inspect.type_info)


class Maker:
    """Values of a type as msgspec sees it, wrong now and then.

    Args:
        hostile: share of the parts that are not what their type says.
    """

    def __init__(self, random_: random.Random, hostile: float = 0.04) -> None:
        self.random = random_
        self.hostile = hostile

    def anything(self, depth: int = 0) -> Any:
        """A MessagePack value of any type."""
        pick = self.random.randrange(10 if depth < 3 else 6)
        if pick == 0:
            return self.random.choice(INTS)
        if pick == 1:
            return self.random.choice(TEXTS)
        if pick == 2:
            return self.random.choice(FLOATS)
        if pick == 3:
            return self.random.choice((None, True, False))
        if pick == 4:
            return self.random.randbytes(self.random.choice((0, 1, 16, 64)))
        if pick == 5:
            return msgspec.msgpack.Ext(self.random.choice((-1, 0, 5)), self.random.randbytes(12))
        if pick == 6:
            return {self.random.choice(TEXTS): self.anything(depth + 1) for _ in range(3)}
        if pick == 7 and depth == 0:
            return self.nested()
        return [self.anything(depth + 1) for _ in range(self.random.randrange(4))]

    def nested(self) -> msgspec.Raw:
        """Deeper than any stack."""
        return msgspec.Raw(self.random.choice(_NEST) * self.random.choice((40, 1_200, 20_000)))

    def of(self, kind: inspect.Type) -> Any:
        """A value for this type, in what ``msgspec.msgpack.encode`` takes."""
        if self.random.random() < self.hostile:
            return self.anything()
        return getattr(self, "_" + type(kind).__name__.removesuffix("Type").lower())(kind)

    def _size(self) -> int:
        small = self.random.random() < 0.99
        return self.random.randrange(4) if small else self.random.choice((65, 601, 2_000))

    def _metadata(self, kind: Any) -> Any:
        return self.of(kind.type)

    def _any(self, kind: Any) -> Any:
        return self.anything()

    def _raw(self, kind: Any) -> Any:
        return msgspec.Raw(_encode(self.anything()))

    def _none(self, kind: Any) -> Any:
        return None

    def _bool(self, kind: Any) -> Any:
        return self.random.random() < 0.5

    def _int(self, kind: Any) -> Any:
        return self.random.choice(INTS) if self.random.random() < 0.5 else self.random.randrange(50)

    def _float(self, kind: Any) -> Any:
        return self.random.choice(FLOATS)

    def _str(self, kind: Any) -> Any:
        if self.random.random() < 0.02:
            return self.random.choice(TEXTS[1:]) * self.random.choice(LONG)
        return self.random.choice(TEXTS)

    def _bytes(self, kind: Any) -> Any:
        return self.random.randbytes(self.random.choice((0, 1, 15, 16, 16, 17, 64, 300)))

    def _literal(self, kind: Any) -> Any:
        return self.random.choice(kind.values)

    def _union(self, kind: Any) -> Any:
        return self.of(self.random.choice(kind.types))

    def _list(self, kind: Any) -> Any:
        size = self._size()
        few = [self.of(kind.item_type) for _ in range(min(size, 3))]
        return few + few[-1:] * (size - len(few))

    def _vartuple(self, kind: Any) -> Any:
        return self._list(kind)

    def _tuple(self, kind: Any) -> Any:
        return [self.of(one) for one in kind.item_types]

    def _dict(self, kind: Any) -> Any:
        value = self.of(kind.value_type)
        return {f"{number}{self.random.choice(TEXTS)}": value for number in range(self._size())}

    def field(self, one: inspect.Field) -> Any:
        """A value for a field of a struct: what makers override who know more of it."""
        return self.of(one.type)

    def _struct(self, kind: Any) -> Any:
        needed = [one for one in kind.fields if one.required or self.random.random() < 0.6]
        tag = [] if kind.tag is None else [kind.tag]
        if not kind.array_like:
            found = {one.encode_name: self.field(one) for one in needed}
            return found | ({kind.tag_field: kind.tag} if tag else {})
        parts = [self.field(one) for one in kind.fields]
        cut = self.random.randrange(8)
        if cut == 0:
            parts = parts[: self.random.randrange(len(parts) + 1)]
        elif cut == 1:
            parts.append(self.anything())  # a field of a later version
        return tag + parts


def mutate(frame: bytes, other: bytes, random_: random.Random) -> bytes:
    """Another frame from this one, by one to three cuts, flips, splices or lengths that lie."""
    found = bytearray(frame)
    for _ in range(1 + random_.getrandbits(2) % 3):
        pick, size = random_.getrandbits(3), len(found)
        at = int(random_.random() * (size + 1))
        if pick <= 1 and size:
            found[at - 1] ^= 1 << random_.getrandbits(3)
        elif pick == 2 and size:
            found[at - 1] = random_.getrandbits(8)
        elif pick == 3:
            del found[at:]
        elif pick == 4:
            start = int(random_.random() * (len(other) + 1))
            found[at:] = other[start : start + limits.HEADER_BYTES_MAX]
        elif pick == 5:
            lead = random_.choice(b"\xd9\xda\xdb\xc4\xc5\xc6\xdc\xdd\xde\xdf\xc7\xc8\xc9")
            found[at:at] = bytes((lead,)) + random_.randbytes(random_.choice((1, 2, 4)))
        elif pick == 6:
            found[at:at] = found[at : at + 1 + random_.getrandbits(6)]
        elif random_.getrandbits(4) == 0:
            found[at:at] = random_.choice(_NEST) * random_.choice((40, 1_200, 9_000))
        else:
            found[at : at + 1 + random_.getrandbits(3)] = random_.randbytes(random_.getrandbits(3))
    return bytes(found)


# ---------------------------------------------------------------- who reads what


@dataclasses.dataclass
class Target:
    """A decoder: ``read`` has the frame and a source of chance for its other arguments.

    ``types`` makes its structured frames; ``frames`` are valid ones in another form. ``declared``:
    all that may come out of it.
    """

    name: str
    read: Callable[[bytes, random.Random], Any]
    types: Any = None
    frames: tuple[bytes, ...] = ()
    declared: tuple[type[Exception], ...] = (RemoteError,)
    share: int = 4


def _header(name: str, decoder: Any, union: Any) -> Target:
    return Target(name, lambda frame, _: decoder.decode(frame), union, share=12)


_CODECS = ("q", "d", "m", "range", "r", "p", "@m", "", "t:(is)", "t:(q)", "t:(", "t:" + "i" * 99)
_PLAIN = ([1, 2, 3], [0.5], ["a", b"b", None, 1 << 62], [(1, "a"), (2, "b")])


def _unpack(frame: bytes, random_: random.Random) -> Any:
    codec = random_.choice(_CODECS)
    return values.unpack(codec, frame, random_.choice((-1, 0, 1, 2, 3, 4, 65_537, 1 << 62)))


def _unpack_typed(frame: bytes, random_: random.Random) -> Any:
    letters = "".join(random_.choice("ifsbon?") for _ in range(random_.randrange(5)))
    return values.unpack(f"t:({letters})", frame, 2)


_KEY = SigningKey(bytes(range(32)))
_HEAD = worker.ResultHead(1, 1, 1, 0, 1, "q", 1, 1, 1, "wait4")
_SPEC = spec.JobSpec("function", function="0" * 64)
_SIGNED = receipts.receipt_of("b", _HEAD, [b"", b"", b"", b""], 1, _SPEC, spec.Tariff())


def _grant(frame: bytes, random_: random.Random) -> Any:
    if random_.getrandbits(1):  # the whole way in: signed, but no grant
        signature = _KEY.sign(b"gristmill-grant-1\0" + frame).signature
        text = f"{grants._b64(frame)}.{grants._b64(signature)}"
    else:
        text = frame.decode("latin-1")
    return grants.check_grant(text, _KEY.verify_key, "get", "*", 1, 1)


def _receipt(frame: bytes, random_: random.Random) -> Any:
    node = random_.choice((_KEY.verify_key.encode().hex(), frame.decode("latin-1"), "é", "0" * 64))
    found = receipts.is_signed(_SIGNED, frame, node)
    assert not found or frame == receipts.sign_receipt(_SIGNED, _KEY)
    return found


_decode_spec = msgspec.msgpack.Decoder(spec.JobSpec).decode


def _spec(frame: bytes, random_: random.Random) -> Any:
    try:
        found = _decode_spec(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise RemoteError("MALFORMED") from None
    return spec.check_spec(found)


def _texts(frame: bytes, random_: random.Random) -> Any:
    parse = random_.choice(
        (units.parse_bytes, units.parse_ms, units.parse_credits, ids.parse_job, ids.parse_subtask,
         spec.parse_completion, ids.is_digest)
    )  # fmt: skip
    return parse(frame.decode("latin-1"))


class Files:
    """Decoders of files: the frame is written into one of a scratch folder."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.log, self.key = folder / "x-wal", folder / "x.key"
        self.key.touch(0o600)
        self.lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT)

    def wal(self) -> bytes:
        """A real write-ahead log of a few commits."""
        db = sqlite3.connect(self.folder / "db")
        db.executescript("PRAGMA page_size=512; PRAGMA journal_mode=WAL; CREATE TABLE t (x);")
        for number in range(4):
            with db:
                db.execute("INSERT INTO t VALUES (?)", (number,))
        found = (self.folder / "db-wal").read_bytes()
        db.close()
        return found

    def read_wal(self, frame: bytes, random_: random.Random) -> Any:
        """What is missing from a log, under any mark."""
        self.log.write_bytes(frame)
        mark = random_.choice((b"", frame[:20], b"open" + frame[16:24] + frame[:8], bytes(20)))
        os.ftruncate(self.lock, 0)
        os.pwrite(self.lock, mark, 0)
        found = write_ahead.Mark(self.lock, self.log)
        loss = found.find_loss(random_.choice((0, 1, 2, 1 << 20, 1 << 31)))
        if loss:
            loss.told(self.log)
        found.move(random_.randrange(4))
        return loss

    def read_key(self, frame: bytes, random_: random.Random) -> Any:
        """A key file of these bytes."""
        self.key.write_bytes(frame)
        return keys.load_key(self.key)


def targets(folder: pathlib.Path) -> list[Target]:
    """All decoders of ``wire/``."""
    files = Files(folder)
    grant = grants.Grant("local", "get", "*", 10, 1 << 40, b"n")
    meters = (
        meter.pack_meter(3),
        meter.pack_meter(3, bytes((0, 1, 3)), [1, 2, 3], [1, 2, 3], [9, 9, 9]),
        meter.pack_meter(3, Outcome.ERROR, [1, 1 << 40, 3]),
        meter.pack_meter(3, parts=[bytes(range(24)), bytes(range(16))]),
    )
    plain = tuple(packed[1] for one in _PLAIN if (packed := values.pack_plain(one)))
    counts = (3, 0, 1, -1, -3, 1 << 31)
    return [
        _header("client", client.decode_client, client.ClientMessage),
        _header("broker", client.decode_broker, client.BrokerToClient),
        _header("worker", worker.decode_worker, worker.WorkerMessage),
        _header("orders", worker.decode_orders, worker.BrokerToWorker),
        _header("to ledger", ledger.decode_to_ledger, ledger.ToLedger),
        _header("from ledger", ledger.decode_from_ledger, ledger.FromLedger),
        Target("values", _unpack, list[Any], (*plain, values.pack_range(0, 1)[1])),
        Target("typed values", _unpack_typed, list[tuple[int, str]], plain),
        Target("rows", lambda f, _: values.split_rows(f), frames=(
            values.join_rows("<f8", (2, 3), bytes(48)), struct.pack("<I", 1 << 31) + b"\x92")),
        Target("blob", lambda f, _: values.decode_ref(f), values.BlobRef),
        Target("meter", lambda f, r: meter.unpack_meter(f, r.choice(counts)), frames=meters),
        Target("outcomes", lambda f, r: meter.unpack_outcomes(f, r.choice(counts)), frames=meters),
        Target("failures", lambda f, _: failure.unpack_failures(f),
               list[tuple[int, failure.Failure]]),
        Target("logs", lambda f, _: failure.unpack_logs(f), list[failure.LogEntry]),
        Target("spec", _spec, spec.JobSpec, (
            encode(spec.JobSpec("command", command=spec.Command(["true"]))),
            encode(spec.JobSpec("function", function="0" * 64, completion="90%")))),
        Target("grant", _grant, grants.Grant, (
            grants.sign_grant(grant, _KEY).encode(), _encode(grant)), share=1),
        Target("receipt", _receipt, frames=(
            receipts.sign_receipt(_SIGNED, _KEY), encode(_SIGNED)), declared=(), share=1),
        Target("texts", _texts, frames=(b"64K", b"1.5h", b"2.5", b"j17/3", b"90%", b"9" * 400),
               declared=(ValueError,), share=1),
        Target("key file", files.read_key, frames=(b"ab" * 32 + b"\n",), share=1),
        Target("write-ahead log", files.read_wal, frames=(files.wal(),), declared=(), share=1),
    ]  # fmt: skip


# ---------------------------------------------------------------- the run


@dataclasses.dataclass
class Found:
    """What a run counted; ``faults``: target, exception and the frame in hex, the first few."""

    frames: Counter[str]
    valid: Counter[str]
    faults: list[tuple[str, str, str]]
    exceptions: int = 0


def run(seed: int, frames: int, only: str = "") -> Found:
    """``frames`` frames from this seed, one in twenty made from types, the rest by mutation."""
    with tempfile.TemporaryDirectory() as folder:
        return _run(seed, frames, [one for one in targets(pathlib.Path(folder))
                                   if only in ("", one.name)])  # fmt: skip


def fuzz(seed: int, frames: int, several: list[Target]) -> Found:
    """As ``run``, at these decoders."""
    return _run(seed, frames, several)


def _pool(target: Target, maker: Maker, many: int) -> list[bytes]:
    pool = list(target.frames)
    if target.types is not None:
        kind = _type_info(target.types)
        members = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
        for _, member in zip(range(many), itertools.cycle(members), strict=False):
            pool.append(_encode(maker.of(member)))
    return pool


def _run(seed: int, frames: int, several: list[Target]) -> Found:
    random_ = random.Random(seed)
    found = Found(Counter(), Counter(), [])
    shares = sum(one.share for one in several)
    for target in several:
        count = frames * target.share // shares
        hostile, honest = Maker(random_), Maker(random_, hostile=0.0)
        while count > 0:
            fresh = _pool(target, hostile, 48)
            pool = fresh + _pool(target, honest, 16)
            batch = min(count, 20 * len(fresh) if target.types is not None else 1_024)
            count -= batch
            found.frames[target.name] += batch
            for number in range(batch):
                frame = fresh[number] if number < len(fresh) else mutate(
                    random_.choice(pool), random_.choice(pool), random_
                )  # fmt: skip
                try:
                    if target.read(frame, random_) is not False:
                        found.valid[target.name] += 1
                except target.declared:
                    pass
                except Exception as error:
                    found.exceptions += 1
                    if len(found.faults) < 20:
                        where = traceback.format_exception(error)[-2:]
                        told = f"{type(error).__name__}: {error!s:.200} {where[0]:.300}"
                        found.faults.append((target.name, told, frame.hex()[:400]))
    return found
