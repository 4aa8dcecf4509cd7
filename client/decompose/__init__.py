"""Requests that are split into subtasks by a plug-in, in a jail, at no charge.

A decomposer turns arguments into a list of ``[id, input]`` pairs. Its ``split`` runs as a job of
one subtask: zero tariff, a deadline, plain values only. The client checks the list whole before
any job exists. The same request gives the same list: the broker remembers which decomposition
served a request's digest, and its kept result is used again.

Other packages add decomposers by the entry point group ``gristmill.decomposers``.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from gristmill.client.errors import (
    DecomposeError,
    GridError,
    SubtaskError,
    TimeLimit,
)
from gristmill.wire import limits
from gristmill.wire.client import JobStatus
from gristmill.wire.ids import format_job

if TYPE_CHECKING:
    from gristmill.client.client import Client

ENTRY_POINTS = "gristmill.decomposers"
ID_CHARS_MAX = 1_000
_ERRORS_SHOWN = 5
_SCALARS = (type(None), bool, int, float, str, bytes)


class Decomposer(Protocol):
    """A plug-in. ``version`` is part of the request's digest: raise it when the list changes."""

    name: str
    version: int

    def prepare(self, arguments: Mapping[str, Any]) -> tuple[Callable[[Any], list[list[Any]]], Any]:
        """(split, its input) for the arguments; runs in the client.

        ``split`` runs in a jail: it must travel by value (a closure does) and return
        ``[id, input]`` pairs of plain values. The input must be plain as well.

        Raises:
            ValueError, TypeError, OSError: the arguments are wrong.
        """
        ...


