"""HyperQueue through its Python API: a LocalCluster of a server and workers of one core.

- programs: a job of one task for each item (https://it4innovations.github.io/hyperqueue/stable/python/submit/).
- each: Python functions; "currently, a new Python interpreter will be started for each Python task"
  (the same page). No result comes back, only the exit status.
- no file for a task's output (https://it4innovations.github.io/hyperqueue/stable/jobs/jobs/#output-of-the-job).
The wheel brings no ``hq`` command, so no journal. ``wait_for_jobs`` asks the server once a second:
runs are long, and nothing is said of latency.
"""

import sys
from typing import Any, ClassVar

from hyperqueue import Job, LocalCluster
from hyperqueue.cluster import WorkerConfig
from hyperqueue.task.function import PythonEnv
from stage import Contender, no_op, serve

QUIET = {"stdout": "/dev/null", "stderr": "/dev/null"}


class HyperQueue(Contender):
    """Server and workers are threads of this process; each task is a process of its own."""

    packages = ("hyperqueue",)
    unable: ClassVar[dict[str, str]] = {
        "batched": "nothing below a task: a batch would be a program of the user's own",
        "latency": "its Python client asks for the end of a job once a second",
        "payload": "no values: inputs and results are files of the user's own",
    }

    def start(self, slots: int, scratch: str) -> None:
        self.cluster = LocalCluster(f"{scratch}/server")
        for _ in range(slots):
            self.cluster.start_worker(WorkerConfig(cores=1))
        self.scratch = scratch
        self.client = self.cluster.client(python_env=PythonEnv(sys.executable))
        self.programs(["0"])

    def stop(self) -> None:
        self.cluster.stop()

    def _finished(self, job: Job, values: list[Any]) -> list[Any]:
        submitted = self.client.submit(job)
        assert self.client.wait_for_jobs([submitted]), "a task failed"
        self.client.forget(submitted)
        return values

    def each(self, values: list[Any]) -> list[Any]:
        job = Job(default_workdir=self.scratch)
        for value in values:
            job.function(no_op, args=(value,), **QUIET)
        return self._finished(job, values)

    def programs(self, values: list[Any]) -> list[Any]:
        job = Job(default_workdir=self.scratch)
        for value in values:
            job.program(["/bin/true", value], **QUIET)
        return self._finished(job, values)


if __name__ == "__main__":
    serve(HyperQueue())
