"""What a settlement is told: options, ``GRISTMILL_SETTLEMENT_*``, and a TOML file.

No key and no password is a setting: the file names a keystore's file and the file of its password,
or a signer elsewhere that keeps the key to itself.
"""

import argparse
import os
import pathlib
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pydantic

from gristmill.wire.errors import RemoteError
from gristmill.wire.socket import check_listen_address
from gristmill.wire.units import parse_credits, parse_ms

_PREFIX = "GRISTMILL_SETTLEMENT_"
CHAINS = ("evm",)
GWEI = 10**9


class Settings(pydantic.BaseModel):
    """Settings of one settlement.

    ``state``: folder of ``settlement.db``, its lock, ``settlement.key`` and the lists of payouts.
    ``ledger``, ``ledger_key``: as a treasury's. ``store``: where the lists of payouts are
    published; empty: in the state folder only.
    ``chain``: only evm there is. ``rpcs``: one URL, or a second whose word each block needs.
    ``deployment``: the file that ``gristmill chain deploy`` wrote. ``keystore`` with
    ``password_file``, or ``signer`` (a URL) with ``account`` (its address). ``depth``: K, blocks.
    ``start``: the first block to read; 0: the contracts' own. ``range_blocks``: asked for at once.
    ``poll_s``: between two turns. ``epoch``: between two redemptions of a rental.
    ``hurry``: before a refund is possible a voucher is redeemed whatever the time.
    ``redeem_min``: credits that are worth a redemption before that. ``reconcile``: between two
    reports. ``bump_blocks``: without being mined, before a higher fee. ``fee_cap_gwei``: for a unit
    of gas. ``fee_day_gwei``: for all gas of a day. ``in_flight``: nonces that are not final.
    ``pending_max``: transactions that wait before there is an alarm.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    state: pathlib.Path
    ledger: str
    ledger_key: str = pydantic.Field(default="", pattern="^([0-9a-f]{64})?$")
    store: str = ""
    config: pathlib.Path | None = None
    chain: Literal["evm"] = "evm"
    rpcs: tuple[str, ...] = pydantic.Field(min_length=1, max_length=4)
    deployment: pathlib.Path
    keystore: pathlib.Path | None = None
    password_file: pathlib.Path | None = None
    signer: str = ""
    account: str = ""
    depth: int = pydantic.Field(default=12, ge=1, le=1_000)
    start: int = pydantic.Field(default=0, ge=0)
    range_blocks: int = pydantic.Field(default=200, ge=1, le=10_000)
    timeout: int = pydantic.Field(default=15_000, ge=100, le=120_000)
    poll_s: float = pydantic.Field(default=2.0, gt=0, le=600)
    epoch: int = pydantic.Field(default=3_600_000, ge=100, le=7 * 86_400_000)
    hurry: int = pydantic.Field(default=3_600_000, ge=1_000, le=30 * 86_400_000)
    redeem_min: int = pydantic.Field(default=1_000_000, ge=1)
    reconcile: int = pydantic.Field(default=600_000, ge=100, le=7 * 86_400_000)
    bump_blocks: int = pydantic.Field(default=5, ge=1, le=1_000)
    fee_cap_gwei: int = pydantic.Field(default=200, ge=1, le=1_000_000)
    fee_day_gwei: int = pydantic.Field(default=GWEI, ge=1)
    in_flight: int = pydantic.Field(default=16, ge=1, le=1_000)
    pending_max: int = pydantic.Field(default=1_000, ge=1, le=1_000_000)
    is_replaying: bool = False
    ready_fd: int | None = pydantic.Field(default=None, ge=3)
    is_dying_with_parent: bool = False

    @pydantic.field_validator("chain", mode="before")
    @classmethod
    def _known_chain(cls, value: Any) -> Any:
        if value not in CHAINS:
            raise ValueError(f"{value!r} is no chain that this release settles on; there is evm")
        return value

    @pydantic.field_validator("epoch", "hurry", "reconcile", "timeout", mode="before")
    @classmethod
    def _duration(cls, value: Any) -> Any:
        return parse_ms(value)

    @pydantic.field_validator("redeem_min", mode="before")
    @classmethod
    def _credits(cls, value: Any) -> Any:
        """Credits as people write them; a float has lost what it was."""
        if isinstance(value, float | bool):
            raise ValueError('write it as text, "12.5": a float is not exact')
        return parse_credits(value)

    @pydantic.field_validator("rpcs", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        return tuple(value.split()) if isinstance(value, str) else value

    @pydantic.model_validator(mode="after")
    def _one_key(self) -> "Settings":
        if bool(self.keystore) == bool(self.signer):
            raise ValueError("name a keystore or a signer, one of them: who signs?")
        if self.keystore and not self.password_file:
            raise ValueError("password_file is missing: of the keystore")
        if self.signer and not self.account:
            raise ValueError("account is missing: the address whose key the signer has")
        return self


def _file(path: pathlib.Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RemoteError("INVALID_SPEC", f"{path}: {error}", "see docs/settlement.md") from None


def read_settings(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Settings from a command line, an environment and the file that they name.

    Raises:
        RemoteError: ``INVALID_SPEC`` naming each wrong field, an unknown one included.
        SystemExit: ``--help``, or an option that does not exist (code 2).
    """
    parser = argparse.ArgumentParser(
        prog="python -m gristmill.ledger.settlement",
        description="The settlement of a grid: holds the chain and the ledger together.",
        epilog=f"Each option can also be given as {_PREFIX}NAME; everything else is in the file.",
    )
    parser.add_argument("--state", metavar="DIR", help="folder of settlement.db")
    parser.add_argument("--ledger", metavar="ADDRESS", help="ipc:///path or tcp://HOST:PORT")
    parser.add_argument(
        "--ledger-key", metavar="HEX", help="the ledger's public key; needed over tcp://"
    )
    parser.add_argument("--store", metavar="ADDRESS", help="of the grid, which publishes the lists")
    parser.add_argument("--config", metavar="FILE", help="TOML: the chain, the key, the limits")
    parser.add_argument("--replay", action="store_true", help="read the chain from its beginning")
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
    values["is_replaying"] = values.pop("replay", False)
    if "config" in values:
        values = _file(pathlib.Path(values["config"])) | values
    try:
        settings = Settings.model_validate(values)
    except pydantic.ValidationError as error:
        bad = [f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors()]
        raise RemoteError("INVALID_SPEC", "; ".join(bad), parser.format_usage()) from None
    check_listen_address(settings.ledger, has_keys=bool(settings.ledger_key))
    if not settings.ledger_key and not settings.ledger.startswith("ipc://"):
        told = f"{settings.ledger} must prove that it is the ledger: --ledger-key is missing"
        raise RemoteError("UNAUTHORISED", told, "give the public key that the ledger logs")
    return settings


def from_process(arguments: Sequence[str]) -> Settings:
    """Settings of this very process; see ``read_settings``."""
    return read_settings(arguments, os.environ)
