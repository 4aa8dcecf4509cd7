"""What a client asks for: a job, its limits, its money.

One struct, checked whole, all bad fields at once.
"""

from typing import Literal, NamedTuple

import msgspec

from gristmill.wire import limits
from gristmill.wire.errors import RemoteError
from gristmill.wire.ids import is_digest
from gristmill.wire.paths import is_below
from gristmill.wire.units import UCREDITS_PER_CREDIT

Tier = Literal["strict", "job", "batch", "trusted"]
TIERS: tuple[Tier, ...] = ("strict", "job", "batch", "trusted")  #: most isolated first

DEFAULT_CAP_UCREDITS = 10_000 * UCREDITS_PER_CREDIT


_GIB_SECOND = (1 << 30) * 1_000_000  #: bytes times microseconds


class Tariff(msgspec.Struct, array_like=True, frozen=True):
    """What work costs, in micro-credits.

    The bill of a result is ``cpu_us * cpu_second_ucredits // 10**6``, and ``memory_bytes * wall_us
    * gib_second_ucredits // (2**30 * 10**6)`` for the memory that the job asked for, and
    ``subtasks * subtask_ucredits``.
    """

    cpu_second_ucredits: int = UCREDITS_PER_CREDIT
    subtask_ucredits: int = 10
    gib_second_ucredits: int = 0

    def price(self, cpu_us: int, subtasks: int, byte_us: int = 0) -> int:
        """Micro-credits for this cpu, these billed subtasks, these bytes times microseconds."""
        return (
            cpu_us * self.cpu_second_ucredits // 1_000_000
            + subtasks * self.subtask_ucredits
            + byte_us * self.gib_second_ucredits // _GIB_SECOND
        )


ZERO_TARIFF = Tariff(0, 0)
TOLL_PERCENT = 3


def toll_of(amount_ucredits: int) -> int:
    """The toll: 3 % of an amount, rounded down; the node gets the rest."""
    return amount_ucredits * TOLL_PERCENT // 100


class FileIn(msgspec.Struct, array_like=True, frozen=True):
    """A file that appears in the working directory of every subtask, its content by digest."""

    path: str
    digest: str
    size_bytes: int
    is_executable: bool = False


