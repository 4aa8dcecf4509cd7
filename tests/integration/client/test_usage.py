"""Bills of several tenants: an operator sees every tenant's, a tenant its own."""

import time
from collections.abc import Iterator

import pytest
from grid_rig import free_port

from gristmill.cli.grid import Grid
from gristmill.client import Client
from gristmill.client.errors import GridError
from gristmill.wire.client import UsageRow
from gristmill.wire.receipts import work_of

SPLITS = ("tenant", "tenant,day", "node,tenant", "day,tenant,node", "job,tenant,node,day")


def twice(value: int) -> int:
    return 2 * value


@pytest.fixture(scope="module")
def shared() -> Iterator[Grid]:
    options = {"ledger": ["--fund", "ann=100000"]}
    front = f"tcp://127.0.0.1:{free_port()}"
    with Grid.temporary(workers=1, slots=2, front=front, options=options) as grid:
        yield grid


@pytest.fixture(scope="module")
def local(shared: Grid) -> Iterator[Client]:
    with Client(shared.address, token=shared.token(is_operator=True), trust="fleet") as client:
        yield client


@pytest.fixture(scope="module")
def ann(shared: Grid) -> Iterator[Client]:
    with Client(shared.address, token=shared.token("ann"), trust="fleet") as client:
        yield client


def total(rows: list[UsageRow]) -> tuple[int, int]:
    return sum(row.subtasks for row in rows), sum(row.amount_ucredits for row in rows)


def test_who_sees_which_bill(local: Client, ann: Client) -> None:
    own, hers = local.map(twice, range(30)), ann.map(twice, range(50))
    assert sum(own) + sum(hers) == 2 * (sum(range(30)) + sum(range(50)))
    deadline = time.monotonic() + 20
    while total(local.usage(by="tenant"))[0] < 80:
        assert time.monotonic() < deadline, "both are billed"
        time.sleep(0.05)
    rows = {row.key: row for row in local.usage(by="tenant")}
    assert {name: row.subtasks for name, row in rows.items()} == {"local": 30, "ann": 50}
    assert len({total(local.usage(by=by)) for by in SPLITS}) == 1, "one total, however split"
    assert total(local.usage(by="day", everyone=True))[0] == 80
    assert total(local.usage(by="day"))[0] == 30, "an operator's own bill, unless asked"

    assert {tuple(row.keys) for row in ann.usage(by="tenant")} == {("ann",)}
    assert all(total(ann.usage(by=by))[0] == 50 for by in SPLITS)
    with pytest.raises(GridError, match="ann is no operator") as caught:
        ann.usage(by="node", everyone=True)
    assert caught.value.code == "FORBIDDEN"
    with pytest.raises(GridError, match="not some of tenant, node, job, day"):
        ann.usage(by="moon")


def test_terms_and_history_are_a_tenants_own(local: Client, ann: Client) -> None:
    values = local.map(twice, range(10), memory="512M")
    assert list(values) == [2 * x for x in range(10)]
    job = local.wait(values.job).job
    terms = local.terms(job)
    assert terms.spec.limits.memory_bytes == 512 << 20
    assert terms.tariffs == local.tariffs() == ann.tariffs()
    work = work_of(terms.spec).hex()
    assert local.history(work)[0].job == job
    assert [card.job for card in local.history(work, limit=1)] == [job]
    assert local.history("00" * 32) == []
    assert all(card.tenant == "ann" for card in ann.history(work))
    with pytest.raises(GridError) as caught:
        ann.terms(job)
    assert caught.value.code == "UNKNOWN_JOB"
    with pytest.raises(GridError, match="must be 64 hex digits"):
        local.history("no digest")
