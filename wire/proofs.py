"""The receipt file: receipts of a job with all that proves them, and its check without anybody.

A file is JSON in one form, byte for byte (``text_of``). Each object that somebody signed has its
readable fields, the very bytes that were signed (``signed``) and the ``signature``, so that a byte
that was changed anywhere is found, and its field named: if the signature is of the signed bytes,
the readable field that differs is wrong; if it is of what the readable fields say, ``signed`` is.
docs/receipts.md is the specification.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from gristmill.wire.epochs import (
    EPOCH_CONTEXT,
    KEY_CONTEXT,
    EpochHead,
    KeyStatement,
    ReceiptRow,
    SignedHead,
    SignedKey,
    digest_of_head,
)
from gristmill.wire.ids import format_job
from gristmill.wire.ledger import Contribution
from gristmill.wire.merkle import DIGEST_BYTES, leaf_of, root_from_proof
from gristmill.wire.receipts import (
    CONTRIBUTION_CONTEXT,
    RECEIPT_CONTEXT,
    Receipt,
    content_digest,
    countersigned_bytes,
    is_by,
    receipt_in,
)
from gristmill.wire.spec import Tariff, toll_of

FORMAT = "gristmill-receipts-1"
FILE_BYTES_MAX = 256 << 20  #: about 100,000 receipts
#: to name a wrong place of the first bad receipt; whoever made the file says how many there are
PLACES_TRIED_MAX = 1 << 17
_PARTS = ("format", "job", "keys", "epochs", "receipts")
_KINDS = ("ledger", "broker", "node")  #: of keys, in their order
_encode = msgspec.msgpack.Encoder().encode
_WORDS = {bytes: "an even number of digits 0-9a-f", int: "a whole number", str: "a text"}
#: of a contribution in a file: what a worker signed is not taken for the broker's signature
_RENAMED = {"signature": "worker_signature"}


class Fault(msgspec.Struct, frozen=True):
    """What is wrong with a file: ``field`` is the path of it, empty for the file itself."""

    field: str
    text: str

    def __str__(self) -> str:
        return f"{self.field}: {self.text}" if self.field else self.text


class Proven(msgspec.Struct, frozen=True):
    """A receipt that was checked, with its epoch and the name of its worker."""

    contribution: Contribution
    epoch: int
    place: int


class Verdict(msgspec.Struct, frozen=True):
    """What a check found: no ``faults`` means that every receipt is proven.

    ``publics``: the key of the ledger, and of each broker that signed.
    """

    faults: list[Fault]
    job: str = ""
    proven: list[Proven] = []
    publics: dict[str, str] = {}


class _BrokenError(Exception):
    """One fault, at once: the rest of its object makes no sense."""

    def __init__(self, field: str, text: str) -> None:
        super().__init__(field, text)
        self.fault = Fault(field, text)


# ---------------------------------------------------------------- writing


def document_of(
    job: int, receipts: Iterable[ReceiptRow], heads: Iterable[SignedHead], keys: Iterable[SignedKey]
) -> dict[str, Any]:
    """The content of a receipt file; the ledger's key stands first."""
    ordered = sorted(keys, key=lambda one: (_KINDS.index(one.statement.kind), _encode(one)))
    return {
        "format": FORMAT,
        "job": format_job(job),
        "keys": [_sealed(one.statement, one.signature) for one in ordered],
        "epochs": [
            _sealed(one.head, one.signature)
            for one in sorted(heads, key=lambda one: one.head.number)
        ],
        "receipts": [
            {
                "epoch": row.epoch,
                "place": row.place,
                "proof": [digest.hex() for digest in row.proof],
                "worker": _sealed(receipt_in(row.contribution), row.contribution.signature),
                "broker": _sealed(row.contribution, row.contribution.countersignature),
            }
            for row in receipts
        ],
    }


