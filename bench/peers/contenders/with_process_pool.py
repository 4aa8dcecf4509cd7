"""concurrent.futures.ProcessPoolExecutor: ``map`` with chunks of 1,000, and a future for an item.

https://docs.python.org/3/library/concurrent.futures.html#concurrent.futures.Executor.map: "for very
long iterables, using a large value for chunksize can significantly improve performance".
"""

import concurrent.futures
import multiprocessing
import platform
from typing import Any

from stage import CHUNK, PAYLOAD_CHUNK, Contender, no_op, serve


class ProcessPool(Contender):
    """An executor of forked processes."""

    def start(self, slots: int, scratch: str) -> None:
        fork = multiprocessing.get_context("fork")
        self.pool = concurrent.futures.ProcessPoolExecutor(slots, mp_context=fork)
        list(self.pool.map(no_op, range(100)))

    def stop(self) -> None:
        self.pool.shutdown()

    def versions(self) -> dict[str, str]:
        return {"CPython": platform.python_version()}

    def batched(self, values: list[Any]) -> list[Any]:
        return list(self.pool.map(no_op, values, chunksize=CHUNK))

    def each(self, values: list[Any]) -> list[Any]:
        return [future.result() for future in [self.pool.submit(no_op, v) for v in values]]

    def payload(self, values: list[Any]) -> list[Any]:
        return list(self.pool.map(no_op, values, chunksize=PAYLOAD_CHUNK))

    def one(self, value: Any) -> Any:
        return self.pool.submit(no_op, value).result()


if __name__ == "__main__":
    serve(ProcessPool())
