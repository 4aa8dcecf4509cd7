"""Identifiers: who makes them, how wide they are, how a person reads and writes them."""

import hashlib
import re

#: Made by the client, 16 random bytes: the same submission id is the same job, for ever.
SubmissionId = bytes
#: Made by the broker, in sequence from 1; ``j17`` to a person.
JobId = int
#: The fence: (incarnation of the broker u24, counter u40) in one u64.
LeaseId = int

_COUNTER_BITS = 40


def pack_lease_id(incarnation: int, counter: int) -> LeaseId:
    """One u64 of the broker's incarnation (u24) and its lease counter (u40)."""
    assert 0 <= incarnation < 1 << 24 and 0 <= counter < 1 << _COUNTER_BITS
    return incarnation << _COUNTER_BITS | counter


def unpack_lease_id(lease_id: LeaseId) -> tuple[int, int]:
    """(incarnation, counter) of a lease id."""
    return lease_id >> _COUNTER_BITS, lease_id & ((1 << _COUNTER_BITS) - 1)


def format_job(job: JobId) -> str:
    """``j17``."""
    return f"j{job}"


def parse_job(text: str) -> JobId:
    """A job id from ``j17`` or ``17``.

    Raises:
        ValueError: not a job id.
    """
    match = re.fullmatch(r"j?([1-9][0-9]{0,15})", text.strip())
    if not match:
        raise ValueError(
            f"{text!r:.80} is not a job id; they look like j17 (see 'gristmill status')"
        )
    return int(match[1])


def parse_subtask(text: str) -> tuple[JobId, int | None]:
    """(job, index) from ``j17/3``; the index is None when the text names the whole job."""
    job, slash, index = text.strip().partition("/")
    if not slash:
        return parse_job(job), None
    if not re.fullmatch("[0-9]{1,9}", index):
        raise ValueError(f"{text!r:.80} is not a subtask; they look like j17/3")
    return parse_job(job), int(index)


def format_receipt(job: int, number: int) -> str:
    """A receipt as a statement names it and ``gristmill receipt`` takes it.

    >>> format_receipt(17, 40)
    'j17#40'
    """
    return f"{format_job(job)}#{number}"


def parse_receipt(text: str) -> tuple[JobId, int | None, int]:
    """(job, index or None, number of a receipt or 0) from ``j17``, ``j17/3`` or ``j17#40``."""
    job, mark, number = text.strip().partition("#")
    if not mark:
        return *parse_subtask(text), 0
    if not re.fullmatch("[1-9][0-9]{0,15}", number):
        raise ValueError(f"{text!r:.80} is not a receipt; they look like j17#40")
    return parse_job(job), None, int(number)


def digest_of(body: bytes | bytearray | memoryview) -> str:
    """The content address of a blob: its sha-256 in lower-case hex, 64 characters."""
    return hashlib.sha256(body).hexdigest()


def is_digest(text: str) -> bool:
    """Whether the text is a digest as ``digest_of`` makes them."""
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None