def text_of(document: dict[str, Any]) -> str:
    """The one form of a file."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _sealed(value: msgspec.Struct, signature: bytes) -> dict[str, Any]:
    return {**_readable(value), "signed": _signed_bytes(value).hex(), "signature": signature.hex()}


def _signed_bytes(value: msgspec.Struct) -> bytes:
    return countersigned_bytes(value) if isinstance(value, Contribution) else _encode(value)


def _readable(value: msgspec.Struct) -> dict[str, Any]:
    told = {}
    for field, its in zip(_fields(type(value)), msgspec.structs.astuple(value), strict=False):
        told[field] = its.hex() if isinstance(its, bytes) else its
    return told


def _fields(kind: type[msgspec.Struct]) -> list[str]:
    names = [name for name in kind.__struct_fields__ if name != "countersignature"]
    return [_RENAMED.get(name, name) for name in names] if kind is Contribution else names


# ---------------------------------------------------------------- checking


def verify(raw: bytes, pins: dict[str, str] | None = None) -> Verdict:
    """Everything that a file says, checked offline.

    ``pins``: public keys that are trusted, by kind (``ledger``, ``broker``); without them the keys
    are the file's own word.
    """
    try:
        document = _parse(raw)
        return _Check(document, raw, pins or {}).run()
    except _BrokenError as broken:
        return Verdict([broken.fault])


def _parse(raw: bytes) -> dict[str, Any]:
    if len(raw) > FILE_BYTES_MAX:
        raise _BrokenError("", f"a file of {len(raw)} bytes; the limit is {FILE_BYTES_MAX}")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise _BrokenError("", f"no JSON: byte {error.start} (line {line}) is not UTF-8") from None

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise _BrokenError(
                "", f"no receipt file: the field {twice!r} stands twice in one object"
            )
        return found

    def constant(word: str) -> Any:
        raise _BrokenError("", f"no JSON: {word} is no number")

    try:
        document = json.loads(text, object_pairs_hook=once, parse_constant=constant)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise _BrokenError("", f"no JSON at {where}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise _BrokenError("", f"no JSON: {error}") from None
    _keys_of("", document, _PARTS)
    return document  # type: ignore[no-any-return]


def _keys_of(path: str, found: Any, wanted: Sequence[str]) -> None:
    """Exactly these fields, in this order."""
    if not isinstance(found, dict):
        raise _BrokenError(path, "must be an object")
    missing = [name for name in wanted if name not in found]
    unknown = [name for name in found if name not in wanted]
    dot = f"{path}." if path else ""
    if missing:
        instead = f"; {unknown[0]!r} is no field" if unknown else ""
        raise _BrokenError(f"{dot}{missing[0]}", f"the field is missing{instead}")
    if unknown:
        raise _BrokenError(f"{dot}{unknown[0]}", "there is no such field")


def _list(path: str, found: Any) -> list[Any]:
    if not isinstance(found, list):
        raise _BrokenError(path, "must be a list")
    return found


def _number(path: str, found: Any) -> int:
    if type(found) is not int or not -(1 << 63) <= found < 1 << 64:
        raise _BrokenError(path, f"is {found!r:.40}, must be a whole number of 64 bits")
    return found


def _bytes(path: str, found: Any, size: int | None = None) -> bytes:
    try:
        value = bytes.fromhex(found)
    except (TypeError, ValueError):
        value = None
    if value is None or value.hex() != found:
        raise _BrokenError(path, f"is {found!r:.40}, must be {_WORDS[bytes]}")
    if size is not None and len(value) != size:
        raise _BrokenError(path, f"has {len(value)} bytes, must have {size}")
    return value


def _struct(path: str, found: dict[str, Any], kind: type[msgspec.Struct]) -> Any:
    """The struct that the readable fields say."""
    values = {}
    for name, told, of in zip(
        [name for name in kind.__struct_fields__ if name != "countersignature"],
        _fields(kind),
        [field.type for field in msgspec.structs.fields(kind) if field.name != "countersignature"],
        strict=True,
    ):
        value = found[told]
        if of is bytes:
            value = _bytes(f"{path}.{told}", value)
        elif of is int:
            value = _number(f"{path}.{told}", value)
        elif type(value) is not of:
            raise _BrokenError(f"{path}.{told}", f"is {value!r:.40}, must be {_WORDS.get(of, of)}")
        values[name] = value
    return kind(**values)


def _unseal(
    path: str,
    found: Any,
    kind: type[msgspec.Struct],
    context: bytes,
    publics: Callable[[Any], Sequence[str]],
    whose: str,
) -> tuple[Any, str]:
    """(what was signed, the key that signed it); ``publics`` of a struct: who may have."""
    _keys_of(path, found, (*_fields(kind), "signed", "signature"))
    signed = _bytes(f"{path}.signed", found["signed"])
    signature = _bytes(f"{path}.signature", found["signature"])
    try:
        decoded = msgspec.msgpack.decode(signed, type=kind)
        value = decoded if _signed_bytes(decoded) == signed else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        value = None
    if value is not None:
        for public in publics(value):
            if is_by(public, context + signed, signature):
                _compare(path, found, value)
                return value, public
    told = _struct(path, found, kind)
    said = _signed_bytes(told)
    if any(is_by(public, context + said, signature) for public in publics(told)):
        raise _BrokenError(f"{path}.signed", "these are not the bytes that were signed")
    if value is not None and said != signed:
        _compare(path, found, value)
    if not signature:
        raise _BrokenError(f"{path}.signature", f"there is none: {whose} did not sign")
    raise _BrokenError(f"{path}.signature", f"{whose} did not sign this")


def _compare(path: str, found: dict[str, Any], value: msgspec.Struct) -> None:
    """Every readable field says what was signed."""
    for name, its in _readable(value).items():
        told = found[name]
        if type(told) is not type(its) or told != its:
            raise _BrokenError(
                f"{path}.{name}", f"says {told!r:.80}; what was signed says {its!r:.80}"
            )


class _Check:
    """One file's check, part by part: keys, epochs, receipts, then its form."""

    def __init__(self, document: dict[str, Any], raw: bytes, pins: dict[str, str]) -> None:
        self._document = document
        self._raw = raw
        self._pins = pins
        self._faults: list[Fault] = []
        self._keys: list[KeyStatement] = []
        self._ledger = ""
        self._heads: dict[int, EpochHead] = {}
        self._proven: list[Proven] = []
        self._places: set[tuple[int, int]] = set()
        self._publics: dict[str, str] = {}

    def run(self) -> Verdict:
        """All faults; those behind a bad key or epoch follow from it and are not told."""
        document = self._document
        if document["format"] != FORMAT:
            raise _BrokenError("format", f"is {document['format']!r:.40}, must be {FORMAT!r}")
        self._each("keys", self._key)
        if not self._keys and not self._faults:
            raise _BrokenError("keys", "there are none")
        if not self._faults:
            self._each("epochs", self._epoch)
        if not self._faults:
            self._each("receipts", self._receipt)
            if not self._proven and not self._faults:
                raise _BrokenError("receipts", "there are none: nothing is proven")
        if not self._faults:
            self._check_form()
        job = document["job"] if isinstance(document["job"], str) else ""
        return Verdict(self._faults, job, self._proven, self._publics)

    def _each(self, part: str, check: Callable[[str, Any], None]) -> None:
        for at, found in enumerate(_list(part, self._document[part])):
            try:
                check(f"{part}[{at}]", found)
            except _BrokenError as broken:
                self._faults.append(broken.fault)

    # ------------------------------------------------------------ keys, epochs

    def _key(self, path: str, found: Any) -> None:
        if path == "keys[0]":
            its, _ = _unseal(
                path, found, KeyStatement, KEY_CONTEXT, lambda its: [its.public], "the ledger"
            )
            if its.kind != "ledger":
                raise _BrokenError(
                    f"{path}.kind", f"is {its.kind!r:.40}: the ledger's key comes first"
                )
            self._ledger = its.public
            self._publics["ledger"] = its.public
        else:
            its, _ = self._by_ledger(path, found, KeyStatement, KEY_CONTEXT)
            if its.kind == "ledger":
                raise _BrokenError(f"{path}.kind", "there is one ledger")
        if its.kind not in _KINDS:
            raise _BrokenError(f"{path}.kind", f"is {its.kind!r:.40}, must be one of {_KINDS}")
        self._keys.append(its)
        if its.kind == "ledger":
            self._check_pin(its)

    def _check_pin(self, key: KeyStatement) -> None:
        pinned = self._pins.get(key.kind)
        if pinned is not None and pinned != key.public:
            text = f"is {key.public:.16}...; the {key.kind} that is trusted has {pinned:.16}..."
            raise _BrokenError(f"keys[{self._keys.index(key)}].public", text)

    def _by_ledger(
        self, path: str, found: Any, kind: type[msgspec.Struct], context: bytes
    ) -> tuple[Any, str]:
        return _unseal(path, found, kind, context, lambda _: [self._ledger], "the ledger")

    def _epoch(self, path: str, found: Any) -> None:
        head, _ = self._by_ledger(path, found, EpochHead, EPOCH_CONTEXT)
        if head.number in self._heads:
            raise _BrokenError(f"{path}.number", f"epoch {head.number} is there twice")
        before = self._heads.get(head.number - 1)
        if before is not None and head.previous != digest_of_head(before):
            raise _BrokenError(f"{path}.previous", f"is not the digest of epoch {head.number - 1}")
        if head.receipts < 1:
            raise _BrokenError(f"{path}.receipts", f"is {head.receipts}: an epoch has at least one")
        self._heads[head.number] = head

    # ------------------------------------------------------------ receipts

    def _receipt(self, path: str, found: Any) -> None:
        _keys_of(path, found, ("epoch", "place", "proof", "worker", "broker"))
        number = _number(f"{path}.epoch", found["epoch"])
        place = _number(f"{path}.place", found["place"])
        proof = [
            _bytes(f"{path}.proof[{at}]", digest, DIGEST_BYTES)
            for at, digest in enumerate(_list(f"{path}.proof", found["proof"]))
        ]
        brokers = [key.public for key in self._keys if key.kind == "broker"]
        entry, public = _unseal(
            f"{path}.broker", found["broker"], Contribution, CONTRIBUTION_CONTEXT,
            lambda _: brokers, "no broker whose key is here",
        )  # fmt: skip
        receipt, _ = _unseal(
            f"{path}.worker", found["worker"], Receipt, RECEIPT_CONTEXT,
            lambda _: [entry.node], f"the node {entry.node:.12}...",
        )  # fmt: skip
        if found["worker"]["signature"] != entry.signature.hex():
            raise _BrokenError(
                f"{path}.worker.signature", "is not the one that the broker signed for"
            )
        _compare(f"{path}.worker", found["worker"], receipt_in(entry))
        self._check_job(entry)
        self._check_key(f"{path}.broker", "broker", receipt.broker, public, entry.ended_ms)
        self._check_key(f"{path}.broker", "node", "", entry.node, entry.ended_ms)
        _check_amounts(f"{path}.broker", entry)
        entry = msgspec.structs.replace(
            entry, countersignature=bytes.fromhex(found["broker"]["signature"])
        )
        self._check_proof(path, leaf_of(content_digest(entry)), number, place, proof)
        if (number, place) in self._places:
            raise _BrokenError(f"{path}.place", "this receipt is there twice")
        self._places.add((number, place))
        self._publics[f"broker {receipt.broker}"] = public
        self._proven.append(Proven(entry, number, place))

    def _check_job(self, entry: Contribution) -> None:
        job = entry.ref.rpartition("/")[2]
        if self._document["job"] != f"j{job}":
            told = self._document["job"]
            raise _BrokenError("job", f"is {told!r:.40}; its receipts are of j{job}")

    def _check_key(self, path: str, kind: str, name: str, public: str, at_ms: int) -> None:
        """The key was that of its name when this was signed."""
        known = [key for key in self._keys if key.kind == kind and key.public == public]
        if not known:
            raise _BrokenError(f"{path}.node", f"the ledger does not state the key {public:.12}...")
        its = [key for key in known if key.from_ms <= at_ms and name in ("", key.name)]
        if not its:
            text = f"the key {public:.12}... is that of {known[0].name} from {known[0].from_ms} on"
            raise _BrokenError(f"{path}.ended_ms", text)
        later = [
            key for key in self._keys
            if (key.kind, key.name) == (kind, its[-1].name)
            and its[-1].from_ms < key.from_ms <= at_ms
        ]  # fmt: skip
        if later:
            text = f"the key {public:.12}... was replaced at {later[0].from_ms}"
            raise _BrokenError(f"{path}.ended_ms", text)
        if kind == "broker":
            self._check_pin(its[-1])

    def _check_proof(
        self, path: str, leaf: bytes, number: int, place: int, proof: list[bytes]
    ) -> None:
        if number == 0 and not proof and place == 0:
            text = "is 0: its epoch is not closed yet; ask for the receipt again, with --wait"
            raise _BrokenError(f"{path}.epoch", text)
        head = self._heads.get(number)
        if head is not None and _leads(leaf, place, head, proof):
            return
        for other in self._heads.values():
            if other.number != number and _leads(leaf, place, other, proof):
                text = f"is {number}; the proof is one of epoch {other.number}"
                raise _BrokenError(f"{path}.epoch", text)
        if head is None:
            raise _BrokenError(f"{path}.epoch", f"is {number}, which is none of the epochs here")
        for other_place in range(0 if self._faults else min(head.receipts, PLACES_TRIED_MAX)):
            if _leads(leaf, other_place, head, proof):
                raise _BrokenError(
                    f"{path}.place", f"is {place}; the proof is that of {other_place}"
                )
        raise _BrokenError(f"{path}.proof", f"does not lead to the root of epoch {number}")

    # ------------------------------------------------------------ the form

    def _check_form(self) -> None:
        """The file is what ``text_of`` gives: blanks, order and spelling count as well."""
        text, raw = text_of(self._document).encode(), self._raw
        if text == raw:
            return
        pairs = enumerate(zip(text, raw, strict=False))
        at = next((at for at, (one, other) in pairs if one != other), min(len(text), len(raw)))
        line = raw.count(b"\n", 0, at) + 1
        start = text.rfind(b"\n", 0, at) + 1
        name = text[start : text.find(b"\n", at)].split(b'"')
        field = name[1].decode(errors="replace") if len(name) > 1 else "blanks"
        self._faults.append(
            Fault(field, f"byte {at} (line {line}) is not in the form of a receipt file")
        )


