"""A06: the ledger is away under load; its spool is full; nothing is dropped, tallies come right."""

from collections.abc import Callable

from chaos_client_rig import doubled
from grid_rig import SECONDS, until

from gristmill.cli.grid import Grid
from gristmill.client import Client

SPOOL_ROWS = 20


def held_credits(client: Client) -> int:
    return sum(row.held_ucredits for row in client.balance().accounts)


def test_a_full_spool_pauses_new_jobs_by_name_and_drops_no_receipt(
    figures: Callable[..., None],
) -> None:
    settings = {"GRISTMILL_BROKER_OUTBOX_ROWS_MAX": f"{SPOOL_ROWS}"}
    with (
        Grid.temporary(workers=1, slots=1, environment=settings) as grid,
        Client(grid.address, warn=lambda line: None) as client,
    ):
        spec = client.make_spec(doubled, tier="job", cap=10)
        # 20 ms each: the ledger goes in the middle of it
        slow = client.make_spec(lambda number: doubled(number, 0.02), tier="job", cap=10)
        running = client.post(*slow, range(120))
        until("it runs", lambda: running.status().done > 0)
        held = client.post(*spec, range(5))  # its credits are held; not one of it may start
        client.pause(held)
        until("both holds are granted", lambda: held_credits(client) > 15_000_000)
        grid.kill("ledger")
        until("the spool is full", lambda: client.grid()["outbox"] >= SPOOL_ROWS)
        spooled = client.grid()["outbox"]
        client.resume(held)
        told = until(
            "the pause has its name",
            lambda: (
                (reason := held.status().reason).startswith("LEDGER_DOWN: the spool") and reason
            ),
        )
        assert running.wait(SECONDS).done == 120, "what has begun runs to its end"
        assert held.status().done == 0, told
        most = client.grid()["outbox"]
        assert most > SPOOL_ROWS, "over the cap receipts are kept all the same"
        grid.restart("ledger")
        assert held.wait(SECONDS).done == 5, "it starts by itself"
        bills = [job.bill(SECONDS) for job in (running, held)]
        assert [bill.subtasks for bill in bills] == [120, 5]
        for job, bill in zip((running, held), bills, strict=True):
            assert bill.amount_ucredits == job.status().spent_ucredits
        assert client.balance().sum_ucredits == 0
        figures(spool_cap=SPOOL_ROWS, spooled=max(spooled, most), dropped=0)
