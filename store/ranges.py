"""The parts of HTTP that a store reads strictly: lengths, ranges, paths, credentials."""

import re
from collections.abc import Sequence
from urllib.parse import parse_qsl, urlsplit

from gristmill.wire.errors import RemoteError
from gristmill.wire.ids import is_digest

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")
_LENGTH = re.compile(r"\d{1,19}")


class UnsatisfiableRangeError(RemoteError):
    """A range outside its blob, or one of a form that is not served: HTTP 416."""

    def __init__(self, message: str) -> None:
        super().__init__("MALFORMED", message, "ask for one range inside the blob: bytes=0-99")


def parse_range(text: str, size_bytes: int) -> tuple[int, int]:
    """(start, count) of a ``Range`` header: ``bytes=A-B``, ``bytes=A-`` or ``bytes=-N``.

    Raises:
        UnsatisfiableRangeError: several ranges, another unit, or no byte of the blob in it.

    >>> parse_range("bytes=2-5", 10), parse_range("bytes=8-", 10), parse_range("bytes=-3", 10)
    ((2, 4), (8, 2), (7, 3))
    """
    match = _RANGE.fullmatch(text.strip())
    if match is None or not (match[1] or match[2]):
        raise UnsatisfiableRangeError(f"the range {text!r:.100} is not one range of bytes")
    if not match[1]:
        count = min(int(match[2]), size_bytes)
        start = size_bytes - count
    else:
        start = int(match[1])
        end = int(match[2]) if match[2] else size_bytes - 1
        if end < start and match[2]:
            raise UnsatisfiableRangeError(f"the range {text!r:.100} ends before it starts")
        count = min(end, size_bytes - 1) - start + 1
    if count <= 0:
        raise UnsatisfiableRangeError(f"the range {text!r:.100} is outside of {size_bytes} bytes")
    return start, count


def parse_length(values: Sequence[str] | None) -> int | None:
    """The one ``Content-Length``, None without one.

    Raises:
        RemoteError: ``MALFORMED``: several, or not a plain number.
    """
    if not values:
        return None
    if len(values) > 1 or not _LENGTH.fullmatch(values[0].strip()):
        raise RemoteError(
            "MALFORMED", f"Content-Length is {', '.join(values)!r:.100}, not a number"
        )
    return int(values[0])


def parse_target(target: str) -> tuple[str, str, str]:
    """(resource, digest, grant of the query): ``("blobs", "ab..", "")``, ``("health", "", "")``.

    Raises:
        RemoteError: ``MALFORMED`` naming what is wrong.
    """
    if not (target.isascii() and target.isprintable()):  # urlsplit leaves some out
        raise RemoteError("MALFORMED", f"the address {target!a:.100} has characters of no address")
    try:
        parts = urlsplit(target)
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise RemoteError("MALFORMED", f"the address does not parse: {error}") from None
    grants = [value for name, value in query if name == "grant"]
    if len(grants) != len(query) or len(grants) > 1:
        raise RemoteError("MALFORMED", "the query may have one 'grant' and nothing else")
    grant = grants[0] if grants else ""
    if parts.path in ("/health", "/pins"):
        return parts.path[1:], "", grant
    resource, _, digest = parts.path[1:].partition("/")
    if resource != "blobs":
        raise RemoteError(
            "MALFORMED",
            f"no resource {parts.path!r:.100}",
            "the store has /blobs/DIGEST, /pins and /health",
        )
    if not is_digest(digest):
        raise RemoteError("MALFORMED", f"{digest!r:.100} is no digest; it has 64 of 0-9 and a-f")
    return resource, digest, grant


def parse_credential(values: Sequence[str] | None, grant_of_query: str) -> str:
    """The grant of ``Authorization: Grant TEXT`` or of the query.

    Raises:
        RemoteError: ``UNAUTHORISED`` when there is none, or both.
    """
    given = [grant_of_query] if grant_of_query else []
    for value in values or ():
        scheme, _, text = value.strip().partition(" ")
        if scheme.lower() != "grant" or not text.strip():
            raise RemoteError("UNAUTHORISED", "Authorization must be: Grant TEXT")
        given.append(text.strip())
    if len(given) != 1:
        raise RemoteError(
            "UNAUTHORISED",
            f"{len(given)} grants came with the request; one is needed",
            "ask the broker for a grant and send it as 'Authorization: Grant TEXT'",
        )
    return given[0]
