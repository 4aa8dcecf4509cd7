"""Checks a receipt file without gristmill: python verify_receipt.py FILE [LEDGER_KEY].

Written from docs/receipts.md alone. It needs PyNaCl (for Ed25519) and the standard library, and
shares no code with the grid that it does not trust. Says what was proven, or the first thing that
is false, with exit code 1.
"""

import hashlib
import json
import sys
from typing import Any

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey

KEY = ["kind", "name", "public", "from_ms"]
EPOCH = [
    "number", "closed_ms", "receipts", "root", "previous", "transfers", "transfer_chain", "ranges",
]  # fmt: skip
WORKER = [
    "broker", "job", "lease_id", "first", "count", "attempt", "work", "outcome_digest", "wall_us",
    "cpu_us", "peak_kib", "metering", "node_class", "cpu_second_ucredits", "subtask_ucredits",
    "gib_second_ucredits", "memory_bytes",
]  # fmt: skip
BROKER = [
    "ref", "tenant", "node", "lease_id", "first", "count", "attempt", "subtasks", "failed",
    "wall_us", "cpu_us", "peak_kib", "metering", "is_estimated", "amount_ucredits", "toll_ucredits",
    "ended_ms", "replica", "worker_signature", "work", "outcome_digest", "signed_wall_us",
    "signed_cpu_us", "cpu_second_ucredits", "subtask_ucredits", "gib_second_ucredits",
    "memory_bytes", "node_class",
]  # fmt: skip


class FalseError(Exception):
    """Something in the file is not true."""


def must(is_true: object, what: str) -> None:
    """Raises unless it is true."""
    if not is_true:
        raise FalseError(what)


def unpack(data: bytes, at: int = 0) -> tuple[Any, int]:
    """One MessagePack value that begins at ``at``, and where the next one does."""

    def sized(width: int) -> tuple[int, int]:
        return int.from_bytes(data[at + 1 : at + 1 + width], "big"), at + 1 + width

    tag = data[at]
    if tag <= 0x7F:
        return tag, at + 1
    if tag in (0xC2, 0xC3):
        return tag == 0xC3, at + 1
    if 0xCC <= tag <= 0xCF:
        return sized(1 << tag - 0xCC)
    if 0xA0 <= tag <= 0xBF or 0xD9 <= tag <= 0xDB:
        size, start = (tag - 0xA0, at + 1) if tag <= 0xBF else sized(1 << tag - 0xD9)
        return data[start : start + size].decode(), start + size
    if 0xC4 <= tag <= 0xC6:
        size, start = sized(1 << tag - 0xC4)
        return data[start : start + size], start + size
    if 0x90 <= tag <= 0x9F or tag in (0xDC, 0xDD):
        size, at = (tag - 0x90, at + 1) if tag <= 0x9F else sized(2 << tag - 0xDC)
        items = []
        for _ in range(size):
            item, at = unpack(data, at)
            items.append(item)
        return items, at
    raise FalseError(f"MessagePack of type {tag:#x}, which no receipt has")


def check_signed(path: str, part: dict[str, Any], names: list[str], context: str, key: str) -> None:
    """The key signed the bytes, and the readable fields say what the bytes say."""
    signed, signature = bytes.fromhex(part["signed"]), bytes.fromhex(part["signature"])
    try:
        VerifyKey(bytes.fromhex(key)).verify(context.encode() + b"\0" + signed, signature)
    except (BadSignatureError, ValueError):
        raise FalseError(f"{path}.signature: {key[:16]}... did not sign this") from None
    values, end = unpack(signed)
    must(end == len(signed), f"{path}.signed: more than one value")
    if names is BROKER:  # an array with its kind first, and a place for the countersignature
        must(values[0] == "contribution" and values[-1] == b"", f"{path}.signed: another kind")
        values = values[1:-1]
    must(len(values) == len(names), f"{path}.signed: {len(values)} fields, not {len(names)}")
    for name, value in zip(names, values, strict=True):
        told = part[name]
        told = bytes.fromhex(told) if isinstance(value, bytes) else told
        must(told == value and type(told) is type(value), f"{path}.{name}: signed was {value!r}")
    must(set(part) == {*names, "signed", "signature"}, f"{path}: other fields than these")


def sha256(*parts: bytes) -> bytes:
    """The digest of the parts, one behind the other."""
    return hashlib.sha256(b"".join(parts)).digest()


def leaf_of(broker: dict[str, Any]) -> bytes:
    """The ledger knows a contribution by its kind with a capital, and with its countersignature."""
    signed = bytes.fromhex(broker["signed"])
    at = signed.index(b"contribution")
    must(signed.endswith(b"\xc4\0"), "receipts: there is no place for the countersignature")
    content = signed[:at] + b"C" + signed[at + 1 : -2] + b"\xc4\x40"
    return sha256(b"\0", sha256(content, bytes.fromhex(broker["signature"])))


