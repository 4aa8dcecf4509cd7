"""A bucket of an S3 server: who we are there, and its errors as ours.

The only module that imports ``obstore``, and imported only where a store is told to use S3.
Credentials come from a file of mode 0600 or from the environment (``AWS_ACCESS_KEY_ID``, ...),
never from the command line, and no message has them.
"""

import configparser
import datetime
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store as Objects

from gristmill.wire.errors import RemoteError

RANGE_BYTES = 4 << 20  #: of one request for a part of an object
PART_BYTES = 8 << 20  #: of a multipart upload; S3 takes 10,000 of them
PARTS_AT_ONCE = 4
_RETRIES: Any = {
    "max_retries": 3,
    "retry_timeout": datetime.timedelta(seconds=30),
    "backoff": {
        "init_backoff": datetime.timedelta(milliseconds=100),
        "max_backoff": datetime.timedelta(seconds=2),
        "base": 2,
    },
}
_LOOPBACK = re.compile(r"http://(localhost|127(\.\d{1,3}){3}|\[::1\])(:\d{1,5})?/?")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_STATUS = re.compile(r"status code: (\d{3})")
_NO_ROOM = frozenset({"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "507"})
_REFUSED = frozenset(
    {
        *("SignatureDoesNotMatch", "InvalidAccessKeyId", "AccessDenied", "ExpiredToken"),
        *("InvalidToken", "RequestTimeTooSkewed", "401", "403"),
    }
)
#: what obstore raises; an object that is not there is a builtin FileNotFoundError
FAILURES = (BaseError, OSError)


class Credentials(NamedTuple):
    """Of one account; ``source`` names the place they came from, for messages."""

    access_key: str
    secret_key: str
    token: str
    source: str


def read_credentials(path: pathlib.Path | None) -> Credentials:
    """From a file as the AWS tools have it (``[default]``), or from the environment.

    Raises:
        RemoteError: ``INVALID_SPEC``: none are given, or others can read the file.
    """
    if path is None:
        found = Credentials(
            os.environ.get("AWS_ACCESS_KEY_ID", ""),
            os.environ.get("AWS_SECRET_ACCESS_KEY", ""),
            os.environ.get("AWS_SESSION_TOKEN", ""),
            "the environment",
        )
    else:
        parser = configparser.ConfigParser(interpolation=None)
        try:
            mode = path.stat().st_mode
            if mode & 0o077:
                raise RemoteError(
                    "INVALID_SPEC",
                    f"{path} holds credentials and others can read it (mode {mode & 0o777:03o})",
                    f"chmod 600 {path}",
                )
            parser.read_string(path.read_text())
        except (OSError, UnicodeDecodeError, configparser.Error) as error:
            told = type(error).__name__  # the text of a parser's error quotes the file
            raise RemoteError("INVALID_SPEC", f"--s3-credentials {path}: {told}") from None
        values = parser["default"] if parser.has_section("default") else {}
        found = Credentials(
            values.get("aws_access_key_id", ""),
            values.get("aws_secret_access_key", ""),
            values.get("aws_session_token", ""),
            str(path),
        )
    if not (found.access_key and found.secret_key):
        raise RemoteError(
            "INVALID_SPEC",
            f"{found.source} has no credentials for S3",
            "give --s3-credentials FILE with aws_access_key_id and aws_secret_access_key under "
            "[default], or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    return found


def check_endpoint(endpoint: str) -> None:
    """Raises ``INVALID_SPEC`` or ``NOT_LOOPBACK``: plain HTTP only inside this host."""
    if endpoint.startswith("https://") or not endpoint or _LOOPBACK.fullmatch(endpoint):
        return
    if endpoint.startswith("http://"):
        raise RemoteError(
            "NOT_LOOPBACK", f"{endpoint} is not on loopback", "use https:// for another host"
        )
    raise RemoteError("INVALID_SPEC", f"--s3-endpoint is {endpoint!r:.80}; write https://HOST")


class Bucket:
    """Objects under a prefix of a bucket. Safe to use from many threads.

    Every method raises ``RemoteError``: ``STORE_DOWN`` when the server does not answer or refuses,
    ``STORE_FULL`` when it has no room.

    Args:
        address: ``s3://BUCKET/PREFIX``; the prefix may be empty.
        endpoint: of the server; empty for AWS.
    """

    def __init__(self, address: str, endpoint: str, region: str, credentials: Credentials) -> None:
        self.address = address
        self._at = endpoint or "AWS"
        self._source = credentials.source
        name, _, prefix = address.removeprefix("s3://").partition("/")
        self._name = name
        config: Any = {
            "access_key_id": credentials.access_key,
            "secret_access_key": credentials.secret_key,
            "region": region,
            "virtual_hosted_style_request": False,
        }
        if credentials.token:
            config["session_token"] = credentials.token
        if endpoint:
            config["endpoint"] = endpoint
        self._objects = Objects(
            name,
            prefix=prefix or None,
            config=config,
            client_options={"allow_http": endpoint.startswith("http://"), "timeout": "60s"},
            retry_config=_RETRIES,
        )

    def put(self, key: str, body: bytes | bytearray | pathlib.Path) -> None:
        """Keep an object; the server has all of it, or nothing is there."""
        try:
            obstore.put(
                self._objects, key, body, chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE
            )
        except FAILURES as error:
            self._fail(error, key)

    def find(self, key: str) -> tuple[int, str] | None:
        """(bytes, entity tag) of an object; None when it is not there."""
        try:
            found = obstore.head(self._objects, key)
        except FileNotFoundError:
            return None
        except FAILURES as error:
            self._fail(error, key)
        return found["size"], found["e_tag"] or ""

    def read(self, key: str, start: int, count: int) -> memoryview:
        """A part of an object.

        Raises:
            FileNotFoundError: it is not there.
        """
        try:
            return memoryview(obstore.get_range(self._objects, key, start=start, length=count))
        except FileNotFoundError:
            raise FileNotFoundError(key) from None
        except FAILURES as error:
            self._fail(error, key)

    def remove(self, keys: list[str]) -> None:
        """Objects that are not there are as good as removed."""
        for key in keys:
            try:
                obstore.delete(self._objects, key)
            except FileNotFoundError:
                continue
            except FAILURES as error:
                self._fail(error, key)

    def move(self, key: str, to: str) -> None:
        """Copy, then remove."""
        try:
            obstore.rename(self._objects, key, to)
        except FileNotFoundError:
            return
        except FAILURES as error:
            self._fail(error, key)

    def names(self, prefix: str) -> Iterator[tuple[str, int, int]]:
        """(key, bytes, time of its put in ms since the epoch) of what begins with ``prefix/``."""
        try:
            for batch in obstore.list(self._objects, prefix=prefix, chunk_size=1_000):
                for found in batch:
                    at_ms = int(found["last_modified"].timestamp() * 1000)
                    yield found["path"], found["size"], at_ms
        except FAILURES as error:
            self._fail(error, prefix)

    def probe(self, key: str) -> bytes | None:
        """A small object, None when it is not there; the first question of a store.

        Raises:
            RemoteError: ``INVALID_SPEC`` when the bucket is not there or the credentials are
                refused: nothing that waiting would mend.
        """
        try:
            return obstore.get(self._objects, key).bytes().to_bytes()
        except FileNotFoundError as error:
            if _code_of(error) != "NoSuchBucket":
                return None
            refusal = self._refusal(error, key)
        except FAILURES as error:
            refusal = self._refusal(error, key)
            if _code_of(error) not in _REFUSED:
                raise refusal from None
        raise RemoteError("INVALID_SPEC", refusal.message, refusal.hint)

    def _fail(self, error: Exception, key: str) -> NoReturn:
        raise self._refusal(error, key) from None

    def _refusal(self, error: Exception, key: str) -> RemoteError:
        code = _code_of(error)
        where = f"bucket {self._name} at {self._at}"
        if code == "NoSuchBucket":
            return RemoteError(
                "STORE_DOWN", f"there is no {where}", "make the bucket, or correct --s3"
            )
        if code in _REFUSED:
            return RemoteError(
                "STORE_DOWN",
                f"{where} refuses the credentials of {self._source} ({code})",
                "correct the key, its secret, or its rights to read, write, list and delete",
            )
        if code in _NO_ROOM:
            return RemoteError("STORE_FULL", f"{where} has no room for {key} ({code})")
        if code:
            return RemoteError("STORE_DOWN", f"{where} answers {code} for {key}")
        return RemoteError(
            "STORE_DOWN",
            f"{where} does not answer",
            "look whether the server runs, or correct --s3-endpoint",
        )


def _code_of(error: Exception) -> str:
    """The S3 error code of an exception, else its HTTP status, else nothing."""
    text = str(error)
    match = _CODE.search(text) or _STATUS.search(text)
    if match:
        return match[1]
    return (
        "403" if type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError") else ""
    )
