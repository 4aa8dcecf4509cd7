"""What a registry process is told: options, or ``GRISTMILL_REGISTRY_*`` where one is absent."""

import argparse
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pydantic

from gristmill.broker.registry.core.records import Policy
from gristmill.wire.enrolment import BrokerAt
from gristmill.wire.errors import RemoteError
from gristmill.wire.socket import check_listen_address
from gristmill.wire.units import parse_ms

_PREFIX = "GRISTMILL_REGISTRY_"


class Settings(pydantic.BaseModel):
    """Settings of one registry process.

    ``state``: folder of ``registry.db`` and ``registry.key``. ``control``: for brokers and for
    operators on this host, ipc in a folder of ours alone. ``enrolment``: a TCP address for nodes;
    without it nobody enrols. ``told``: its ``HOST:PORT`` as nodes reach it, where it is another.
    ``brokers``: (address for workers, public key), told to nodes that are approved. ``approvals``:
    operators who must approve a node. ``token_ttl``, ``pending_ttl``, ``vanished``: ms; a pending
    node that was silent for the last of them is not approved.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    state: pathlib.Path
    control: str
    enrolment: str = ""
    told: str = pydantic.Field(default="", pattern=r"^(.+:\d{1,5})?$")
    brokers: tuple[tuple[str, str], ...] = ()
    approvals: int = pydantic.Field(default=1, ge=1, le=10)
    token_ttl: int = pydantic.Field(default=15 * 60_000, ge=1_000, le=7 * 86_400_000)
    vanished: int = pydantic.Field(default=30_000, ge=1_000, le=3_600_000)
    pending_ttl: int = pydantic.Field(default=86_400_000, ge=1_000, le=90 * 86_400_000)
    ready_fd: int | None = pydantic.Field(default=None, ge=3)
    is_dying_with_parent: bool = False

    @property
    def policy(self) -> Policy:
        """What the core needs of it."""
        return Policy(
            approvals=self.approvals,
            token_ttl_ms=self.token_ttl,
            pending_ttl_ms=self.pending_ttl,
            vanished_ms=self.vanished,
        )

    @property
    def broker_list(self) -> list[BrokerAt]:
        """As nodes are told them."""
        return [BrokerAt(address, public) for address, public in self.brokers]


def parse_broker(text: str) -> tuple[str, str]:
    """(address, public key) from ``ADDRESS=KEY``.

    Raises:
        ValueError: the message shows what is accepted.
    """
    address, _, public = text.rpartition("=")
    if not address or not re.fullmatch("[0-9a-f]{64}", public):
        raise ValueError(
            f"{text!r:.200} is no broker; write ADDRESS=KEY: tcp://10.0.0.1:7033= and what 'python"
            " -m gristmill.broker --print-key' prints"
        )
    return address, public


def read_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Settings from a command line and an environment.

    Raises:
        RemoteError: ``INVALID_SPEC`` or ``NOT_LOOPBACK``, naming the option.
        SystemExit: ``--help``, or an option that does not exist (code 2).
    """
    parser = _parser()
    given = {k: v for k, v in vars(parser.parse_args(arguments)).items() if v not in (None, False)}
    values: dict[str, Any] = {
        name.removeprefix(_PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(_PREFIX)
    }
    if "brokers" in values:
        values["brokers"] = [part for part in values["brokers"].split(",") if part]
    values.update(given)
    values["is_dying_with_parent"] = values.pop("die_with_parent", False)
    try:
        values["brokers"] = tuple(parse_broker(text) for text in values.get("brokers", ()))
        for name in ("token_ttl", "pending_ttl", "vanished"):
            if name in values:
                values[name] = parse_ms(values[name])
        settings = Settings.model_validate(values)
    except pydantic.ValidationError as error:
        bad = [f"--{_option(fault['loc'])}: {fault['msg']}" for fault in error.errors()]
        raise RemoteError("INVALID_SPEC", "; ".join(bad), parser.format_usage()) from None
    except ValueError as error:
        raise RemoteError("INVALID_SPEC", str(error), parser.format_usage()) from None
    if not settings.control.startswith("ipc://"):
        raise RemoteError(
            "INVALID_SPEC",
            f"--control is {settings.control!r}: who may decide is who may open that folder",
            "give --control ipc:///run/gristmill/registry",
        )
    check_listen_address(settings.control, for_group=True)  # of the brokers, see deploy/
    if settings.enrolment:
        if not settings.enrolment.startswith("tcp://"):
            raise RemoteError(
                "INVALID_SPEC",
                f"--enrolment is {settings.enrolment!r}: no address for nodes",
                "give --enrolment tcp://10.0.0.1:7034; it is CURVE, on any interface",
            )
        check_listen_address(settings.enrolment, has_keys=True)
    return settings


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gristmill.broker.registry",
        description="The registry of a grid: who may speak on it, and how nodes enrol.",
        epilog=f"Each option can also be given as {_PREFIX}NAME; several brokers with commas.",
    )
    parser.add_argument("--state", metavar="DIR", help="folder of registry.db and registry.key")
    parser.add_argument(
        "--control", metavar="ADDRESS", help="for brokers and operators here: ipc:///path"
    )
    parser.add_argument(
        "--enrolment", metavar="ADDRESS", help="for nodes that enrol: tcp://HOST:PORT, CURVE"
    )
    parser.add_argument("--told", metavar="HOST:PORT", help="of --enrolment, as nodes reach it")
    parser.add_argument(
        "--broker", dest="brokers", action="append", metavar="ADDRESS=KEY",
        help="where workers of approved nodes connect, and its public key; repeat for others",
    )  # fmt: skip
    parser.add_argument("--approvals", metavar="N", help="operators who must approve a node (1)")
    parser.add_argument("--token-ttl", metavar="TIME", help="longest life of a node's token (15m)")
    parser.add_argument(
        "--pending-ttl", metavar="TIME", help="a node that nobody decides about expires (1d)"
    )
    parser.add_argument(
        "--vanished",
        metavar="TIME",
        help="a node that was silent for so long is not approved (30s)",
    )
    parser.add_argument("--ready-fd", metavar="N", help="write READY to this descriptor")
    parser.add_argument("--die-with-parent", action="store_true", help="end when the starter ends")
    return parser


def _option(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location).replace("_", "-")


def from_process(arguments: Sequence[str]) -> Settings:
    """Settings of this very process; see ``read_settings``."""
    return read_settings(arguments, os.environ)
