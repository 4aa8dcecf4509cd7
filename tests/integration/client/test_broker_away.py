"""The broker is killed while a client waits."""

import threading

from gristmill.cli.grid import Grid
from gristmill.client import Client


def test_a_map_goes_on_when_the_broker_is_back() -> None:
    told: list[str] = []
    with (
        Grid.temporary(workers=1, slots=2) as grid,
        Client(grid.address, timeout=10, warn=told.append) as client,
    ):
        values = client.map(lambda n: n * 2, range(400), chunk=20)
        read = [next(values)]
        reader = threading.Thread(target=lambda: read.extend(values))
        grid.kill("broker")
        reader.start()
        grid.restart("broker")
        reader.join(60)
        assert read == [n * 2 for n in range(400)]
        assert client.wait(values, timeout=20).done == 400
        future = client.submit(abs, -5)
        assert future.result(30) == 5