def root_from(leaf: bytes, place: int, size: int, proof: list[bytes]) -> bytes:
    """RFC 9162, 2.1.3.2: the root that this proof of a tree of ``size`` leaves leads to."""
    must(0 <= place < size, f"place {place} of {size}")
    number, last, node = place, size - 1, leaf
    for neighbour in proof:
        must(last > 0, "the proof is too long")
        if number & 1 or number == last:
            node = sha256(b"\1", neighbour, node)
            while not number & 1 and number:
                number, last = number >> 1, last >> 1
        else:
            node = sha256(b"\1", node, neighbour)
        number, last = number >> 1, last >> 1
    must(last == 0, "the proof is too short")
    return node


def check_receipt(path: str, told: dict[str, Any], file: dict[str, Any]) -> int:
    """One receipt; gives what it cost, in micro-credits."""
    worker, broker = told["worker"], told["broker"]
    name, _, job = broker["ref"].rpartition("/")
    stated = [
        key for key in file["keys"]
        if (key["kind"], key["name"]) == ("broker", name) and key["from_ms"] <= broker["ended_ms"]
    ]  # fmt: skip
    must(stated, f"{path}.broker.ref: no key of {name} was valid then")
    key = max(stated, key=lambda one: one["from_ms"])["public"]
    check_signed(f"{path}.broker", broker, BROKER, "gristmill-contribution-1", key)
    check_signed(f"{path}.worker", worker, WORKER, "gristmill-receipt-2", broker["node"])
    nodes = [key["public"] for key in file["keys"] if key["kind"] == "node"]
    must(broker["node"] in nodes, f"{path}.broker.node: the ledger states no such node")
    must(worker["signature"] == broker["worker_signature"], f"{path}.worker.signature: another")
    must((worker["broker"], f"j{worker['job']}") == (name, file["job"]), f"{path}.worker.job: is?")
    must(f"j{job}" == file["job"], f"{path}.broker.ref: is of another job")
    for field in WORKER[2:]:  # what both signed must be the same
        other = f"signed_{field}" if field in ("wall_us", "cpu_us") else field
        must(worker[field] == broker[other], f"{path}.broker.{other}: the worker said another")
    must(broker["wall_us"] <= worker["wall_us"], f"{path}.broker.wall_us: more than was read")
    must(broker["cpu_us"] <= worker["cpu_us"], f"{path}.broker.cpu_us: more than was read")
    byte_us = broker["memory_bytes"] * broker["wall_us"]
    price = (
        broker["cpu_us"] * broker["cpu_second_ucredits"] // 10**6
        + broker["subtasks"] * broker["subtask_ucredits"]
        + byte_us * broker["gib_second_ucredits"] // (2**30 * 10**6)
    )
    amount = broker["amount_ucredits"]
    must(amount <= price, f"{path}.broker.amount_ucredits: the price is {price}")
    must(broker["toll_ucredits"] <= amount * 3 // 100, f"{path}.broker.toll_ucredits: over 3 %")
    epoch = next((one for one in file["epochs"] if one["number"] == told["epoch"]), None)
    must(epoch, f"{path}.epoch: {told['epoch']} is not here (0: not closed when this was asked)")
    assert epoch
    proof = [bytes.fromhex(digest) for digest in told["proof"]]
    root = root_from(leaf_of(broker), told["place"], epoch["receipts"], proof)
    must(root.hex() == epoch["root"], f"{path}.proof: does not lead to the root of its epoch")
    return int(amount)


def main(path: str, trusted: str = "") -> str:
    """What is proven, in words."""
    with open(path, "rb") as opened:
        file = json.load(opened)
    must(file["format"] == "gristmill-receipts-1", "format: unknown")
    ledger = file["keys"][0]["public"]
    must(file["keys"][0]["kind"] == "ledger", "keys[0]: is not the ledger's")
    must(trusted in ("", ledger), f"keys[0].public: not the ledger that is trusted: {ledger}")
    for part, names, context in (("keys", KEY, "key"), ("epochs", EPOCH, "epoch")):
        for at, one in enumerate(file[part]):
            check_signed(f"{part}[{at}]", one, names, f"gristmill-{context}-1", ledger)
    told = [(one["epoch"], one["place"]) for one in file["receipts"]]
    must(told and len(told) == len(set(told)), "receipts: none, or one of them twice")
    amounts = [check_receipt(f"receipts[{at}]", r, file) for at, r in enumerate(file["receipts"])]
    number, (credits, rest) = len(amounts), divmod(sum(amounts), 10**6)
    told = f"{number} receipt{'' if number == 1 else 's'} of {file['job']}"
    return f"{told}, {credits}.{rest:06} credits: all proven"


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: verify_receipt.py FILE [LEDGER_KEY]")
    try:
        print(main(*sys.argv[1:]))
    except OSError as error:
        sys.exit(f"cannot read {sys.argv[1]}: {error.strerror}")
    except (FalseError, ValueError, LookupError, TypeError) as error:
        sys.exit(
            f"NOT PROVEN: {error!r:.300}"
            if isinstance(error, LookupError)
            else f"NOT PROVEN: {error}"
        )
