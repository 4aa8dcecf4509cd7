"""The runtime's own cost: zero-work workers, and what durability, receipts, telemetry and keys add.

First the study of Böhm and Beránek (*Runtime vs Scheduler*, 2020): workers that run nothing, so
that time and CPU are the runtime's alone, for growing numbers of subtasks and workers. Then, with
real jails, everything on beside the same with one part off. Off by a switch of the product: results
that do not wait for their commit (``durable=False``), no jail (tier ``trusted``). Off by other
means: the grid's state in memory (``/dev/shm``: the disk's part of durability). What cannot be
switched off is done alone: signing and checking a receipt for each result, reading the clock and
packing the meter for each subtask. Keys are on in a grid of its own, whose client and worker come
over TCP with CURVE; the others are reached by ipc, without.
"""

import pathlib
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from typing import Any

import nacl.signing
from harness import floor
from harness.light import Fleet
from harness.measure import Runs, arguments
from harness.ours import measured_map

from gristmill.cli.grid import Grid
from gristmill.client import Client, Options
from gristmill.wire.meter import Meter, pack_meter, unpack_meter
from gristmill.wire.outcome import Outcome
from gristmill.wire.receipts import is_signed, receipt_of, sign_receipt
from gristmill.wire.spec import JobSpec, Tariff
from gristmill.wire.worker import ResultHead

MEMORY = pathlib.Path("/dev/shm")
SLOTS = 2


def zero_work(options: Any, runs: Runs) -> None:
    """Runtime alone, for each number of workers and subtasks."""
    for workers in options.workers:
        with (
            Grid.temporary(workers=0) as grid,
            Client(grid.address) as client,
            Fleet(grid.back, workers, processes=min(2, workers)),
        ):
            measured_map(client, floor.no_op, list(range(1_000)), tier="batch")
            for count in options.sizes:
                for _ in range(options.rounds):
                    figures = measured_map(client, floor.no_op, list(range(count)), tier="batch")
                    cpu = figures["cpu_us_by_role"]
                    ours = sum(cpu.get(role, 0.0) for role in ("broker", "client", "ledger"))
                    each = 1e6 * figures["seconds"] / count
                    runs.add(
                        f"{workers} zero-work workers", n=count, workers=workers, wall_us=each,
                        runtime_cpu_us=ours, **figures,
                    )  # fmt: skip
            assert client.balance().sum_ucredits == client.grid()["signatures_bad"] == 0


def parts(options: Any, runs: Runs) -> float:
    """Everything on, and each switch off, in turn; results to a subtask."""
    values: list[Any] = [(index, "abc") for index in range(options.n)]
    tiers = ("batch", "trusted")
    folder = pathlib.Path(tempfile.mkdtemp(prefix="gristmill-memory-", dir=MEMORY))
    ways: tuple[tuple[str, str, Options], ...] = (
        ("everything on", "disk", {"tier": "batch"}),
        ("results not durable", "disk", {"tier": "batch", "durable": False}),
        ("state in memory", "memory", {"tier": "batch"}),
        ("both", "memory", {"tier": "batch", "durable": False}),
        ("no jail", "disk", {"tier": "trusted"}),
        ("keys, over TCP", "keys", {"tier": "batch"}),
    )
    ports = [f"tcp://127.0.0.1:{_free_port()}" for _ in range(2)]
    try:
        with (
            Grid.temporary(workers=1, slots=SLOTS, tiers=tiers) as disk,
            Grid(folder / "state", folder / "run", workers=1, slots=SLOTS, tiers=tiers) as memory,
            Grid.temporary(workers=1, slots=SLOTS, front=ports[0], back=ports[1]) as keyed,
            Client(disk.address) as disk_client,
            Client(memory.address) as memory_client,
            Client(keyed.address, token=keyed.token("local"), trust="fleet") as keyed_client,
        ):
            clients = {"disk": disk_client, "memory": memory_client, "keys": keyed_client}
            for _, grid, switches in ways:
                measured_map(clients[grid], floor.no_op, values[:1_000], **switches)
            results = disk_client.grid()["results_kept"]
            for _ in range(options.rounds):
                for what, grid, switches in ways:
                    figures = measured_map(clients[grid], floor.no_op, values, **switches)
                    runs.add(what, n=options.n, **figures)
            kept = disk_client.grid()["results_kept"] - results
            assert disk_client.balance().sum_ucredits == 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    on_disk = sum(grid == "disk" for _, grid, _ in ways)
    return float(kept / (options.n * options.rounds * on_disk))


