"""Ray: a local cluster of ``ray.init``, remote functions.

- batched: one remote call for a list of 1,000: "if you have a function or task that's too small,
  you can use a technique called batching"
  (https://docs.ray.io/en/latest/ray-core/patterns/too-fine-grained-tasks.html).
- each: all calls first, one ``ray.get`` for all
  (https://docs.ray.io/en/latest/ray-core/patterns/ray-get-loop.html).
- num_cpus: room for as many tasks at a time; no dashboard, which is optional
  (https://docs.ray.io/en/latest/ray-core/api/doc/ray.init.html).
"""

import os
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would call home

import ray
from stage import PAYLOAD_CHUNK, Contender, flat, in_chunks, no_op, no_ops, serve

STORE_BYTES = 1 << 30


class Ray(Contender):
    """Its control store, raylet and workers are processes below this one."""

    packages = ("ray",)

    def start(self, slots: int, scratch: str) -> None:
        ray.init(
            num_cpus=slots,
            include_dashboard=False,
            object_store_memory=STORE_BYTES,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
            _temp_dir=scratch,
        )
        self.no_op, self.no_ops = ray.remote(no_op), ray.remote(no_ops)
        self.each(list(range(100)))

    def stop(self) -> None:
        ray.shutdown()

    def batched(self, values: list[Any]) -> list[Any]:
        return flat(ray.get([self.no_ops.remote(chunk) for chunk in in_chunks(values)]))

    def each(self, values: list[Any]) -> list[Any]:
        return ray.get([self.no_op.remote(value) for value in values])

    def payload(self, values: list[Any]) -> list[Any]:
        chunks = in_chunks(values, PAYLOAD_CHUNK)
        return flat(ray.get([self.no_ops.remote(chunk) for chunk in chunks]))

    def one(self, value: Any) -> Any:
        return ray.get(self.no_op.remote(value))


if __name__ == "__main__":
    serve(Ray())
