"""Workers: names and keys, sessions, orders, grants, signatures, loss."""

import contextlib
import hashlib
import os
import sqlite3
import struct

import msgspec
import pytest
from nacl.signing import SigningKey, VerifyKey

import gristmill.wire.client as wc
import gristmill.wire.worker as ww
from gristmill.wire import limits, receipts
from gristmill.wire.grants import check_grant
from gristmill.wire.keys import BROKER_KEY, load_key
from gristmill.wire.ledger import Contribution
from gristmill.wire.meter import pack_meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.receipts import Receipt, sign_receipt


def leased(grid, worker, count=8):
    """A client, its job, and the worker with its first lease."""
    client = grid.client()
    job = client.submit().job
    client.subscribe(job)
    client.upload(job, count)
    client.close_upload(job, count)
    grid.until(lambda: worker.take(0.01) and worker.leases, "a lease")
    return client, job


def test_a_name_belongs_to_its_first_key(grid):
    first = grid.worker("w0", node="aa" * 32)
    assert isinstance(first.hello(), ww.Welcome)
    for node, words in (("bb" * 32, "has the key"), ("aa" * 32, "is here already")):
        other = grid.worker("w0", node=node)
        refused = other.hello()
        assert refused.code == "NAME_TAKEN" and words in refused.message
    first.report(is_full=True)
    assert first.take(5).answers == 1  # it keeps its place
    first.send(ww.Goodbye(first.session, "test"))
    grid.until(lambda: grid.client().ask("workers") == [], "it left")
    assert grid.worker("w0", node="bb" * 32).hello().code == "NAME_TAKEN"  # for ever
    grid.kill()
    grid.start()
    assert grid.worker("w0", node="bb" * 32).hello().code == "NAME_TAKEN"
    assert isinstance(grid.worker("w0", node="aa" * 32).hello(), ww.Welcome)


def test_another_instance_takes_the_place_of_a_silent_one(broker):
    broker.ledger().start()
    broker.start(worker_ttl_ms=300, worker_report_ms=100)
    assert isinstance(broker.worker("w0").hello(), ww.Welcome)
    other = broker.worker("w0")
    broker.until(lambda: isinstance(other.hello(), ww.Welcome), "the silent one is given up")


def test_the_same_instance_joins_again(grid):
    worker = grid.worker()
    first = worker.hello()
    old = worker.session
    client, job = leased(grid, worker)
    worker.leases.clear()
    second = worker.hello()
    assert second.worker != first.worker and worker.session != old
    worker.send(ww.Report(old, 1, True, [], [], [], []))
    grid.until(lambda: worker.take(0.01) is None or worker.refusals, "REJOIN")
    assert worker.refusals[0].code == "REJOIN"
    worker.start()
    assert client.finish(job).done == 8  # what it held was rescued


def test_orders_carry_the_function_the_parcels_and_grants(grid):
    worker = grid.worker()
    worker.hello()
    _, job = leased(grid, worker)
    lease, parcels = worker.leases[0]
    assert worker.functions[job] == b"def f(x): return x"
    assert [len(body) for body in parcels] == [8 * parcel.count for parcel in lease.parcels]
    opening = worker.openings[job]
    assert (opening.tenant, opening.job) == ("local", job)
    key = VerifyKey(
        SigningKey(bytes.fromhex((grid.state / "broker.key").read_text())).verify_key.encode()
    )
    now_ms = os.stat(grid.state / "journal.db").st_mtime_ns // 10**6
    put = check_grant(opening.put_grant, key, "put", "ab" * 32, 1 << 20, now_ms)
    get = check_grant(opening.get_grant, key, "get", "cd" * 32, 1 << 20, now_ms)
    assert (put.tenant, put.verb, get.verb) == ("local", "put", "get")
    assert put.expires_ms <= now_ms + limits.GRANT_TTL_MS + 60_000
    asked = grid.client().ask("grant", wc.GrantAnswer, text="put", digest="ef" * 32, size_bytes=9)
    grant = check_grant(asked.grant, key, "put", "ef" * 32, 9, now_ms)
    assert (grant.bytes_max, asked.store) == (9, f"unix://{grid.run}/store")
    wrong = grid.client().ask("grant", text="steal", digest="x", size_bytes=-1)
    assert wrong.code == "INVALID_SPEC" and "steal" in wrong.message and "-1" in wrong.message