class Command(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A command job.

    Each input value is a text ``V`` (or a list of texts); in ``argv``, ``env`` values and
    ``files_out``, ``{}`` stands for it, ``{0}``, ``{1}`` for its parts, ``{index}`` for the
    subtask's index.

    ``stdin``: ``none``, ``value`` (the input is the standard input: argv is used as it is, and only
    ``{index}`` stands for something in ``env`` and ``files_out``), ``file`` (the input is a path
    and bytes, which become a file in the working directory; ``{}`` stands for the path).
    ``files_out``: glob patterns collected from the working directory after exit.
    The value of a subtask is a ``CommandResult`` as a MessagePack map.
    """

    argv: list[str]
    env: dict[str, str] = {}
    stdin: Literal["none", "value", "file"] = "none"
    files_in: list[FileIn] = []
    files_out: list[str] = []
    ok_exit_codes: tuple[int, ...] = (0,)


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one subtask may use; enforced, and the same figures are requested from the worker."""

    cpus_milli: int = 1_000
    memory_bytes: int = 1 << 30
    wall_ms: int = 3_600_000
    cpu_ms: int = 0  #: 0: four times wall_ms for every cpu
    pids_max: int = 64
    scratch_bytes: int = 256 << 20
    output_bytes: int = limits.OUTPUT_BYTES


class JobSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A job: an array of subtasks over one function or command.

    ``function``: digest of the cloudpickled function (kind ``function``), whose bytes follow as
    a body
    frame, or lie in the store when ``is_function_stored``. ``is_star``: each input is a tuple of
    arguments. ``python``: the client's ``3.11``, checked for functions. ``environment``: path of a
    Python executable on the worker's host, empty for the worker's own. ``count``: number of
    subtasks
    if known; -1 for an open-ended job. ``keep``: results stay for ``retention_s``; otherwise
    they are
    freed once the client acknowledged them. ``results``: ``any`` or ``safe`` (no pickle).
    ``concurrency_max``: leased subtasks at a time, 0 for no limit. ``failures_max``: the job pauses
    when this many subtasks failed and none was done, 0 for never. ``decomposer``: name of the
    decomposer for kind ``decompose``: a job of one subtask whose value is the list of inputs,
    see RFC 0002.
    ``quorum``: how results are checked against each other, see ``parse_quorum``.
    ``is_durable``: False gives up durability of results only (never of acceptance or of money).
    ``rental``: hex of the tenant's rental that pays, empty for its account.
    """

    kind: Literal["function", "command"]
    name: str = ""
    function: str = ""
    is_function_stored: bool = False
    is_star: bool = False
    command: Command | None = None
    count: int = -1
    tier: Tier = "job"
    limits: Limits = msgspec.field(default_factory=Limits)
    labels: dict[str, str] = {}
    python: str = ""
    environment: str = ""
    results: Literal["any", "safe"] = "any"
    retries: int = 0
    losses_max: int = 3
    failures_max: int = 0
    priority: int = 4
    concurrency_max: int = 0
    cap_ucredits: int = DEFAULT_CAP_UCREDITS
    tariff: Literal["standard", "zero"] = "standard"
    keep: bool = True
    retention_s: int = 7 * 86_400
    is_durable: bool = True
    parent: int = 0  #: the decomposition that this job came from
    #: names the list of inputs: of the decomposed request, or of a submission with a key
    request_digest: str = ""
    completion: str = "all"  #: what makes it done: ``all``, ``any``, ``N`` or ``P%``
    quorum: str = ""  #: ``2/3``, ``adaptive``, or empty: every result is taken as it comes
    rental: str = ""


def parse_completion(text: str) -> tuple[int, int]:
    """(subtasks, percent) that must end OK for the job to be done; 0 stands for no such rule.

    ``all`` is (0, 100); ``any`` is (1, 0); ``25`` is (25, 0); ``90%`` is (0, 90). A rule by number
    ends the job, and cancels its rest, as soon as it holds; a rule by share is judged at the end.

    Raises:
        ValueError: the text is no rule; the message shows what is accepted.

    >>> parse_completion("all"), parse_completion("any"), parse_completion("90%")
    ((0, 100), (1, 0), (0, 90))
    """
    if text in ("all", "any"):
        return (0, 100) if text == "all" else (1, 0)
    number, percent, rest = text.partition("%")
    if number.isascii() and number.isdigit() and not rest and len(number) < 10:
        value = int(number)
        if percent and 1 <= value <= 100:
            return 0, value
        if not percent and 1 <= value <= limits.SUBTASKS_MAX:
            return value, 0
    raise ValueError(
        f"completion is {text!r:.40}; write all, any, a number of subtasks such as 25, or 90%"
    )


class Quorum(NamedTuple):
    """``equal`` replicas of at most ``most`` must agree; adaptive: only of what is checked."""

    equal: int
    most: int
    is_adaptive: bool


ADAPTIVE = "adaptive"


def parse_quorum(text: str) -> Quorum | None:
    """The rule by which results of distinct owners are compared; None for no rule.

    ``2/3``: a subtask ends with two equal results of at most three. ``adaptive`` is ``2/3`` for
    whatever comes from a node that is not trusted yet, and for a sample of all others.

    Raises:
        ValueError: the text is no rule; the message shows what is accepted.

    >>> parse_quorum("2/3"), parse_quorum("adaptive"), parse_quorum("")
    (Quorum(equal=2, most=3, is_adaptive=False), Quorum(equal=2, most=3, is_adaptive=True), None)
    """
    if text in ("", ADAPTIVE):
        return Quorum(2, 3, True) if text else None
    equal, slash, most = text.partition("/")
    if slash and all(len(part) == 1 and part in "23456789" for part in (equal, most)):
        if int(equal) <= int(most) < 2 * int(equal) and int(most) <= limits.REPLICAS_MAX:
            return Quorum(int(equal), int(most), False)
    raise ValueError(
        f"quorum is {text!r:.40}; write adaptive, or K/N such as 2/3: K equal results of at most N,"
        f" N up to {limits.REPLICAS_MAX} and less than twice K"
    )


def check_spec(spec: JobSpec) -> None:
    """Raises ``INVALID_SPEC`` that names every bad field with its value and its bounds."""
    bad: list[str] = []

    def bound(field: str, value: int, low: int, high: int) -> None:
        if not low <= value <= high:
            bad.append(f"{field} is {value}, must be {low} to {high}")

    bound("count", spec.count, -1, limits.SUBTASKS_MAX)
    bound("retries", spec.retries, 0, limits.RETRIES_MAX)
    bound("losses_max", spec.losses_max, 0, limits.RETRIES_MAX)
    bound("failures_max", spec.failures_max, 0, limits.SUBTASKS_MAX)
    bound("priority", spec.priority, 0, 9)
    bound("concurrency_max", spec.concurrency_max, 0, limits.SUBTASKS_MAX)
    bound("cap_ucredits", spec.cap_ucredits, 0, 1 << 60)
    bound("retention_s", spec.retention_s, 0, 10 * 366 * 86_400)
    bound("limits.cpus_milli", spec.limits.cpus_milli, 1, 1_024_000)
    bound("limits.memory_bytes", spec.limits.memory_bytes, 8 << 20, 1 << 50)
    bound("limits.wall_ms", spec.limits.wall_ms, 1, 366 * 86_400_000)
    bound("limits.cpu_ms", spec.limits.cpu_ms, 0, 366 * 86_400_000)
    bound("limits.pids_max", spec.limits.pids_max, 1, 1 << 20)
    bound("limits.scratch_bytes", spec.limits.scratch_bytes, 1 << 20, 1 << 50)
    bound("limits.output_bytes", spec.limits.output_bytes, 0, limits.OUTPUT_BYTES_MAX)
    bound("labels (their number)", len(spec.labels), 0, limits.LABELS_MAX)
    for field, text in (("name", spec.name), ("environment", spec.environment)):
        if len(text) > limits.NAME_CHARS_MAX * (1 if field == "name" else 20) or "\0" in text:
            bad.append(
                f"{field} has {len(text)} characters or a NUL, at most {limits.NAME_CHARS_MAX}"
            )
    try:
        parse_completion(spec.completion)
    except ValueError as error:
        bad.append(str(error))
    try:
        quorum = parse_quorum(spec.quorum)
    except ValueError as error:
        bad.append(str(error))
    else:
        if quorum is not None and spec.retries:
            bad.append(
                f"retries is {spec.retries}, must be 0 with a quorum: its replicas are the retries"
            )
    if spec.rental and not is_digest(spec.rental):
        bad.append(f"rental is {spec.rental!r:.80}; it must be an id of 64 characters 0-9a-f")
    if spec.kind == "function":
        if not is_digest(spec.function):
            bad.append("function must be the sha-256 of the function's bytes, 64 hex characters")
        if spec.command is not None:
            bad.append("command must be absent in a job of kind 'function'")
    else:
        _check_command(spec.command, bad)
    if bad:
        raise RemoteError("INVALID_SPEC", "; ".join(bad))


def _check_command(command: Command | None, bad: list[str]) -> None:
    if command is None:
        bad.append("command must be given in a job of kind 'command'")
        return
    size = sum(len(part) for part in command.argv) + sum(
        len(k) + len(v) for k, v in command.env.items()
    )
    if not command.argv or not command.argv[0]:
        bad.append("command.argv is empty")
    if size > limits.ARGV_BYTES_MAX:
        bad.append(
            f"command.argv and command.env have {size} characters, at most {limits.ARGV_BYTES_MAX}"
        )
    for name in command.env:
        if not name or "=" in name:
            bad.append(f"command.env has a variable named {name!r:.60}; '=' cannot be in a name")
    for part in (*command.argv, *command.env, *command.env.values()):
        if "\0" in part:
            bad.append(f"command has a NUL in {part!r:.60}")
    for number, what in (
        (len(command.files_in), "files_in"),
        (len(command.files_out), "files_out"),
    ):
        if number > limits.FILES_MAX:
            bad.append(f"command.{what} has {number} entries, at most {limits.FILES_MAX}")
    for file in command.files_in:
        if not is_below(file.path) or not is_digest(file.digest):
            bad.append(
                f"command.files_in: {file.path!r:.80} must be relative, without '..' or '',"
                f" of at most {limits.PATH_DEPTH_MAX} names of {limits.PATH_PART_BYTES_MAX} bytes,"
                " and a digest"
            )


class CommandResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one subtask of a command job gives back.

    ``files``: path in the working directory to digest and size.
    """

    exit_code: int
    stdout: bytes = b""
    stderr: bytes = b""
    files: dict[str, tuple[str, int]] = {}
    is_cut: bool = False
