"""What a subtask costs, counted and not timed: messages, rows, bytes, collections.

A budget that is passed means that something is paid once more for each subtask, parcel or lease;
how long it takes is bench/'s to say.
"""

import gc
from collections.abc import Callable

from gristmill.cli.grid import Grid
from gristmill.client import Client

COUNT = 100_000


def test_a_map_keeps_its_budgets(figures: Callable[..., None]) -> None:
    with Grid.temporary(workers=1, slots=2) as grid, Client(grid.address) as client:
        values = [(number, "abc") for number in range(COUNT)]
        list(client.map(lambda value: value, values[:5_000], tier="batch"))  # the jails are there
        before, collected = client.grid(), gc.get_stats()[0]["collections"]
        assert list(client.map(lambda value: value, values, tier="batch")) == values
        collected = gc.get_stats()[0]["collections"] - collected
        after = client.grid()
    spent = {name: after[name] - before[name] for name in after if name in COUNTED}
    figures(**spent, collections=collected)
    parcels, leases, results = (spent[n] for n in ("parcels_kept", "leases", "results_kept"))
    assert parcels <= COUNT // 4_000 + 4, "parcels of 4,000, and a few small ones first"
    assert spent["front_messages"] <= parcels + 20, "a parcel is one message; credit is rare"
    assert results <= leases + parcels, "what of a lease is contiguous is one result"
    assert spent["outbox_added"] <= results + 4, "a result is one line on the bill"
    assert spent["reports"] <= 2 * results + 100, "results of one turn travel in one report"
    assert spent["rows_committed"] <= parcels + 3 * results + 250, "and cards, as time goes by"
    assert spent["parcel_bytes"] <= 9 * COUNT and spent["result_bytes"] <= 13 * COUNT
    # Each value that comes back is one tuple more; the collector looks after 700 of them.
    assert collected <= 1.2 * COUNT / 700 + 20, "nothing else is made for each value"


def test_an_input_and_its_result_are_one_commit(figures: Callable[..., None]) -> None:
    each, rounds = 5, []
    with Grid.temporary(workers=1, slots=1) as grid, Client(grid.address) as client:
        submits = client.with_options(tier="batch")
        for _ in range(40):
            before = client.grid()["groups_committed"]
            for number in range(each):
                assert submits.submit(lambda value: value, number).result(timeout=60) == number
            rounds.append(client.grid()["groups_committed"] - before)
            if rounds[-1] <= each + 2:  # and acks of the ledger, as time goes by
                break
    figures(groups=rounds[-1], rounds=len(rounds))
    # A result that takes longer than an input waits has a commit of its own: not every time.
    assert min(rounds) <= each + 2, rounds


#: what is compared with a budget
COUNTED = frozenset(
    "front_messages reports leases parcels_kept results_kept outbox_added rows_committed"
    " parcel_bytes result_bytes".split()
)
