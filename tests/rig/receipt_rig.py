"""Receipt files as a ledger would make them, with real keys and signatures."""

import hashlib
import json
from typing import Any

import msgspec
from nacl.signing import SigningKey

from gristmill.wire import epochs, merkle, proofs, receipts
from gristmill.wire.ledger import Contribution

NOW_MS = 1_790_000_000_000


def hash_of(*words: object) -> bytes:
    return hashlib.sha256(repr(words).encode()).digest()


class Maker:
    """One ledger, one broker and one node, whose keys are always the same."""

    def __init__(self) -> None:
        self.ledger, self.broker, self.node = (SigningKey(bytes([n]) * 32) for n in (1, 2, 3))
        self.broker_name = "bröker-1"

    def contribution(self, first: int, count: int = 10, **changes: Any) -> Contribution:
        entry = Contribution(
            f"{self.broker_name}/7", "ann", public_of(self.node), (1 << 40) + first, first, count,
            1, count, 0, 19_000, 18_500, 4_096, "cgroup", True, 18_600, 558, NOW_MS + 60_000,
            work=hash_of("work"), outcome_digest=hash_of(first), signed_wall_us=20_000,
            signed_cpu_us=19_000, cpu_second_ucredits=1_000_000, subtask_ucredits=10,
            memory_bytes=1 << 30,
        )  # fmt: skip
        entry = msgspec.structs.replace(entry, **changes)
        signature = receipts.sign_receipt(receipts.receipt_in(entry), self.node)
        return self.countersigned(msgspec.structs.replace(entry, signature=signature))

    def countersigned(self, entry: Contribution) -> Contribution:
        return receipts.countersign(entry, self.broker)

    def head(self, number: int, leaves: list[bytes], previous: bytes) -> epochs.SignedHead:
        root = merkle.root_of(merkle.levels_of(leaves))
        head = epochs.EpochHead(
            number, NOW_MS + 120_000, len(leaves), root, previous, 12, hash_of("t"), hash_of("r")
        )
        return epochs.SignedHead(head, epochs.sign_head(head, self.ledger))

    def key(self, kind: str, name: str, key: SigningKey, from_ms: int = NOW_MS) -> Any:
        statement = epochs.KeyStatement(kind, name, public_of(key), from_ms)
        return epochs.SignedKey(statement, epochs.sign_key(statement, self.ledger))

    def keys(self) -> list[epochs.SignedKey]:
        return [
            self.key("ledger", "ledger", self.ledger),
            self.key("broker", self.broker_name, self.broker),
            self.key("node", "w0", self.node),
        ]

    def document(self, *groups: list[Contribution], others: int = 4) -> dict[str, Any]:
        """An epoch for each group, with so many receipts of other jobs around."""
        rows, heads, previous = [], [], bytes(32)
        for number, group in enumerate(groups, 5):
            mine = [merkle.leaf_of(receipts.content_digest(entry)) for entry in group]
            leaves = [merkle.leaf_of(hash_of(number, other)) for other in range(others)]
            place = others // 2
            leaves[place:place] = mine
            levels = merkle.levels_of(leaves)
            heads.append(self.head(number, leaves, previous))
            previous = epochs.digest_of_head(heads[-1].head)
            rows += [
                epochs.ReceiptRow(
                    at + 1, entry, number, place + at, merkle.proof_of(levels, place + at)
                )
                for at, entry in enumerate(group)
            ]
        return proofs.document_of(7, rows, heads, self.keys())

    def file(self, *groups: list[Contribution]) -> bytes:
        return proofs.text_of(self.document(*groups)).encode()


def public_of(key: SigningKey) -> str:
    return key.verify_key.encode().hex()


def paths_of(raw: bytes) -> list[tuple[str, bool]]:
    """For each byte of a file: the path of the field that it is in, and whether it is its value.

    A scanner of its own: it shares nothing with what is tested. One field a line, as they are.
    """
    found: list[tuple[str, bool]] = []
    stack: list[tuple[str, int]] = []  # (path, next place in a list or -1)
    for line in raw.splitlines(keepends=True):
        text = line.strip().rstrip(b",")
        path, start = (stack[-1][0] if stack else ""), 0
        value = text
        if stack and text not in (b"}", b"]"):
            its, place = stack[-1]
            if place >= 0:
                path = f"{its}[{place}]"
                stack[-1] = its, place + 1
            else:
                name, _, value = text.partition(b": ")
                path = f"{its}.{json.loads(name)}" if its else json.loads(name)
            start = line.index(value, line.index(b": ") + 2 if place < 0 else 0)
        opens = value in (b"{", b"[")
        if opens:
            stack.append((path, 0 if value == b"[" else -1))
        elif text in (b"}", b"]"):
            stack.pop()
        is_whole = not opens and text not in (b"}", b"]") and value not in (b"[]", b"{}")
        end = start + len(value) if is_whole else start
        found += [(path, start <= at < end) for at in range(len(line))]
    return found
