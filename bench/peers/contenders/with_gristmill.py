"""gristmill: a grid of this machine with one worker, as ``gristmill up`` starts it.

Everything is on: jails, durable jobs and results, telemetry, a bill for every item. Functions run
in tier ``batch``, programs in tier ``job``.
"""

from typing import Any

from stage import Contender, no_op, serve

from gristmill.cli.grid import Grid
from gristmill.client import Client


class Gristmill(Contender):
    """Ledger, store, broker, worker and its jails are processes below this one."""

    packages = ("gristmill", "pyzmq", "msgspec", "apsw")

    def start(self, slots: int, scratch: str) -> None:
        self.grid = Grid.temporary(workers=1, slots=slots).start()
        self.client = Client(self.grid.address)
        self.submitter = self.client.with_options(tier="batch")
        self.each(list(range(100)))

    def stop(self) -> None:
        self.client.close()
        self.grid.stop()

    def batched(self, values: list[Any]) -> list[Any]:
        return list(self.client.map(no_op, values, tier="batch"))

    def each(self, values: list[Any]) -> list[Any]:
        submit = self.submitter.submit
        return [future.result() for future in [submit(no_op, value) for value in values]]

    def payload(self, values: list[Any]) -> list[Any]:
        return list(self.client.map(no_op, values, tier="batch"))

    def programs(self, values: list[Any]) -> list[Any]:
        done = list(self.client.run(["/bin/true", "{}"], each=values, tier="job"))
        assert all(output.exit_code == 0 for output in done)
        return values[: len(done)]

    def one(self, value: Any) -> Any:
        return self.submitter.submit(no_op, value).result()


if __name__ == "__main__":
    serve(Gristmill())