def test_every_report_is_answered_after_the_commit(grid):
    worker = grid.worker()
    worker.hello()
    _, job = leased(grid, worker)
    lease, _ = worker.leases.pop()
    heads, bodies = worker.heads(lease)
    number = worker.report(heads, bodies)
    grid.until(lambda: worker.take(0.01) and worker.answers == number, "the answer")
    assert worker.acked == heads[-1].number
    grid.kill()
    grid.start()  # what was acked is there
    again = grid.client()
    again.subscribe(job)
    again.watch(lambda: again.results)
    assert again.results[0][0].head.first == lease.runs[0][0]


def signed(grid, worker, job, lease, key, payload=b"12345678"):
    (first, count), *_ = lease.runs
    worker.numbers["result"] += 1
    frames = [payload * count, pack_meter(count, Outcome.OK), b"", b""]
    digest = hashlib.sha256(b"".join(struct.pack("<Q", len(f)) + f for f in frames)).digest()
    tariff = worker.openings[job].tariff
    broker = grid.client().ask("grid")["broker"]
    spec = worker.openings[job].spec
    receipt = Receipt(
        broker, job, lease.lease_id, first, count, lease.attempt, bytes.fromhex(spec.function),
        digest, 1, 1, 1, "wait4", "standard", tariff.cpu_second_ucredits, tariff.subtask_ucredits,
        tariff.gib_second_ucredits, spec.limits.memory_bytes,
    )  # fmt: skip
    head = ww.ResultHead(
        worker.numbers["result"], lease.lease_id, job, first, count, "q", 1, 1, 1, "wait4",
        signature=sign_receipt(receipt, key),
    )  # fmt: skip
    return head, frames


def test_a_signature_that_is_not_the_workers_is_kept_and_not_used(grid):
    key = SigningKey.generate()
    worker = grid.worker(node=key.verify_key.encode().hex())
    worker.hello()
    client, job = leased(grid, worker)
    lease, _ = worker.leases.pop()
    bad, frames = signed(grid, worker, job, lease, SigningKey.generate())
    worker.report([bad], frames)
    grid.until(lambda: worker.take(0.01) and worker.acked == bad.number, "it is acked")
    figures = client.ask("grid")
    assert (figures["signatures_bad"], figures["superseded"]) == (1, 1)
    assert client.results == []
    good, frames = signed(grid, worker, job, lease, key)
    worker.report([good], frames)
    client.watch(lambda: client.results)
    assert client.ask("grid")["signatures_bad"] == 1


def test_a_signature_is_of_one_attempt(grid):
    key = SigningKey.generate()
    worker = grid.worker(node=key.verify_key.encode().hex())
    worker.hello()
    client, job = leased(grid, worker)
    lease, _ = worker.leases.pop()
    other = msgspec.structs.replace(lease, attempt=lease.attempt + 1)
    bad, frames = signed(grid, worker, job, other, key)
    worker.report([bad], frames)
    grid.until(lambda: worker.take(0.01) and worker.acked == bad.number, "it is acked")
    assert client.ask("grid")["signatures_bad"] == 1 and client.results == []


@pytest.mark.parametrize("is_signing", [True, False])
def test_a_contribution_has_all_of_its_receipt_and_the_brokers_signature(grid, is_signing):
    key = SigningKey.generate()
    node = key.verify_key.encode().hex()
    worker = grid.worker(node=node)
    worker.hello()
    client, job = leased(grid, worker)
    lease, _ = worker.leases.pop()
    head, frames = signed(grid, worker, job, lease, key)
    if not is_signing:
        head = msgspec.structs.replace(head, signature=b"")
    worker.report([head], frames)
    client.watch(lambda: client.results)
    peer = grid.ledger_peer
    mine = lambda: [e for e in peer.entries if isinstance(e, Contribution)]  # noqa: E731
    grid.until(mine, "the contribution")
    (entry,) = mine()
    receipt = receipts.receipt_in(entry)
    assert receipts.is_signed(receipt, entry.signature, node) == is_signing
    assert (entry.signed_wall_us, entry.signed_cpu_us) == (head.wall_us, head.cpu_us)
    assert entry.work == bytes.fromhex(worker.openings[job].spec.function)
    assert entry.memory_bytes == worker.openings[job].spec.limits.memory_bytes
    public = load_key(grid.state / BROKER_KEY).verify_key.encode().hex()
    assert receipts.is_countersigned(entry, public)
    for field in entry.__struct_fields__:
        value = getattr(entry, field)
        other = value + 1 if isinstance(value, int) else value + value or b"x"
        changed = msgspec.structs.replace(entry, **{field: other})
        assert not receipts.is_countersigned(changed, public), field


