"""Every setting of the broker process: unit, default and range, read once at the start."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import pydantic

from gristmill.broker.principals import parse_allow
from gristmill.wire import limits
from gristmill.wire.errors import RemoteError
from gristmill.wire.ids import is_digest
from gristmill.wire.registry import Principal
from gristmill.wire.spec import Tariff
from gristmill.wire.tariffs import STANDARD, STANDARD_TARIFF, parse_tariffs

ENVIRONMENT_PREFIX = "GRISTMILL_BROKER_"


class BrokerSettings(pydantic.BaseModel):
    """What an operator may choose.

    The limits that both sides of a dialogue rely on are in ``wire/limits.py``.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    state: pathlib.Path  #: folder of journal.db and broker.key
    front: str  #: address for clients
    back: str  #: address for workers
    ledger: str  #: address of the ledger
    ledger_key: str = ""  #: its public key, 64 hex characters; over TCP there must be one
    #: who may connect over TCP whatever the registry says: operator=KEY, client:TENANT=KEY,
    #: worker:NAME=KEY, several parted by commas
    allow: tuple[Principal, ...] = ()
    registry: str = ""  #: address of the registry on this host, ipc://; empty for none
    store: str = ""  #: address of the store, handed to clients and workers
    store_key: str = ""  #: its public key, 64 hex characters; over https there must be one
    #: results and parcels kept in memory; the rest is read back from the journal
    parcel_cache_bytes: int = pydantic.Field(limits.PARCEL_CACHE_BYTES, ge=1 << 20)
    result_cache_bytes: int = pydantic.Field(limits.RESULT_CACHE_BYTES, ge=1 << 20)
    #: what the journal may have waiting before the broker stops reading its sockets
    journal_backlog_bytes: int = pydantic.Field(64 << 20, ge=1 << 20)
    #: free space on the journal's disk below which new jobs and parcels are refused
    disk_reserve_bytes: int = pydantic.Field(64 << 20, ge=0)
    #: parcels, and results that were not dropped, of one tenant on the broker's disk (each)
    tenant_disk_bytes: int = pydantic.Field(limits.TENANT_DISK_BYTES, ge=1 << 20)
    #: resident memory at which the broker ends itself, to be started again; 0 is a quarter of the
    #: host's memory, and at least 1 GiB
    memory_bytes: int = pydantic.Field(0, ge=0)
    #: past jobs whose results are gone leave a tombstone after this many days, or beyond this many
    past_days: int = pydantic.Field(30, ge=0)
    past_jobs_max: int = pydantic.Field(100_000, ge=0)
    #: what work costs on each class of nodes: ``CLASS=cpu:1,gib:0.05,subtask:0.00001`` in credits
    #: (a cpu second, a GiB-second of reserved memory, a subtask), several parted by ``;``
    tariff: dict[str, Tariff] = pydantic.Field({STANDARD: STANDARD_TARIFF})
    client_ttl_ms: int = pydantic.Field(limits.CLIENT_TTL_MS, ge=100)
    client_ping_ms: int = pydantic.Field(limits.CLIENT_PING_MS, ge=10)
    worker_ttl_ms: int = pydantic.Field(limits.TTL_MS, ge=100)
    #: after a restart, started work waits this long for the workers that may hold it
    adopt_ms: int = pydantic.Field(1_000, ge=0)
    worker_report_ms: int = pydantic.Field(limits.REPORT_MS, ge=10)
    #: silence of the ledger after which a batch is sent again, and after which it counts as down
    ledger_resend_ms: int = pydantic.Field(1_000, ge=10)
    ledger_ttl_ms: int = pydantic.Field(3_500, ge=100)
    #: contributions spooled while the ledger is down; past it new jobs wait, none is dropped
    outbox_rows_max: int = pydantic.Field(limits.OUTBOX_ROWS_MAX, ge=1)
    jobs_per_tenant_max: int = pydantic.Field(limits.JOBS_PER_TENANT_MAX, ge=1)
    queued_subtasks_max: int = pydantic.Field(limits.QUEUED_SUBTASKS_MAX, ge=1)
    subtasks_per_tenant_max: int = pydantic.Field(limits.SUBTASKS_PER_TENANT_MAX, ge=1)
    #: what each client's key may ask for over TCP, unless its principal says else: messages a
    #: second, how many at once, their bytes, open sessions; 0 for no limit
    requests_per_s: int = pydantic.Field(limits.REQUESTS_PER_S, ge=0)
    requests_burst: int = pydantic.Field(limits.REQUESTS_BURST, ge=1)
    bytes_per_s: int = pydantic.Field(limits.BYTES_PER_S, ge=0)
    bytes_burst: int = pydantic.Field(limits.BYTES_BURST, ge=1)
    sessions_per_key_max: int = pydantic.Field(limits.SESSIONS_PER_KEY_MAX, ge=0)
    #: HELLOs and refused messages of each worker's key; 0 for no limit
    worker_requests_per_s: int = pydantic.Field(limits.WORKER_REQUESTS_PER_S, ge=0)
    #: new connections a second of each known key, and of strangers from each address; 0: no limit
    connections_per_s: int = pydantic.Field(limits.CONNECTIONS_PER_S, ge=0)
    tick_ms: int = pydantic.Field(20, ge=1, le=1_000)  #: the core hears of time this often
    #: messages taken from one socket before the next one has its turn
    drain_messages: int = pydantic.Field(64, ge=1, le=4_096)
    #: messages that wait in our memory for one peer that does not read; then it is dropped
    peer_queue_messages: int = pydantic.Field(4_096, ge=16)
    peer_queue_bytes: int = pydantic.Field(32 << 20, ge=1 << 20)

    @pydantic.model_validator(mode="after")
    def _has_key(self) -> "BrokerSettings":
        if self.ledger_key and not is_digest(self.ledger_key):
            raise ValueError(f"ledger_key is {self.ledger_key!r:.80}; 64 hex characters")
        if self.registry and not self.registry.startswith("ipc://"):
            raise ValueError(f"registry is {self.registry!r:.80}; it is on this host: ipc:///path")
        if self.store_key and not is_digest(self.store_key):
            raise ValueError(f"store_key is {self.store_key!r:.80}; 64 hex characters")
        if self.store.startswith("https://") and not self.store_key and "#" not in self.store:
            raise ValueError(f"store_key is missing: {self.store} must prove that it has it")
        if not self.ledger_key and not self.ledger.startswith("ipc://"):
            raise ValueError(f"ledger_key is missing: {self.ledger} must prove that it has it")
        return self

    @property
    def store_address(self) -> str:
        """Of the store, with its key where that is needed to reach it."""
        is_bare = self.store.startswith("https://") and "#" not in self.store
        return f"{self.store}#{self.store_key}" if is_bare else self.store

    @pydantic.field_validator("allow", mode="before")
    @classmethod
    def _allow(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [part for part in value.split(",") if part.strip()]
        return tuple(parse_allow(one) if isinstance(one, str) else one for one in value)

    @pydantic.field_validator("tariff", mode="before")
    @classmethod
    def _tariffs(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = [part.strip() for part in value.split(";") if part.strip()]
        return parse_tariffs(value) if isinstance(value, list | tuple) else value


def read_settings(given: Mapping[str, Any], environ: Mapping[str, str]) -> BrokerSettings:
    """The settings: what was given on the command line, else the environment, else defaults.

    Raises:
        RemoteError: ``INVALID_SPEC`` that names every bad setting.
    """
    values: dict[str, Any] = {}
    for name in BrokerSettings.model_fields:
        if given.get(name) is not None:
            values[name] = given[name]
        elif (text := environ.get(ENVIRONMENT_PREFIX + name.upper())) is not None:
            values[name] = text
    try:
        return BrokerSettings(**values)
    except pydantic.ValidationError as error:
        bad = "; ".join(
            f"{'.'.join(map(str, fault['loc']))}: {fault['msg']} (got {fault['input']!r:.80})"
            if fault["type"] != "missing" and fault["loc"]
            else str(fault["msg"])
            if not fault["loc"]  # of several settings together
            else f"{fault['loc'][0]}: missing"
            for fault in error.errors()
        )
        raise RemoteError(
            "INVALID_SPEC",
            f"settings of the broker: {bad}",
            f"give them as --name or {ENVIRONMENT_PREFIX}NAME; see --help",
        ) from None


def own_environment() -> Mapping[str, str]:
    """The environment of this process."""
    return os.environ
