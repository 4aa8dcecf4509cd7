"""The order of the queue: explained while it waits, recomputed from the journal afterwards."""

import contextlib
import json
import pathlib
import sqlite3
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec
from grid_rig import gristmill, until

from gristmill.broker.core.turns import rank_of
from gristmill.cli.grid import Grid
from gristmill.client import Client
from gristmill.wire.client import JobStatus
from gristmill.wire.limits import LEASE_TARGET_US
from gristmill.wire.spec import JobSpec

CLOCKS_MS = 5  #: the core's clock and UTC are rounded apart


def nap(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def free_spec(client: Client, priority: int) -> tuple[JobSpec, bytes]:
    """The tenants of this test have no credits."""
    spec, function = client.make_spec(nap, tier="batch", priority=priority, timeout=30)
    return msgspec.structs.replace(spec, tariff="zero", count=1), function


class Fact(NamedTuple):
    """What the journal says of one job of one subtask."""

    job: int
    tenant: str
    priority: int
    submitted_ms: int
    started_ms: int
    lease: int
    charged_us: float
    ended_ms: int


def facts_of(file: pathlib.Path) -> list[Fact]:
    """Every job that ran, in the order in which they were handed out (leases are numbered)."""
    with contextlib.closing(sqlite3.connect(file)) as journal:
        rows = journal.execute(
            "SELECT j.job, j.tenant, j.spec, j.submitted_ms, s.status, r.lease_id, r.wall_us,"
            " r.ended_ms FROM jobs j JOIN job_states s USING(job) JOIN results r USING(job)"
        ).fetchall()
    facts = []
    for job, tenant, content, submitted_ms, card, lease, wall_us, ended_ms in rows:
        spec = msgspec.msgpack.decode(content, type=JobSpec)
        status = msgspec.msgpack.decode(card, type=JobStatus)
        charged_us = wall_us * spec.limits.cpus_milli / 1_000
        facts.append(
            Fact(
                job, tenant, spec.priority, submitted_ms, status.started_ms, lease, charged_us,
                ended_ms,
            )
        )  # fmt: skip
    return sorted(facts, key=lambda fact: fact.lease)


def replay(facts: list[Fact], is_fair: bool = True, is_ageing: bool = True) -> list[int]:
    """The order that the rule gives, from the facts alone: at each hand-out the lowest rank.

    A lease that is out is charged its target until its result says what it took. All tenants begin
    level here: they come while another one holds the slot.
    """
    tenants = list(dict.fromkeys(fact.tenant for fact in sorted(facts)))
    waiting, out, order = list(facts), list[Fact](), list[int]()
    for moment in [fact.started_ms for fact in facts]:
        share = dict.fromkeys(tenants, 0.0)
        for fact in out:
            is_over = fact.ended_ms <= moment + CLOCKS_MS
            share[fact.tenant] += fact.charged_us if is_over else LEASE_TARGET_US
        turn = min(
            (fact for fact in waiting if fact.submitted_ms <= moment + CLOCKS_MS),
            key=lambda fact: rank_of(
                share[fact.tenant] if is_fair else 0.0,
                tenants.index(fact.tenant) if is_fair else 0,
                fact.submitted_ms,
                fact.priority if is_ageing else 0,
                fact.job,
            ),
        )
        waiting.remove(turn)
        out.append(turn)
        order.append(turn.job)
    return order


def test_a23_the_order_of_the_queue_is_explained_and_follows_from_the_journal(
    own_grid: Callable[..., Grid], figures: Callable[..., None]
) -> None:
    """Three tenants, priorities, one slot: nobody is asked but the journal."""
    grid = own_grid()
    naps = {"ann": 0.3, "bob": 0.17, "local": 0.07}
    with contextlib.ExitStack() as stack:
        gate = stack.enter_context(Client(grid.address, tenant="gate"))
        clients = {t: stack.enter_context(Client(grid.address, tenant=t)) for t in naps}
        spec, function = free_spec(gate, 4)
        # Both leases of the slot: jobs that are not known to be long are stacked.
        held = [gate.post(spec, function, [seconds]) for seconds in (6.0, 3.0)]
        until("the slot is taken", lambda: all(job.status().leased for job in held))
        jobs = []
        for priority in (4, 4, 6, 2, 9):
            for tenant, seconds in naps.items():
                client = clients[tenant]
                spec, function = free_spec(client, priority)
                jobs.append(client.post(spec, function, [seconds]))
        shown = gristmill(grid, "why", jobs[-1].id).stdout
        document = json.loads(gristmill(grid, "why", jobs[-1].id, "--json").stdout)
        turns = [job.why().turn for job in jobs]
        assert held[0].status().leased, "the gate was too short for this machine"
        for job in jobs:
            assert job.wait(60).state == "done"
    assert all(turn is not None and turn.of == 15 for turn in turns), turns
    assert sorted(turn.ahead for turn in turns if turn) == list(range(15)), "one place for each"
    urgent = turns[-2]
    assert urgent and (urgent.priority, urgent.ahead) == (9, 5) and urgent.age_ms >= 0
    assert document["turn"]["ahead"] == 10 and document["turn"]["priority"] == 9
    assert "10 jobs come first, 15 wait; priority 9, fair share 0.0" in shown, shown
    facts = [f for f in facts_of(grid.state / "broker" / "journal.db") if f.tenant != "gate"]
    dispatched = [fact.job for fact in facts]
    assert len(dispatched) == 15
    assert replay(facts) == dispatched
    assert replay(facts, is_fair=False) != dispatched, "fair share decided something"
    assert replay(facts, is_ageing=False) != dispatched, "priority decided something"
    figures(jobs=len(facts), tenants=len(naps), out_of_order=0)
