"""Dask distributed on a LocalCluster of processes.

- processes=True with one thread each: the tasks hold the GIL
  (https://docs.dask.org/en/stable/deploying-python.html).
- worker-saturation 2.0: "if your tasks are extremely fast ... consider increasing; values above 2.0
  usually have little benefit"
  (https://distributed.dask.org/en/stable/scheduling-policies.html#adjusting-or-disabling-queuing).
- batched: a task for a list of 1,000: "make your tasks bigger (via larger chunksizes, or batching
  more work into single Dask tasks)" (the same page). A Dask Bag in partitions of 1,000 was slower.
- payload: lists that were scattered, not in the graph
  (https://distributed.dask.org/en/stable/locality.html#data-scatter).
- pure=False: no hash of every input
  (https://distributed.dask.org/en/stable/client.html#pure-functions-by-default).
"""

from typing import Any

import dask
from distributed import Client, LocalCluster
from stage import PAYLOAD_CHUNK, Contender, flat, in_chunks, no_op, no_ops, serve


class Dask(Contender):
    """Scheduler in this process, a nanny and a worker process for each slot."""

    packages = ("dask", "distributed")

    def start(self, slots: int, scratch: str) -> None:
        dask.config.set({"distributed.scheduler.worker-saturation": 2.0})
        self.cluster = LocalCluster(
            n_workers=slots,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
            local_directory=scratch,
            memory_limit=0,
        )
        self.client = Client(self.cluster)
        self.each(list(range(100)))

    def stop(self) -> None:
        self.client.close()
        self.cluster.close()

    def batched(self, values: list[Any]) -> list[Any]:
        return flat(self.client.gather(self.client.map(no_ops, in_chunks(values), pure=False)))

    def each(self, values: list[Any]) -> list[Any]:
        return self.client.gather(self.client.map(no_op, values, pure=False))

    def payload(self, values: list[Any]) -> list[Any]:
        lists = self.client.scatter(in_chunks(values, PAYLOAD_CHUNK), hash=False)
        return flat(self.client.gather(self.client.map(no_ops, lists, pure=False)))

    def one(self, value: Any) -> Any:
        return self.client.submit(no_op, value, pure=False).result()


if __name__ == "__main__":
    serve(Dask())