def test_a_result_without_a_lease_is_superseded(grid):
    worker = grid.worker()
    worker.hello()
    client, _ = leased(grid, worker)
    lease, _ = worker.leases.pop()
    heads, bodies = worker.heads(lease)
    forged = [msgspec.structs.replace(heads[0], lease_id=lease.lease_id + 1)]
    worker.report(forged, bodies[:4])
    grid.until(lambda: worker.take(0.01) and worker.acked == forged[0].number, "it is acked")
    assert client.ask("grid")["superseded"] == 1 and client.results == []


def test_a_flood_of_forged_results_fills_neither_the_log_nor_the_journal(grid):
    worker = grid.worker()
    worker.hello()
    client, job = leased(grid, worker)
    lease, _ = worker.leases[0]
    heads, bodies = worker.heads(lease)
    flood, each = 1_000, 50
    number = heads[0].number
    for first in range(number, number + flood, each):
        forged = [
            msgspec.structs.replace(heads[0], lease_id=lease.lease_id + 1, number=first + i)
            for i in range(each)
        ]
        worker.report(forged, bodies[:4] * each)
    last = number + flood - 1
    grid.until(lambda: worker.take(0.01) and worker.acked == last, "all are acked")
    assert client.ask("grid")["superseded"] == flood and client.results == []
    assert 4 <= grid.text().count("result.refused") <= 12
    grid.kill()
    with contextlib.closing(sqlite3.connect(grid.state / "journal.db")) as db:
        rows = db.execute("SELECT job FROM events WHERE name = 'result.refused'").fetchall()
    assert 4 <= len(rows) <= 12 and set(rows) == {(job,)}


def test_a_lost_workers_leases_go_to_another(broker):
    broker.ledger().start()
    broker.start(worker_ttl_ms=400, worker_report_ms=100)
    silent = broker.worker("silent")
    silent.hello()
    client, job = leased(broker, silent, 50)
    busy = broker.worker("busy")
    busy.hello()
    busy.start()
    card = client.finish(job)
    assert (card.state, card.done) == ("done", 50)
    silent.report(is_full=True)
    broker.until(lambda: silent.take(0.01) is None or silent.refusals, "REJOIN")
    assert silent.refusals[-1].code == "REJOIN"


def test_an_operator_drains_a_worker(grid):
    worker = grid.worker("w7")
    worker.hello()
    client = grid.client()
    refused = client.call(wc.DrainWorker, "nobody")
    assert refused.code == "INVALID_SPEC" and "w7" in refused.message
    assert isinstance(client.call(wc.DrainWorker, "w7"), wc.Answer)
    number = worker.report(is_full=True)
    message = grid.until(
        lambda: (m := worker.take(0.01)) and m.answers == number and m, "the answer"
    )
    assert message.is_drain
    assert client.ask("workers", list[wc.WorkerRow])[0].state == "draining"


def test_openings_and_closes_that_were_lost_are_said_again(grid):
    worker = grid.worker()
    worker.hello()
    _, job = leased(grid, worker)
    opening = worker.openings.pop(job)
    mark = ww.grants_mark(opening)

    def told(mark, is_heard):
        worker.report(is_full=True, open_jobs=[(job, mark)])
        while worker.take() is not None:
            pass
        return is_heard()

    for _ in range(3):
        assert not told(mark, lambda: worker.openings)
    grid.until(lambda: told(mark ^ 1, lambda: job in worker.openings), "its grants again")
    assert worker.openings[job] == opening and worker.functions[job]
    grid.until(lambda: (worker.take(), worker.work_off(), worker.closed)[2], "the close")
    worker.closed.clear()
    grid.until(lambda: told(mark, lambda: job in worker.closed), "the close again")
