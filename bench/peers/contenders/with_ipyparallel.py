"""ipyparallel: a Cluster of a controller and engines on this machine.

- the scheme "pure": "for maximum throughput, the 'pure' scheme is not Python at all, but a C-level
  MonitoredQueue"; it gives up retries and engines that come and go, and refuses all work when one
  seems to have gone, as on a busy machine: then hwm 0 ("minimal latency"), named in the versions.
  The hub keeps no database
  (https://ipyparallel.readthedocs.io/en/latest/tutorial/task.html#pure-zmq-scheduler).
- batched and payload: a DirectView's map, which scatters one part to each engine
  (https://ipyparallel.readthedocs.io/en/latest/tutorial/direct.html#parallel-map): faster here than
  a LoadBalancedView's in chunks of 1,000, and as static as it sounds.
- each: a LoadBalancedView's map with chunks of 1
  (https://ipyparallel.readthedocs.io/en/latest/tutorial/task.html#parallel-map).
"""

import os
import traceback
from typing import Any

import ipyparallel
from stage import Contender, no_op, serve

START_S = 30


class IPyParallel(Contender):
    """Controller, schedulers and engines are processes below this one."""

    packages = ("ipyparallel", "pyzmq")

    def start(self, slots: int, scratch: str) -> None:
        os.environ["IPYTHONDIR"] = f"{scratch}/ipython"
        self.scheme = "pure"
        try:
            self._start(slots, "--scheme=pure")
        except Exception:
            traceback.print_exc()
            self.cluster.stop_cluster_sync()
            self.scheme = "leastload, hwm 0"
            self._start(slots, "--TaskScheduler.hwm=0")

    def _start(self, slots: int, scheme: str) -> None:
        self.cluster = ipyparallel.Cluster(
            n=slots, controller_args=[scheme, "--nodb"], log_level=40
        )
        self.client = self.cluster.start_and_connect_sync()
        self.client.wait_for_engines(slots, timeout=START_S)
        self.view, self.direct = self.client.load_balanced_view(), self.client[:]
        self.each(list(range(100)))

    def stop(self) -> None:
        self.client.close()
        self.cluster.stop_cluster_sync()

    def versions(self) -> dict[str, str]:
        return {**super().versions(), "scheme": self.scheme}

    def batched(self, values: list[Any]) -> list[Any]:
        return self._fetched(self.direct.map_sync(no_op, values))

    def each(self, values: list[Any]) -> list[Any]:
        return self._fetched(self.view.map_sync(no_op, values, chunksize=1, ordered=True))

    def payload(self, values: list[Any]) -> list[Any]:
        return self._fetched(self.direct.map_sync(no_op, values))

    def _fetched(self, results: list[Any]) -> list[Any]:
        """The client keeps a copy of every result until it is told not to."""
        self.client.purge_local_results("all")
        return results

    def one(self, value: Any) -> Any:
        return self.view.apply_sync(no_op, value)


if __name__ == "__main__":
    serve(IPyParallel())
