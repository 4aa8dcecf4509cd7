"""The receipt file: what is proven, and the very field that a changed byte broke."""

import json
import random

import msgspec
import pytest
from nacl.signing import SigningKey
from receipt_rig import NOW_MS, Maker, paths_of, public_of

from gristmill.ledger.core.step import digest_of_entry
from gristmill.wire import epochs, proofs, receipts

FLIPS = 400  #: bytes of the file that one run of the test changes; the seed is its own


@pytest.fixture(scope="module")
def maker() -> Maker:
    return Maker()


@pytest.fixture(scope="module")
def file(maker: Maker) -> bytes:
    return maker.file([maker.contribution(0), maker.contribution(10)], [maker.contribution(20)])


def first_fault(raw: bytes, pins: dict[str, str] | None = None) -> proofs.Fault:
    verdict = proofs.verify(raw, pins)
    assert verdict.faults, "nothing was found"
    return verdict.faults[0]


def test_a_file_proves_its_receipts(maker: Maker, file: bytes) -> None:
    verdict = proofs.verify(file)
    assert not verdict.faults
    assert verdict.job == "j7" and len(verdict.proven) == 3
    assert sum(one.contribution.amount_ucredits for one in verdict.proven) == 3 * 18_600
    assert verdict.publics == {
        "ledger": public_of(maker.ledger),
        f"broker {maker.broker_name}": public_of(maker.broker),
    }


def test_a_leaf_is_of_the_digest_that_the_ledger_keeps(maker: Maker) -> None:
    entry = maker.contribution(0)
    kept = digest_of_entry(entry)
    assert receipts.content_digest(entry)[: len(kept)] == kept


def test_a_flipped_byte_is_found_and_its_field_is_named(file: bytes) -> None:
    paths = paths_of(file)
    assert len(paths) == len(file)
    chosen = random.Random(7)
    at_values = [at for at, (path, is_value) in enumerate(paths) if is_value]
    for at in [*chosen.sample(range(len(file)), FLIPS // 2), *chosen.sample(at_values, FLIPS // 2)]:
        path, is_value = paths[at]
        flipped = bytearray(file)
        flipped[at] ^= chosen.randrange(1, 256)
        check(bytes(flipped), path, is_value, at)


def test_every_byte_of_every_kind_of_field_is_found_by_a_bit(maker: Maker) -> None:
    """The lowest bit makes another digit of a digit: the file stays JSON, the lie is in it."""
    small = maker.file([maker.contribution(0)])
    paths = paths_of(small)
    for at, (path, is_value) in enumerate(paths):
        if at % 3 and len(path) > 3 and ("signed" in path or "signature" in path):
            continue  # those are long
        flipped = bytearray(small)
        flipped[at] ^= 1
        check(bytes(flipped), path, is_value, at)


def check(flipped: bytes, path: str, is_value: bool, at: int) -> None:
    fault = first_fault(flipped)
    try:
        json.loads(flipped)
        is_json = True
    except ValueError:
        is_json = False
    if not is_json:
        assert not fault.field and "no JSON" in fault.text, (at, path, fault)
    elif is_value:
        proof = path.rpartition("[")[0] if ".proof[" in path else path
        assert fault.field in (path, proof), (at, path, fault)
    else:  # a name, or a blank
        assert fault.field or "line" in fault.text or "twice" in fault.text, (at, path, fault)


@pytest.mark.parametrize("blank", [b"\n", b"\t", b"\r"])
def test_another_blank_is_another_file(file: bytes, blank: bytes) -> None:
    fault = first_fault(file.replace(b' "wall_us"', blank + b'"wall_us"', 1))
    assert fault.field == "wall_us" and "line" in fault.text
    assert first_fault(file + blank).text
    assert first_fault(file[:-1]).text


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"amount_ucredits": 18_601}, "broker.amount_ucredits"),
        ({"toll_ucredits": 559}, "broker.toll_ucredits"),
        ({"subtasks": 11}, "broker.subtasks"),
        ({"wall_us": 20_001}, "broker.wall_us"),
        ({"cpu_us": 19_001, "amount_ucredits": 0, "toll_ucredits": 0}, "broker.cpu_us"),
        ({"ended_ms": NOW_MS - 1}, "broker.ended_ms"),
        ({"ref": "another/7"}, "broker.ended_ms"),
        ({"ref": "bröker-1/8"}, "job"),
    ],
)
def test_what_everybody_signed_and_is_false_is_named(
    maker: Maker, changes: dict[str, object], field: str
) -> None:
    raw = maker.file([maker.contribution(0, **changes)])
    assert first_fault(raw).field.removeprefix("receipts[0].") == field