class Decomposition(Sequence[Any]):
    """The inputs of a request, ready for ``map`` or ``run(each=...)``.

    Attributes:
        ids: a name for each input; ``job``: the decomposition's own job; ``request_digest``.
        is_reused: an earlier decomposition of the same request made the list.
    """

    def __init__(
        self, pairs: list[list[Any]], job: int, request_digest: str, is_reused: bool
    ) -> None:
        self.ids: list[str] = [pair[0] for pair in pairs]
        self._values = [pair[1] for pair in pairs]
        self.job = job
        self.request_digest = request_digest
        self.is_reused = is_reused

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, index: Any) -> Any:
        return self._values[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def __repr__(self) -> str:
        return f"<{len(self)} subtasks of {format_job(self.job)}: {', '.join(self.ids[:3])} ...>"


def find_decomposer(name: str) -> Decomposer:
    """The decomposer of this name: an installed plug-in, or one of those shipped.

    Raises:
        DecomposeError: there is none; the message lists those that are.
    """
    from gristmill.client.decompose.glob import Glob
    from gristmill.client.decompose.lines import Lines
    from gristmill.client.decompose.suite import Pytest
    from gristmill.client.decompose.sweep import Sweep

    shipped: dict[str, Decomposer] = {one.name: one for one in (Lines(), Glob(), Sweep(), Pytest())}
    if name in shipped:
        return shipped[name]
    from importlib import metadata  # a command's start has no need of it

    found = {point.name: point for point in metadata.entry_points(group=ENTRY_POINTS)}
    if name in found:
        return found[name].load()()  # type: ignore[no-any-return]
    known = ", ".join(sorted({*shipped, *found}))
    raise DecomposeError(
        "DECOMPOSE_FAILED", f"no decomposer is named {name!r}", f"there are: {known}"
    )


def decompose(
    client: "Client", name: str, arguments: Mapping[str, Any], timeout_ms: int
) -> Decomposition:
    """Split a request, or take the list that an earlier one made.

    Raises:
        DecomposeError: ``DECOMPOSE_FAILED`` with what the decomposer said, ``DECOMPOSE_TIMEOUT``,
            ``DECOMPOSE_TOO_LARGE``. No job was created for the request, and nothing was charged.
    """
    decomposer = find_decomposer(name)
    try:
        split, value = decomposer.prepare(arguments)
    except (ValueError, TypeError, OSError) as error:
        raise DecomposeError(
            "DECOMPOSE_FAILED", f"{name}: {error}", "correct the request"
        ) from error
    digest = request_digest(name, decomposer.version, value)
    if (earlier := _earlier(client, digest)) is not None:
        return earlier
    results = client._split_job(split, value, f"decompose:{name}", timeout_ms, digest)
    try:
        answer = next(results)
        job = results.job
        pairs = check_list(answer, name, job)
        for _ in results:  # its end: a list that is in use is on disk
            pass
    except TimeLimit as error:
        raise DecomposeError(
            "DECOMPOSE_TIMEOUT", f"{name} took longer than {timeout_ms / 1000:.3g} s"
        ) from error
    except DecomposeError:
        raise
    except GridError as error:
        if error.code in ("UNREACHABLE", "LEDGER_DOWN", "STORE_DOWN"):
            raise
        raise DecomposeError("DECOMPOSE_FAILED", f"{name}: {error.message}") from error
    except Exception as error:  # whatever a plug-in raised in its jail
        raise DecomposeError("DECOMPOSE_FAILED", _told(client, name, error, results.job)) from error
    finally:
        results.close()
    return Decomposition(pairs, job, digest, is_reused=False)


def request_digest(name: str, version: int, value: Any) -> str:
    """What makes two requests the same: decomposer, version and the input of its split."""
    body = msgspec.msgpack.encode([name, version, value], order="sorted")
    return hashlib.sha256(body).hexdigest()


def check_list(answer: Any, name: str, job: int) -> list[list[Any]]:
    """The pairs, if every one of them is right; all that are not are named by index.

    Raises:
        DecomposeError: ``DECOMPOSE_FAILED`` or ``DECOMPOSE_TOO_LARGE``.
    """
    hint = f"gristmill logs {format_job(job)}" if job else ""
    if not isinstance(answer, list):
        raise DecomposeError(
            "DECOMPOSE_FAILED", f"{name} returned a {type(answer).__name__}, not a list", hint
        )
    if len(answer) > limits.DECOMPOSED_MAX:
        raise DecomposeError(
            "DECOMPOSE_TOO_LARGE",
            f"{name} returned {len(answer):,} subtasks; the limit is {limits.DECOMPOSED_MAX:,}",
        )
    if not answer:
        raise DecomposeError(
            "DECOMPOSE_FAILED", f"{name} found nothing to do", "correct the request"
        )
    bad: list[str] = []
    seen: dict[str, int] = {}
    for index, pair in enumerate(answer):
        fault = _fault(pair, seen, index)
        if fault:
            bad.append(f"element {index}: {fault}")
    if bad:
        more = f"; and {len(bad) - _ERRORS_SHOWN} more" if len(bad) > _ERRORS_SHOWN else ""
        raise DecomposeError(
            "DECOMPOSE_FAILED", f"{name}: {'; '.join(bad[:_ERRORS_SHOWN])}{more}", hint
        )
    return answer


def _fault(pair: Any, seen: dict[str, int], index: int) -> str:
    if not isinstance(pair, list) or len(pair) != 2:
        return f"{pair!r:.60} is not [id, input]"
    name = pair[0]
    if not isinstance(name, str) or not 1 <= len(name) <= ID_CHARS_MAX:
        return f"its id {name!r:.60} is not a text of 1 to {ID_CHARS_MAX} characters"
    if name in seen:
        return f"its id {name!r:.60} is that of element {seen[name]} too"
    seen[name] = index
    return "" if _is_plain(pair[1]) else f"its input {pair[1]!r:.60} is not a plain value"


def _is_plain(value: Any, depth: int = 0) -> bool:
    if type(value) in _SCALARS:
        return True
    if depth > 16:
        return False
    if type(value) is list:
        return all(_is_plain(item, depth + 1) for item in value)
    return type(value) is dict and all(
        type(key) is str and _is_plain(item, depth + 1) for key, item in value.items()
    )


def _earlier(client: "Client", digest: str) -> Decomposition | None:
    cards: list[JobStatus] = client._question(list[JobStatus], "decomposed", text=digest)
    for card in cards:
        job = card.parent or card.job
        try:
            if client.status(job).state != "done":
                continue
            (answer,) = client.results(job)
            return Decomposition(check_list(answer, "it", job), job, digest, is_reused=True)
        except (GridError, SubtaskError, ValueError):
            continue  # gone or broken: it is made again
    return None


def _told(client: "Client", name: str, error: Exception, job: int) -> str:
    """The decomposer's own words: its exception and the end of its stderr."""
    text = f"{name} failed: {type(error).__name__}: {error}"
    if error.__cause__ is not None:
        text += f"\n{str(error.__cause__).strip()}"
    try:
        rows = client.logs(job)
    except GridError:
        return text
    stderr = b"".join(row.stderr for row in rows)[-2_000:].decode(errors="replace").strip()
    return f"{text}\nits stderr:\n{stderr}" if stderr else text


__all__ = ["Decomposer", "Decomposition", "decompose", "find_decomposer"]
