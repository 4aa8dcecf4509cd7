"""Every setting of a worker: unit, default and range, read once at the start."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import pydantic

from gristmill.wire import limits
from gristmill.wire.errors import RemoteError
from gristmill.wire.ids import is_digest
from gristmill.wire.spec import TIERS, Tier
from gristmill.wire.units import parse_bytes, parse_ms
from gristmill.worker.enrolment import read_kept

ENVIRONMENT_PREFIX = "GRISTMILL_WORKER_"


class WorkerSettings(pydantic.BaseModel):
    """What the owner of a node may choose."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    state: pathlib.Path  #: folder of worker.key, the blob cache and what jails need
    broker: str  #: the broker's address for workers
    broker_key: str = ""  #: its public key, 64 hex characters; over TCP there must be one
    name: str = pydantic.Field(min_length=1, max_length=limits.NAME_CHARS_MAX)
    slots: int = pydantic.Field(
        default_factory=lambda: len(os.sched_getaffinity(0)),
        ge=1,
        le=limits.SLOTS_PER_WORKER_MAX,
    )
    #: what this node admits; ``trusted`` (no jail at all) only when named here
    tiers: tuple[Tier, ...] = ("strict", "job", "batch")
    labels: dict[str, str] = pydantic.Field(default_factory=dict, max_length=limits.LABELS_MAX)
    cpus: float = pydantic.Field(0.0, ge=0)  #: on offer; 0 for one a slot
    memory: int = pydantic.Field(0, ge=0)  #: bytes on offer; 0 for all of the host's
    grace: int = pydantic.Field(30_000, ge=0)  #: ms that a drain lets subtasks run
    cache: int = pydantic.Field(1 << 30, ge=0)  #: bytes of input blobs kept on disk
    spares: int = pydantic.Field(4, ge=0, le=64)  #: jails kept ready: nobody's and a tenant's
    #: idle jails kept for jobs that share the slots, up to 64 MiB each; and idle mothers
    parked: int = pydantic.Field(8, ge=0, le=1_024)
    #: False does without cgroups: rlimits stand in, and every outcome says so
    cgroups: bool = True
    #: True refuses to start without them, as units of deploy/ do
    needs_cgroups: bool = False

    @pydantic.model_validator(mode="after")
    def _has_key(self) -> "WorkerSettings":
        if self.broker_key and not is_digest(self.broker_key):
            raise ValueError(f"broker_key is {self.broker_key!r:.80}; 64 hex characters")
        if not self.broker_key and not self.broker.startswith("ipc://"):
            raise ValueError(f"broker_key is missing: {self.broker} must prove that it has it")
        return self

    @pydantic.field_validator("memory", "cache", mode="before")
    @classmethod
    def _bytes(cls, value: Any) -> Any:
        return parse_bytes(value) if isinstance(value, str) else value

    @pydantic.field_validator("grace", mode="before")
    @classmethod
    def _ms(cls, value: Any) -> Any:
        return parse_ms(value) if isinstance(value, str) else value

    @pydantic.field_validator("tiers", mode="before")
    @classmethod
    def _tiers(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        names = [name.strip() for name in value.split(",") if name.strip()]
        unknown = [name for name in names if name not in TIERS]
        if unknown or not names:
            raise ValueError(f"tiers are {', '.join(TIERS)}; got {value!r}")
        return tuple(tier for tier in TIERS if tier in names)

    @pydantic.field_validator("labels", mode="before")
    @classmethod
    def _labels(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [part for part in value.split(",") if part]
        if not isinstance(value, list | tuple):
            return value
        labels = {}
        for part in value:
            key, equals, text = part.partition("=")
            if not equals or not key:
                raise ValueError(f"a label is written key=value; got {part!r}")
            labels[key] = text
        return labels


def read_settings(given: Mapping[str, Any], environ: Mapping[str, str]) -> WorkerSettings:
    """The settings: what was given on the command line, else the environment, else defaults.

    A node that enrolled knows its name, its broker and the broker's key from there.

    Raises:
        RemoteError: ``INVALID_SPEC`` that names every bad setting.
    """
    values: dict[str, Any] = {}
    for name in WorkerSettings.model_fields:
        if given.get(name) is not None:
            values[name] = given[name]
        elif (text := environ.get(ENVIRONMENT_PREFIX + name.upper())) is not None:
            values[name] = text
    if "state" in values and "broker" not in values:
        kept = read_kept(pathlib.Path(values["state"]))
        if kept is not None and kept.brokers:  # a worker serves one
            at = kept.brokers[0]
            values = {"name": kept.name, **values, "broker": at.address, "broker_key": at.public}
    try:
        return WorkerSettings(**values)
    except pydantic.ValidationError as error:
        bad = "; ".join(
            f"{fault['loc'][0]}: missing"
            if fault["type"] == "missing"
            else str(fault["msg"])
            if not fault["loc"]  # of several settings together
            else f"{'.'.join(map(str, fault['loc']))}: {fault['msg']} (got {fault['input']!r:.80})"
            for fault in error.errors()
        )
        raise RemoteError(
            "INVALID_SPEC",
            f"settings of the worker: {bad}",
            f"give them as --name or {ENVIRONMENT_PREFIX}NAME; see --help",
        ) from None
