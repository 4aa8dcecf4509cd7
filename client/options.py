"""Options as people write them, to the one spec that travels."""

import sys
from collections.abc import Mapping
from typing import Literal, TypedDict

from gristmill.client.errors import grid_error
from gristmill.wire.errors import RemoteError
from gristmill.wire.ids import digest_of
from gristmill.wire.spec import DEFAULT_CAP_UCREDITS, Command, JobSpec, Limits, Tier, check_spec
from gristmill.wire.units import parse_bytes, parse_credits, parse_ms

Size = int | str  #: bytes: 1073741824, "1G", "512M"
Duration = float | str  #: seconds as a number, or "90s", "5m", "1.5h"


class Options(TypedDict, total=False):
    """Options of ``map``, ``submit``, ``run`` and ``dry_run``; every one has a default.

    tier: ``strict``, ``job``, ``batch`` or ``trusted``: how much isolation.
    cpus, memory, timeout, cpu_timeout, pids, scratch, output: limits of one subtask.
    retries: further tries after its own failure; losses: after the grid lost it.
    labels: what the worker must have; environment: path of a Python on the worker's host.
    name: for people; priority: 0 to 9 inside the tenant; cap: the most that the job may cost,
    in credits; concurrency: leased subtasks at a time; failures_max: the job pauses when this
    many failed and none was done.
    completion: what makes the job done: ``all``, ``any`` or a number of subtasks (the rest is then
    cancelled), or a share such as ``90%``.
    quorum: ``2/3`` for two equal results of at most three from workers of distinct owners, or
    ``adaptive`` for that of new nodes and of a sample: results must be the same bytes wherever the
    function runs, and each replica is paid, see docs/trust.md.
    rental: the id of a rental that pays for the job, see docs/rentals.md.
    keep: results stay after they were read, for ``retention`` (a duration), and inputs until the
    job ends; a map of more than the broker's disk has room for needs False. durable: False gives
    up the durability of results, never of acceptance or money.
    results: ``safe`` for plain values only, ``any`` for pickles too.
    """

    tier: Tier
    cpus: float
    memory: Size
    timeout: Duration
    cpu_timeout: Duration
    pids: int
    scratch: Size
    output: Size
    retries: int
    losses: int
    labels: Mapping[str, str]
    environment: str
    name: str
    priority: int
    cap: float | str
    concurrency: int
    failures_max: int
    completion: str
    quorum: str
    rental: str
    keep: bool
    retention: Duration
    durable: bool
    results: Literal["any", "safe"]


def make_limits(options: Options) -> Limits:
    """The limits of one subtask.

    Raises:
        GridError: ``INVALID_SPEC`` with every figure that cannot be read.
    """
    bad: list[str] = []
    figures: dict[str, int] = {}

    def read(option: str, field: str, parse: object) -> None:
        if (value := options.get(option)) is None:
            return
        try:
            figures[field] = parse(value)  # type: ignore[operator]
        except (ValueError, TypeError, OverflowError) as error:
            bad.append(f"{option}: {error}")

    read("cpus", "cpus_milli", lambda cpus: round(float(cpus) * 1000))
    read("memory", "memory_bytes", parse_bytes)
    read("timeout", "wall_ms", parse_ms)
    read("cpu_timeout", "cpu_ms", parse_ms)
    read("pids", "pids_max", int)
    read("scratch", "scratch_bytes", parse_bytes)
    read("output", "output_bytes", parse_bytes)
    if bad:
        raise grid_error("INVALID_SPEC", "; ".join(bad))
    return Limits(**figures)


def make_spec(
    options: Options,
    *,
    function: bytes = b"",
    is_function_stored: bool = False,
    is_star: bool = False,
    command: Command | None = None,
    name: str = "",
    environment: str = "",
    is_trusted: bool = False,
    tariff: Literal["standard", "zero"] = "standard",
    count: int = -1,
    parent: int = 0,
    request_digest: str = "",
) -> JobSpec:
    """The spec of a job of a function (its bytes) or of a command.

    Raises:
        GridError: ``INVALID_SPEC`` that names every bad option at once.
        TypeError: an option that does not exist.
    """
    unknown = set(options) - set(Options.__annotations__)
    if unknown:
        known = ", ".join(sorted(Options.__annotations__))
        raise TypeError(f"no option {', '.join(sorted(unknown))}; the options are {known}")
    results = options.get("results", "any" if is_trusted or command else "safe")
    try:
        cap = options.get("cap")
        spec = JobSpec(
            kind="command" if command else "function",
            name=options.get("name", name)[:200],
            function=digest_of(function) if command is None else "",
            is_function_stored=is_function_stored,
            is_star=is_star,
            command=command,
            count=count,
            tier=options.get("tier", "job"),
            limits=make_limits(options),
            labels=dict(options.get("labels", {})),
            python="" if command else f"{sys.version_info[0]}.{sys.version_info[1]}",
            environment=options.get("environment", environment),
            results=results,
            retries=options.get("retries", 0),
            losses_max=options.get("losses", 3),
            failures_max=options.get("failures_max", 0),
            completion=options.get("completion", "all"),
            quorum=options.get("quorum", ""),
            rental=options.get("rental", "").removeprefix("0x"),
            priority=options.get("priority", 4),
            concurrency_max=options.get("concurrency", 0),
            cap_ucredits=DEFAULT_CAP_UCREDITS if cap is None else _ucredits(cap),
            tariff=tariff,
            keep=options.get("keep", True),
            retention_s=parse_ms(options.get("retention", 7 * 86_400)) // 1000,
            is_durable=options.get("durable", True),
            parent=parent,
            request_digest=request_digest,
        )
        check_spec(spec)
    except RemoteError as error:
        raise grid_error(error.code, error.message, error.hint) from None
    except ValueError as error:
        raise grid_error("INVALID_SPEC", str(error)) from None
    return spec


def _ucredits(cap: float | str) -> int:
    # A float is written out with six decimals at most: micro-credits are the smallest coin.
    return parse_credits(f"{cap:.6f}".rstrip("0").rstrip(".") if isinstance(cap, float) else cap)