def _leads(leaf: bytes, place: int, head: EpochHead, proof: Sequence[bytes]) -> bool:
    return root_from_proof(leaf, place, head.receipts, proof) == head.root


def _check_amounts(path: str, entry: Contribution) -> None:
    """Nobody was billed for more than what the worker read, at the price that it signed."""
    for billed, read in (("wall_us", entry.signed_wall_us), ("cpu_us", entry.signed_cpu_us)):
        if (value := getattr(entry, billed)) > read:
            raise _BrokenError(f"{path}.{billed}", f"is {value}; the worker read {read}")
    if not 0 <= entry.subtasks <= entry.count:
        raise _BrokenError(f"{path}.subtasks", f"is {entry.subtasks} of {entry.count}")
    rates = entry.cpu_second_ucredits, entry.subtask_ucredits, entry.gib_second_ucredits
    byte_us = entry.memory_bytes * entry.wall_us
    price = Tariff(*rates).price(entry.cpu_us, entry.subtasks, byte_us)
    if not 0 <= entry.amount_ucredits <= price:
        text = f"is {entry.amount_ucredits}; the price of this is {price}"
        raise _BrokenError(f"{path}.amount_ucredits", text)
    most = toll_of(entry.amount_ucredits)
    if not 0 <= entry.toll_ucredits <= most:
        raise _BrokenError(f"{path}.toll_ucredits", f"is {entry.toll_ucredits}; at most {most}")
