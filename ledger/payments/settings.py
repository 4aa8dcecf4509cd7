"""What a treasury is told: options, and a TOML file with a table for each backend."""

import argparse
import os
import pathlib
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

import pydantic

from gristmill.wire.errors import RemoteError
from gristmill.wire.socket import check_listen_address
from gristmill.wire.units import parse_credits, parse_ms

_PREFIX = "GRISTMILL_TREASURY_"
_MODEL = pydantic.ConfigDict(frozen=True, extra="forbid")
_HOUR_MS, _DAY_MS = 3_600_000, 86_400_000


class Sold(pydantic.BaseModel):
    """What every backend's table has.

    ``ucredits_per_unit``: micro-credits for one minor unit of money. ``fee_ppm``: fee on top, in
    millionths of the price. ``amount_min``, ``amount_max``: credits in one purchase. ``expiry``:
    how long an invoice is good. ``callback_secret_file``: of signed hints.
    """

    model_config = _MODEL

    ucredits_per_unit: int = pydantic.Field(ge=1, le=10**12)
    fee_ppm: int = pydantic.Field(default=0, ge=0, le=1_000_000)
    amount_min: int = pydantic.Field(default=1_000_000, ge=1)
    amount_max: int = pydantic.Field(default=10_000_000_000, ge=1)
    expiry: int = pydantic.Field(default=_HOUR_MS, ge=1_000, le=30 * _DAY_MS)
    callback_secret_file: pathlib.Path | None = None

    @pydantic.field_validator("amount_min", "amount_max", mode="before")
    @classmethod
    def _credits(cls, value: Any) -> Any:
        """Credits as people write them; a float has lost what it was."""
        if isinstance(value, float) or isinstance(value, bool):
            raise ValueError('write it as text, "12.5": a float is not exact')
        return parse_credits(value)

    @pydantic.field_validator("expiry", mode="before")
    @classmethod
    def _duration(cls, value: Any) -> Any:
        return parse_ms(value)


class Remote(Sold):
    """A backend elsewhere.

    ``timeout``: of one request. ``authority``: a file with what signs its certificate.
    """

    url: str
    timeout: int = pydantic.Field(default=10_000, ge=100, le=120_000)
    authority: pathlib.Path | None = None

    @pydantic.field_validator("timeout", mode="before")
    @classmethod
    def _timeout(cls, value: Any) -> Any:
        return parse_ms(value)


class LndSettings(Remote):
    """``[lnd]``: unit msat. ``macaroon_file``: invoices:read, invoices:write; mode 0600."""

    ucredits_per_unit: int = pydantic.Field(default=1_000, ge=1, le=10**12)
    macaroon_file: pathlib.Path


