"""Large objects: once over the wire for each node, around the broker, and shared by all slots."""

import ast
import functools
import pathlib
import re
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import numpy
import pytest

from gristmill.cli.grid import Grid
from gristmill.client import Client, EncodingFailed, Ref, StoreFailed, UnpicklableError
from gristmill.wire.ids import digest_of

MIB = 1 << 20


def store_counts(log: pathlib.Path) -> dict[str, int]:
    """What a store that ended says that it did."""
    found = re.findall(r"ends: (\{.*\})", log.read_text())
    counts: dict[str, int] = ast.literal_eval(found[-1])
    return counts


def journal_bytes(grid: Grid) -> int:
    return sum(path.stat().st_size for path in (grid.state / "broker").glob("journal.db*"))


def broker_peak_kib(grid: Grid) -> int:
    status = pathlib.Path(f"/proc/{grid.pid('broker')}/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+)", status)[0])


def test_one_object_for_a_thousand_subtasks_crosses_the_wire_once_for_each_node(
    sized: Callable[[int, int], int], figures: Callable[..., None]
) -> None:
    size = sized(24, 100) * MIB
    plain = numpy.arange(20 * MIB // 8)  # more than a worker keeps in memory
    table = numpy.random.default_rng(1).integers(0, 1 << 40, size // 8)
    with tempfile.TemporaryDirectory(prefix="gm-") as folder:
        with Grid(pathlib.Path(folder, "s"), pathlib.Path(folder, "r"), workers=2, slots=3) as grid:
            before_kib = broker_peak_kib(grid)
            with Client(grid.address, timeout=30) as client:
                ref = client.put(table)
                assert client.put(table.copy()) == ref  # the same bytes: nothing is sent
                # Inputs, a captured value, and 6 slots that ask at the same moment.
                pairs = client.map(
                    lambda pair: int(pair[0][pair[1]]),
                    ((ref, at) for at in range(1000)),
                    tier="batch",
                )
                assert list(pairs) == table[:1000].tolist()
                captured = client.map(lambda at: int(ref[at]), range(1000), tier="batch")
                assert list(captured) == table[:1000].tolist()
                nodes = {
                    row.node
                    for job in (pairs.job, captured.job)
                    for row in client.subtasks(job, 0, 1000)
                }
                # The same without a ref: each parcel names the blob, which is there by then.
                totals = client.map(lambda array: int(array[-1]), [plain] * 6, tier="batch")
                assert list(totals) == [plain.size - 1] * 6
                takers = {row.node for row in client.subtasks(totals.job, 0, 6)}
                counted = client.grid()
            peak_kib = broker_peak_kib(grid) - before_kib
            journal = journal_bytes(grid)
        counts = store_counts(grid.log("store"))
    figures(
        object_bytes=size,
        store_bytes_taken=counts["bytes_taken"],
        store_bytes_sent=counts["bytes_sent"],
        nodes=len(nodes),
        plain_bytes=plain.nbytes,
        plain_nodes=len(takers),
        broker_parcel_bytes=counted["parcel_bytes"],
        broker_result_bytes=counted["result_bytes"],
        broker_peak_kib=peak_kib,
    )
    assert counts["PUT"] == 2 and counts["bytes_taken"] < size + plain.nbytes + 10_000
    assert counts["GET"] == len(nodes) + len(takers)
    sent = len(nodes) * size + len(takers) * plain.nbytes
    assert sent <= counts["bytes_sent"] < sent + 10_000
    assert counted["parcel_bytes"] < MIB and counted["result_bytes"] < MIB
    assert journal < 8 * MIB and peak_kib < size >> 10


@pytest.mark.parametrize("tier", ["job", "batch"])
def test_a_ref_is_the_object_wherever_it_stands(client: Client, tier: Any) -> None:
    """In a list, in a keyword, captured by a partial, as a whole input."""
    table, names = client.put(numpy.arange(1000)), client.put({"one": [1]})
    assert list(client.map(lambda value: value["one"], [names] * 3, tier=tier)) == [[1]] * 3

    def add(at: int, table: Any, scale: int) -> int:
        return int(table[at]) * scale

    found = client.map(functools.partial(add, table=table, scale=2), [1, 2], tier=tier)
    assert list(found) == [2, 4]
    submit = client.with_options(tier=tier).submit
    assert submit(add, 3, table=table, scale=1).result(30) == 3
    deep = submit(lambda box: int(box["in"][0][7]), {"in": [table]})
    assert deep.result(30) == 7
    # What is shared is nobody's to change; a copy is.
    assert list(client.map(lambda array: array.flags.writeable, [table], tier=tier)) == [False]

    def write(array: Any) -> int:
        mine = array.copy()
        mine[0] = 5
        return int(mine[0])

    assert list(client.map(write, [table], tier=tier)) == [5]


def test_no_slot_can_change_what_it_shares(grid: Grid, client: Client) -> None:
    ref = client.put(numpy.zeros(1000))

    def attack(array: Any) -> list[str]:
        """Every way from the mapping back to its file."""
        import ctypes
        import mmap
        import os

        refusals = []
        root = array
        while not isinstance(root, mmap.mmap):
            root = root.obj if isinstance(root, memoryview) else root.base
        with open("/proc/self/maps") as maps:
            lines = [line for line in maps if line.split()[1].startswith("r--s")]
        start = int(lines[-1].partition("-")[0], 16)
        if ctypes.CDLL(None, use_errno=True).mprotect(ctypes.c_void_p(start), 4096, 3) != 0:
            refusals.append("mprotect")
        for fd in os.listdir("/proc/self/fd"):
            target = f"/proc/self/fd/{fd}"
            try:
                what = os.readlink(target)
            except OSError:
                continue
            if "memfd:shared" not in what and "/cache/" not in what:
                continue
            try:
                os.fchmod(int(fd), 0o777)
            except OSError:
                refusals.append("chmod")
            try:
                os.pwrite(os.open(target, os.O_RDWR), b"evil", 4000)
            except OSError:
                refusals.append("write")
        return refusals

    for tier in ("job", "batch"):
        (refusals,) = client.map(attack, [ref], tier=tier)
        assert "mprotect" in refusals, refusals
        (clean,) = client.map(lambda array: not array.any(), [ref], tier="strict")
        assert clean


def test_bad_use_is_told(client: Client) -> None:
    ref = client.put([1, 2])
    assert client.get(ref) == [1, 2]
    with pytest.raises(TypeError, match=r"client\.get\(ref\) gives it"):
        ref[0]  # type: ignore[index]
    with pytest.raises(TypeError, match=r"client\.get\(ref\) gives it"):
        list(client.map(len, ref))  # type: ignore[arg-type]
    with pytest.raises(AttributeError, match="stands for an object that subtasks get"):
        ref.append(3)
    with pytest.raises(TypeError, match="in the store already"):
        client.put(ref)
    with pytest.raises(TypeError, match="needs a Ref that put gave"):
        client.get("ab" * 32)  # type: ignore[arg-type]
    with pytest.raises(UnpicklableError, match="the object to share, a lock"):
        client.put(threading.Lock())
    lost = Ref(digest_of(b"never put"), 9)
    for tier in ("job", "batch"):
        with pytest.raises(StoreFailed, match="BLOB_MISSING"):
            list(client.map(len, [lost], tier=tier))
        with pytest.raises(StoreFailed, match="BLOB_MISSING"):
            list(client.map(lambda _: lost[0], [1], tier=tier))  # type: ignore[index]
    plain = Ref(client.store_blob(b"some bytes that are no object").digest, 29)
    with pytest.raises(EncodingFailed, match="no shared object"):
        list(client.map(len, [plain]))
