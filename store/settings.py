"""What a store process is told: options, or ``GRISTMILL_STORE_*`` where an option is absent."""

import argparse
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import pydantic

from gristmill.store.server import CONNECTIONS_MAX, IDLE_S
from gristmill.wire.errors import RemoteError
from gristmill.wire.units import parse_bytes, parse_ms

_PREFIX = "GRISTMILL_STORE_"
_DAY_MS = 86_400_000

Bytes = Annotated[int, pydantic.BeforeValidator(parse_bytes)]
Duration = Annotated[int, pydantic.BeforeValidator(parse_ms)]  #: ms; people write 30d, 90s


class Settings(pydantic.BaseModel):
    """Settings of one store process.

    ``state``: its folder. ``listen``: ``unix:///path``, ``http://127.0.0.1:PORT``, or ``https://IP:PORT``
    for other hosts, with the key ``store.key``. ``key``: hex
    of the broker's Ed25519 verify key. ``publisher``: of who may put blobs that everybody may read,
    a settlement; empty for nobody. ``size_max``: bytes of blobs, 0 for the disk's own limit.
    ``grace_ms``: blobs that nobody pins live this long after their last put. ``collect_every_ms``:
    how often such blobs are freed, 0 for never. ``ready_fd``: a descriptor to say READY on.
    ``s3``: ``s3://BUCKET/PREFIX`` to keep blobs there and only their index in ``state``;
    ``s3_endpoint``: of a server that is not AWS; ``s3_credentials``: a file of mode 0600, without
    which the environment has them.
    """

    # Python's own expressions: pydantic's take 80 ms to compile the 200 letters of a prefix. Theirs
    # end with \Z, since $ lets a line end through.
    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", regex_engine="python-re")

    state: pathlib.Path
    listen: str = ""
    key: str = pydantic.Field(default="", pattern=r"^([0-9a-f]{64})?\Z")
    publisher: str = pydantic.Field(default="", pattern=r"^([0-9a-f]{64})?\Z")
    size_max: Bytes = pydantic.Field(default=0, ge=0)
    s3: str = pydantic.Field(
        default="", pattern=r"^(s3://[a-z0-9][a-z0-9.-]{1,62}(/[\w./-]{0,200})?)?\Z"
    )
    s3_endpoint: str = ""
    s3_region: str = pydantic.Field(default="us-east-1", pattern=r"^[a-z0-9-]{1,40}\Z")
    s3_credentials: pathlib.Path | None = None
    grace_ms: Duration = pydantic.Field(default=30 * _DAY_MS, ge=0)
    collect_every_ms: Duration = pydantic.Field(default=3_600_000, ge=0)
    idle_s: float = pydantic.Field(default=IDLE_S, gt=0, le=3_600)
    connections_max: int = pydantic.Field(default=CONNECTIONS_MAX, ge=1, le=10_000)
    ready_fd: int | None = pydantic.Field(default=None, ge=3)
    is_dying_with_parent: bool = False
    is_collecting: bool = False
    is_dry_run: bool = False
    is_printing_key: bool = False


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gristmill.store",
        description="The store of a grid: blobs by digest over HTTP, for whoever has a grant.",
        epilog=f"Each option can also be given as {_PREFIX}NAME, e.g. {_PREFIX}SIZE_MAX=50G.",
    )
    parser.add_argument("--state", metavar="DIR", help="folder of the blobs")
    parser.add_argument(
        "--listen", metavar="ADDRESS", help="unix:///path, http://127.0.0.1:PORT or https://IP:PORT"
    )
    parser.add_argument("--key", metavar="HEX", help="the broker's verify key (its --print-key)")
    parser.add_argument(
        "--publisher", metavar="HEX", help="the key of a settlement, whose lists everybody may read"
    )
    parser.add_argument("--size-max", metavar="SIZE", help="bytes of blobs, such as 50G")
    parser.add_argument(
        "--s3",
        metavar="ADDRESS",
        help="keep the blobs in s3://BUCKET/PREFIX (extra: gristmill[s3])",
    )
    parser.add_argument("--s3-endpoint", metavar="URL", help="of a server that is not AWS")
    parser.add_argument("--s3-region", metavar="NAME", help="us-east-1")
    parser.add_argument(
        "--s3-credentials",
        metavar="FILE",
        help="[default] with aws_access_key_id and aws_secret_access_key, mode 0600; without it "
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY of the environment",
    )
    parser.add_argument(
        "--grace", dest="grace_ms", metavar="TIME", help="life of a blob that nobody pins: 30d"
    )
    parser.add_argument(
        "--collect-every", dest="collect_every_ms", metavar="TIME", help="how often to free: 1h"
    )
    parser.add_argument("--idle", dest="idle_s", metavar="SECONDS", help="close idle connections")
    parser.add_argument("--connections-max", metavar="N", help="connections at a time")
    parser.add_argument("--ready-fd", metavar="N", help="write READY to this descriptor")
    parser.add_argument("--die-with-parent", dest="is_dying_with_parent", action="store_true")
    parser.add_argument(
        "--collect",
        dest="is_collecting",
        action="store_true",
        help="free what nobody pins, say what, and end; while no store runs on the folder",
    )
    parser.add_argument(
        "--print-key",
        dest="is_printing_key",
        action="store_true",
        help="print the store's own public key, for https, and end",
    )
    parser.add_argument("--dry-run", dest="is_dry_run", action="store_true", help="only say what")
    return parser


def read_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Settings from a command line and an environment.

    Raises:
        RemoteError: ``INVALID_SPEC``, naming every bad option.
        SystemExit: ``--help``, or an option that does not exist (code 2).
    """
    parser = _parser()
    values: dict[str, Any] = {
        name.removeprefix(_PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(_PREFIX)
    }
    for short, field in (
        ("grace", "grace_ms"),
        ("collect_every", "collect_every_ms"),
        ("idle", "idle_s"),
        ("die_with_parent", "is_dying_with_parent"),
    ):
        if short in values:
            values[field] = values.pop(short)
    given = vars(parser.parse_args(arguments))
    values.update({name: value for name, value in given.items() if value not in (None, False)})
    try:
        settings = Settings.model_validate(values)
    except pydantic.ValidationError as error:
        bad = "; ".join(
            f"--{'.'.join(map(str, fault['loc'])).replace('_', '-')}: {fault['msg']}"
            for fault in error.errors()
        )
        raise RemoteError("INVALID_SPEC", bad, parser.format_usage()) from None
    missing = [f"--{name}" for name in ("listen", "key") if not getattr(settings, name)]
    if missing and not settings.is_collecting and not settings.is_printing_key:
        raise RemoteError(
            "INVALID_SPEC", f"{' and '.join(missing)} must be given", parser.format_usage()
        )
    return settings


def from_process(arguments: Sequence[str]) -> Settings:
    """Settings of this very process; see ``read_settings``."""
    return read_settings(arguments, os.environ)