class BtcpaySettings(Remote):
    """``[btcpay]``: unit sat. ``key_file`` and ``webhook_secret_file``: mode 0600."""

    ucredits_per_unit: int = pydantic.Field(default=1_000_000, ge=1, le=10**12)
    store: str = pydantic.Field(min_length=1, max_length=100)
    key_file: pathlib.Path
    webhook_secret_file: pathlib.Path
    methods: tuple[str, ...] = ("BTC-CHAIN", "BTC-LN")

    @pydantic.field_validator("methods")
    @classmethod
    def _bitcoin(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [one for one in value if one.partition("-")[0] != "BTC"]:
            raise ValueError(f"{', '.join(wrong)}: only payment methods of BTC are supported")
        return value


class ManualSettings(Sold):
    """``[manual]``: what an operator confirms. ``instructions``: see the example in the docs."""

    ucredits_per_unit: int = pydantic.Field(default=10_000, ge=1, le=10**12)
    expiry: int = pydantic.Field(default=7 * _DAY_MS, ge=1_000, le=30 * _DAY_MS)
    unit: str = pydantic.Field(default="cents", pattern="^(cents|sat|msat)$")
    instructions: str = pydantic.Field(
        default="pay {amount} {unit} to the operator of this grid, with the words: {intent}",
        min_length=1,
        max_length=4_000,
    )


class Settings(pydantic.BaseModel):
    """Settings of one treasury.

    ``state``: folder of ``treasury.key`` and its lock. ``ledger_key``: the ledger's public key,
    over TCP. ``listen``: for callbacks; in the file, too.
    """

    model_config = _MODEL

    state: pathlib.Path
    ledger: str
    ledger_key: str = pydantic.Field(default="", pattern="^([0-9a-f]{64})?$")
    config: pathlib.Path | None = None
    listen: str = ""
    reconcile_s: float = pydantic.Field(default=10.0, gt=0, le=3_600)
    sweep_s: float = pydantic.Field(default=3_600.0, gt=0, le=86_400)
    look_up_s: float = pydantic.Field(default=25.0, gt=0, le=120)
    ready_fd: int | None = pydantic.Field(default=None, ge=3)
    is_dying_with_parent: bool = False
    lnd: LndSettings | None = None
    btcpay: BtcpaySettings | None = None
    manual: ManualSettings | None = None


BACKENDS = ("btcpay", "lnd", "manual")


def _tables(path: pathlib.Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            tables = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RemoteError("INVALID_SPEC", f"{path}: {error}", "see docs/payments.md") from None
    if unknown := sorted(set(tables) - {*BACKENDS, "listen"}):
        raise RemoteError(
            "INVALID_SPEC",
            f"{path}: no payment backend {', '.join(map(repr, unknown))}; "
            f"there are {', '.join(BACKENDS)}",
            "see docs/payments.md",
        )
    return tables


def read_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Settings from a command line, an environment and the file that they name.

    Raises:
        RemoteError: ``INVALID_SPEC`` naming each wrong field.
        SystemExit: ``--help``, or an option that does not exist (code 2).
    """
    parser = argparse.ArgumentParser(
        prog="python -m gristmill.ledger.payments",
        description="The treasury of a grid: takes money for credits and tells the ledger of it.",
        epilog=f"Each option can also be given as {_PREFIX}NAME.",
    )
    parser.add_argument("--state", metavar="DIR", help="folder of treasury.key")
    parser.add_argument("--ledger", metavar="ADDRESS", help="ipc:///path or tcp://HOST:PORT")
    parser.add_argument(
        "--ledger-key", metavar="HEX", help="the ledger's public key; needed over tcp://"
    )
    parser.add_argument("--config", metavar="FILE", help="TOML: [lnd], [btcpay], [manual]")
    parser.add_argument("--listen", metavar="URL", help="for callbacks: http://127.0.0.1:PORT")
    parser.add_argument("--reconcile-s", metavar="S", help="between looks at open intents")
    parser.add_argument("--sweep-s", metavar="S", help="between looks at those that ended lately")
    parser.add_argument("--look-up-s", metavar="S", help="for a callback, before it is sent again")
    parser.add_argument("--ready-fd", metavar="N", help="write READY to this descriptor")
    parser.add_argument("--die-with-parent", action="store_true", help="end when the starter ends")
    given = {k: v for k, v in vars(parser.parse_args(arguments)).items() if v not in (None, False)}
    values: dict[str, Any] = {
        name.removeprefix(_PREFIX).lower(): value
        for name, value in environment.items()
        if name.startswith(_PREFIX)
    }
    values.update(given)
    values["is_dying_with_parent"] = values.pop("die_with_parent", False)
    tables = _tables(pathlib.Path(values["config"])) if "config" in values else {"manual": {}}
    values = tables | values
    try:
        settings = Settings.model_validate(values)
    except pydantic.ValidationError as error:
        bad = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise RemoteError("INVALID_SPEC", "; ".join(bad), parser.format_usage()) from None
    check_listen_address(settings.ledger, has_keys=bool(settings.ledger_key))
    if not settings.ledger_key and not settings.ledger.startswith("ipc://"):
        told = f"{settings.ledger} must prove that it is the ledger: --ledger-key is missing"
        raise RemoteError("UNAUTHORISED", told, "give the public key that the ledger logs")
    return settings


def from_process(arguments: Sequence[str]) -> Settings:
    """Settings of this very process; see ``read_settings``."""
    return read_settings(arguments, os.environ)