def test_a_broker_cannot_change_what_the_worker_signed(maker: Maker) -> None:
    honest = maker.contribution(0)
    for field, value in (("signed_cpu_us", 1 << 30), ("cpu_second_ucredits", 9), ("attempt", 2)):
        forged = maker.countersigned(msgspec.structs.replace(honest, **{field: value}))
        fault = first_fault(maker.file([forged]))
        assert fault.field.startswith("receipts[0].worker."), (field, fault)
    unsigned = maker.countersigned(msgspec.structs.replace(honest, signature=b""))
    fault = first_fault(maker.file([unsigned]))
    assert fault.field == "receipts[0].worker.signature" and "did not sign" in fault.text


def test_keys_are_pinned_or_the_files_own_word(maker: Maker, file: bytes) -> None:
    good = {"ledger": public_of(maker.ledger), "broker": public_of(maker.broker)}
    assert not proofs.verify(file, good).faults
    other = public_of(SigningKey.generate())
    assert first_fault(file, {**good, "ledger": other}).field == "keys[0].public"
    assert first_fault(file, {**good, "broker": other}).field == "keys[1].public"


def test_a_file_of_another_grid_is_whole_and_its_keys_tell(maker: Maker) -> None:
    thief = Maker()
    thief.ledger = SigningKey(bytes([9]) * 32)
    raw = thief.file([thief.contribution(0)])
    assert not proofs.verify(raw).faults
    assert first_fault(raw, {"ledger": public_of(maker.ledger)}).field == "keys[0].public"


def test_a_replaced_key_does_not_speak_for_what_came_after(maker: Maker) -> None:
    document = maker.document([maker.contribution(0)])
    newer = maker.key("broker", maker.broker_name, SigningKey(bytes([8]) * 32), NOW_MS + 1)
    document["keys"].append(proofs._sealed(newer.statement, newer.signature))
    fault = first_fault(proofs.text_of(document).encode())
    assert fault.field == "receipts[0].broker.ended_ms" and "was replaced" in fault.text


def test_an_epoch_that_claims_any_number_of_receipts_does_not_keep_anybody_busy(
    maker: Maker,
) -> None:
    """A file's ledger signs what it likes; who checks it must still come to an end."""
    entries = [maker.contribution(first) for first in range(0, 40, 10)]
    document = maker.document(entries)
    (row,) = document["epochs"]
    head = epochs.EpochHead(
        row["number"], row["closed_ms"], 1 << 60, bytes.fromhex(row["root"]), bytes(32), 12,
        bytes.fromhex(row["transfer_chain"]), bytes.fromhex(row["ranges"]),
    )  # fmt: skip
    signed = epochs.SignedHead(head, epochs.sign_head(head, maker.ledger))
    document["epochs"] = proofs.document_of(7, [], [signed], [])["epochs"]
    verdict = proofs.verify(proofs.text_of(document).encode())
    assert [fault.field for fault in verdict.faults] == [
        f"receipts[{at}].proof" for at in range(len(entries))
    ]


def test_a_receipt_of_an_open_epoch_is_not_proven_yet(maker: Maker) -> None:
    document = maker.document([maker.contribution(0)], others=0)
    document["receipts"][0] |= {"epoch": 0, "place": 0, "proof": []}
    fault = first_fault(proofs.text_of(document).encode())
    assert fault.field == "receipts[0].epoch" and "--wait" in fault.text


def test_what_is_no_receipt_file_is_refused_in_words(file: bytes) -> None:
    document = json.loads(file)
    for raw, told in (
        (b"", "no JSON at line 1"),
        (b"[]", "must be an object"),
        (b"{}", "missing"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "no JSON"),
        (b'{"format": NaN}', "no JSON"),
        (b'{"a": 1, "a": 2}', "stands twice"),
        (json.dumps({**document, "format": "x"}).encode(), "format: is 'x'"),
        (json.dumps({**document, "receipts": []}).encode(), "nothing is proven"),
        (json.dumps({**document, "keys": []}).encode(), "keys: there are none"),
        (json.dumps({**document, "epochs": []}).encode(), "none of the epochs"),
        (json.dumps({**document, "receipts": document["receipts"][:1] * 2}).encode(), "twice"),
        (json.dumps({**document, "epochs": [1]}).encode(), "must be an object"),
        (json.dumps({**document, "keys": 5}).encode(), "must be a list"),
    ):
        assert told in str(first_fault(raw)), raw[:40]
