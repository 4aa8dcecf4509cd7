"""Parsl: the HighThroughputExecutor with a block of this machine.

- prefetch_capacity 100: tasks wait at the node, not at the interchange; "when there are a few tasks
  (<100) or when tasks are long running, this option should be set to 0"
  (https://parsl.readthedocs.io/en/stable/stubs/parsl.executors.HighThroughputExecutor.html).
- not encrypted, no log of the kernel, strategy "none": each costs time
  (https://parsl.readthedocs.io/en/stable/userguide/configuration/executors/htex.html#encryption,
  https://parsl.readthedocs.io/en/stable/stubs/parsl.config.Config.html).
- Parsl batches nothing by itself ("chunksize: this parameter is ignored", parsl.concurrent):
  batched is one app for a list of 1,000, made by hand.
"""

from typing import Any

import parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider
from stage import PAYLOAD_CHUNK, Contender, flat, in_chunks, no_op, no_ops, serve


class Parsl(Contender):
    """The interchange and the pool of worker processes are below this process."""

    packages = ("parsl", "pyzmq")

    def start(self, slots: int, scratch: str) -> None:
        executor = HighThroughputExecutor(
            label="htex",
            address="127.0.0.1",
            max_workers_per_node=slots,
            cores_per_worker=1,
            prefetch_capacity=100,
            encrypted=False,
            provider=LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1),
        )
        self.kernel = parsl.load(
            Config(
                executors=[executor], strategy="none", usage_tracking=0,
                run_dir=f"{scratch}/runinfo", initialize_logging=False,
            )
        )  # fmt: skip
        self.no_op, self.no_ops = parsl.python_app(no_op), parsl.python_app(no_ops)
        self.each(list(range(100)))

    def stop(self) -> None:
        self.kernel.cleanup()

    def batched(self, values: list[Any]) -> list[Any]:
        futures = [self.no_ops(chunk) for chunk in in_chunks(values)]
        return flat(future.result() for future in futures)

    def each(self, values: list[Any]) -> list[Any]:
        return [future.result() for future in [self.no_op(value) for value in values]]

    def payload(self, values: list[Any]) -> list[Any]:
        futures = [self.no_ops(chunk) for chunk in in_chunks(values, PAYLOAD_CHUNK)]
        return flat(future.result() for future in futures)

    def one(self, value: Any) -> Any:
        return self.no_op(value).result()


if __name__ == "__main__":
    serve(Parsl())