def _free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def alone(runs: Runs, options: Any, results_each: float) -> None:
    """What has no switch, done alone; us of a subtask."""
    key = nacl.signing.SigningKey.generate()
    node = key.verify_key.encode().hex()
    count = max(1, round(1 / results_each))
    head = ResultHead(
        1, 1 << 40, 1, 0, count, "q", 20_000, 19_000, 9_000, "cgroup", True, b""
    )  # fmt: skip
    frames = (b"v" * 11 * count, pack_meter(count, Outcome.OK, [20] * count), b"", b"")

    spec = JobSpec("function", function="0" * 64)

    def receipts() -> None:
        receipt = receipt_of("b" * 16, head, frames, 1, spec, Tariff())
        assert is_signed(receipt, sign_receipt(receipt, key), node)

    clock = time.perf_counter_ns

    def with_clock() -> list[int]:
        walls: list[int] = []
        add, before = walls.append, clock()
        for _ in range(count):
            now = clock()
            add(now - before)
            before = now
        return walls

    def without() -> None:
        for _ in range(count):
            pass

    def telemetry() -> None:
        frame = pack_meter(count, Outcome.OK, [wall // 1_000 for wall in with_clock()])
        meter = unpack_meter(frame, count)
        assert isinstance(meter, Meter) and meter.count == count

    empty = _each_us(without, options.alone) / count
    runs.add("receipts alone", cpu_us=_each_us(receipts, options.alone) / count, items=count)
    cpu_us = _each_us(telemetry, options.alone) / count - empty
    runs.add("telemetry alone", cpu_us=cpu_us, items=count)


def _each_us(call: Callable[[], object], seconds: float) -> float:
    """CPU us of one call."""
    call()
    calls, began, cpu = 0, time.perf_counter(), time.process_time()
    while not calls or time.perf_counter() - began < seconds:
        call()
        calls += 1
    return (time.process_time() - cpu) * 1e6 / calls


def main() -> None:
    """Zero work, then parts."""
    options = arguments(
        __doc__ or "",
        quick={"sizes": (1_000,), "workers": (2,), "n": 2_000, "rounds": 1, "alone": 0.01},
        sizes=(1_000, 10_000, 100_000, 1_000_000), workers=(1, 8, 64), n=500_000, rounds=3,
        alone=0.5,
    )  # fmt: skip
    runs = Runs("overhead", vars(options))
    zero_work(options, runs)
    results_each = parts(options, runs)
    alone(runs, options, results_each)
    top = max(options.sizes)
    summary: dict[str, float] = {}
    for workers in options.workers:
        for figure in ("wall_us", "runtime_cpu_us"):
            cost = runs.median(f"{workers} zero-work workers", figure, n=top)
            summary[f"zero_work_{workers}_workers_{figure}"] = round(cost, 3)
    on = {figure: runs.median("everything on", figure) for figure in ("rate", "cpu_us")}
    bare_cpu = on["cpu_us"]
    for what in ("results not durable", "state in memory", "both", "no jail"):
        name = what.replace(" ", "_")
        rate, cpu_us = runs.median(what, "rate"), runs.median(what, "cpu_us")
        summary[f"{name}_wall_percent"] = round(100 * (rate / on["rate"] - 1), 1)
        summary[f"{name}_cpu_percent"] = round(100 * (on["cpu_us"] / cpu_us - 1), 1)
        if what == "both":  # what durability costs
            bare_cpu = min(bare_cpu, cpu_us)
    for part in ("receipts", "telemetry"):
        cpu_us = runs.median(f"{part} alone", "cpu_us")
        summary[f"{part}_cpu_us"] = round(cpu_us, 3)
        summary[f"{part}_cpu_percent"] = round(100 * cpu_us / (on["cpu_us"] - cpu_us), 1)
        bare_cpu -= cpu_us
    keys = {figure: runs.median("keys, over TCP", figure) for figure in ("rate", "cpu_us")}
    summary["keys_wall_percent"] = round(100 * (on["rate"] / keys["rate"] - 1), 1)
    summary["keys_cpu_percent"] = round(100 * (keys["cpu_us"] / on["cpu_us"] - 1), 1)
    most = max(keys["cpu_us"], on["cpu_us"])  # keys cost nothing less than nothing: that is noise
    summary["together_cpu_percent"] = round(100 * (most / bare_cpu - 1), 1)
    runs.finish(**summary)


if __name__ == "__main__":
    main()
