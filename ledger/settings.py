"""What a ledger process is told: options, or ``GRISTMILL_LEDGER_*`` where an option is absent."""

import argparse
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import pydantic

from gristmill.ledger.door import Role, parse_allow
from gristmill.wire.errors import RemoteError
from gristmill.wire.limits import NAME_CHARS_MAX
from gristmill.wire.socket import check_listen_address
from gristmill.wire.units import parse_credits

_PREFIX = "GRISTMILL_LEDGER_"


class Settings(pydantic.BaseModel):
    """Settings of one ledger process.

    ``state``: folder of ``ledger.db`` and ``ledger.key``. ``books``: a PostgreSQL database instead
    of the file. ``listen``: a ZeroMQ address. ``allow``: (public key, role) of who may speak to it
    over TCP, where nobody else may. ``fund``: (tenant,
    micro-credits) minted once, at the first start that names the tenant. ``group_entries``: about
    how many outbox entries share one transaction. ``epoch_s``: an epoch is closed so long after its
    first receipt. ``hold_expiry_s``: after this silence of a broker its holds go back to their
    tenants. ``ready_fd``: a descriptor to say READY on.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    state: pathlib.Path
    listen: str
    books: str = pydantic.Field(default="", pattern="^(postgresql://.*)?$")
    allow: tuple[tuple[str, Role], ...] = ()
    fund: tuple[tuple[str, int], ...] = ()
    group_entries: int = pydantic.Field(default=8_192, ge=1, le=1_000_000)
    epoch_s: int = pydantic.Field(default=60, ge=1, le=86_400)
    hold_expiry_s: int = pydantic.Field(default=30 * 86_400, ge=3_600, le=10 * 366 * 86_400)
    ready_fd: int | None = pydantic.Field(default=None, ge=3)
    is_dying_with_parent: bool = False


def parse_fund(text: str) -> tuple[str, int]:
    """(tenant, micro-credits) from ``TENANT=CREDITS``.

    Raises:
        ValueError: the message shows what is accepted.
    """
    tenant, _, amount = text.rpartition("=")
    if not 0 < len(tenant) <= NAME_CHARS_MAX:
        raise ValueError(f"{text!r} is no funding; write it as TENANT=CREDITS, local=1000")
    return tenant, parse_credits(amount)


def read_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Settings from a command line and an environment.

    Raises:
        RemoteError: ``INVALID_SPEC`` or ``NOT_LOOPBACK``, naming the option.
        SystemExit: ``--help``, or an option that does not exist (code 2).
    """
    parser = argparse.ArgumentParser(
        prog="python -m gristmill.ledger",
        description="The ledger of a grid: double entry in SQLite, fed by the broker's outbox.",
        epilog=f"Each option can also be given as {_PREFIX}NAME; several fundings with commas.",
    )
    parser.add_argument("--state", metavar="DIR", help="folder of ledger.db")
    parser.add_argument(
        "--books", metavar="URL", help="postgresql://...: the books are there, not in a file"
    )
    parser.add_argument("--listen", metavar="ADDRESS", help="ipc:///path or tcp://HOST:PORT")
    parser.add_argument(
        "--allow",
        metavar="ROLE=KEY",
        action="append",
        help="over TCP: this public key speaks as a broker, an operator or a treasury",
    )
    parser.add_argument(
        "--fund",
        metavar="TENANT=CREDITS",
        action="append",
        help="mint credits for a tenant at the first start that says so",
    )
    parser.add_argument("--group-entries", metavar="N", help="entries in one transaction, about")
    parser.add_argument(
        "--hold-expiry-s",
        metavar="SECONDS",
        help="holds of a broker that was silent for so long go back to their tenants; 30 days",
    )
    parser.add_argument(
        "--epoch-s", metavar="N", help="close an epoch so long after its first receipt (60)"
    )
    parser.add_argument("--ready-fd", metavar="N", help="write READY to this descriptor")
    parser.add_argument("--die-with-parent", action="store_true", help="end when the starter ends")
    given = {k: v for k, v in vars(parser.parse_args(arguments)).items() if v not in (None, False)}
    values: dict[str, Any] = {
        name.removeprefix(_PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(_PREFIX)
    }
    for name in ("fund", "allow"):
        if name in values:
            given.setdefault(name, [part for part in values.pop(name).split(",") if part])
    values.update(given)
    values["is_dying_with_parent"] = values.pop("die_with_parent", False)
    try:
        option = "--fund"
        values["fund"] = tuple(parse_fund(text) for text in values.get("fund", ()))
        option = "--allow"
        values["allow"] = tuple(parse_allow(text) for text in values.get("allow", ()))
        settings = Settings.model_validate(values)
    except pydantic.ValidationError as error:
        bad = [f"--{_option(fault['loc'])}: {fault['msg']}" for fault in error.errors()]
        raise RemoteError("INVALID_SPEC", "; ".join(bad), parser.format_usage()) from None
    except ValueError as error:
        raise RemoteError("INVALID_SPEC", f"{option}: {error}", parser.format_usage()) from None
    has_keys = bool(settings.allow)
    check_listen_address(settings.listen, has_keys)
    if not settings.listen.startswith("ipc://") and not has_keys:
        raise RemoteError(
            "UNAUTHORISED",
            f"{settings.listen} would let everybody in: over TCP a ledger knows who may speak",
            "name each with --allow ROLE=KEY, or listen at ipc:///path",
        )
    if settings.listen.startswith("ipc://") and has_keys:
        raise RemoteError(
            "INVALID_SPEC",
            f"--allow is for TCP; whoever is in the folder of {settings.listen} may speak",
            "listen at tcp://HOST:PORT, or leave --allow out",
        )
    return settings


def _option(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location).replace("_", "-")


def from_process(arguments: Sequence[str]) -> Settings:
    """Settings of this very process; see ``read_settings``."""
    return read_settings(arguments, os.environ)
