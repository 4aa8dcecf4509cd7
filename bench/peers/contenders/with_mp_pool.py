"""multiprocessing.Pool: ``map`` with chunks of 1,000, and one task for an item.

https://docs.python.org/3/library/multiprocessing.html#multiprocessing.pool.Pool.map: "for very long
iterables using a large value for chunksize can make the job complete much faster".
"""

import multiprocessing
import platform
from typing import Any

from stage import CHUNK, PAYLOAD_CHUNK, Contender, no_op, serve


class MultiprocessingPool(Contender):
    """A pool of forked processes, the start method of Linux up to Python 3.13."""

    def start(self, slots: int, scratch: str) -> None:
        self.pool = multiprocessing.get_context("fork").Pool(slots)
        self.pool.map(no_op, range(100))

    def stop(self) -> None:
        self.pool.close()
        self.pool.join()

    def versions(self) -> dict[str, str]:
        return {"CPython": platform.python_version()}

    def batched(self, values: list[Any]) -> list[Any]:
        return self.pool.map(no_op, values, chunksize=CHUNK)

    def each(self, values: list[Any]) -> list[Any]:
        return self.pool.map(no_op, values, chunksize=1)

    def payload(self, values: list[Any]) -> list[Any]:
        return self.pool.map(no_op, values, chunksize=PAYLOAD_CHUNK)

    def one(self, value: Any) -> Any:
        return self.pool.apply(no_op, (value,))


if __name__ == "__main__":
    serve(MultiprocessingPool())
