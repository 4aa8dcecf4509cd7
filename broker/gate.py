"""How much each key may ask of one port: its meter, by its principal's limits; and who was refused.

A ROUTER cannot stop reading one peer, so who is over its rate is told ``RATE_LIMITED`` with the
time after which it may go on. From then until that time nothing of it is taken: what followed must
not overtake what was refused. ``RATE_ANSWERS_MAX`` of these messages are answered, the rest are
counted, unread. Over ``ipc://`` there are no keys, and no meters.
"""

import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

from gristmill.broker.core.meter import Meter
from gristmill.broker.core.state import Config
from gristmill.broker.core.tenants import Tenant
from gristmill.broker.metrics import Metrics
from gristmill.broker.ports import User
from gristmill.broker.principals import PORTS, Principals
from gristmill.broker.settings import BrokerSettings
from gristmill.wire import limits
from gristmill.wire.errors import CODES, RemoteError
from gristmill.wire.refusals import Refusals
from gristmill.wire.registry import NO_LIMITS, LimitRow, Limits, Role

log = logging.getLogger("gristmill.broker.gate")

#: what goes to the log; other refusals are mistakes of people, or of the moment
_TOLD = frozenset(
    {
        "FORBIDDEN", "KEY_EXPIRED", "KEY_REVOKED", "MALFORMED", "NAME_TAKEN", "NODE_PENDING",
        "NODE_REFUSED", "PROTOCOL", "RATE_LIMITED", "UNAUTHORISED",
    }
)  # fmt: skip
HELD_MS = 5_000  #: so long after a wait 'why' still names it
SESSION_RETRY_MS = 1_000  #: who has too many sessions asks again after this
_SHUT_MAX = limits.SESSIONS_MAX


class RateError(RemoteError):
    """``RATE_LIMITED``: nothing passes for this long."""

    def __init__(self, message: str, retry_after_ms: int, is_answered: bool) -> None:
        super().__init__("RATE_LIMITED", message, CODES["RATE_LIMITED"].next_move)
        self.retry_after_ms = retry_after_ms
        self.is_answered = is_answered


class Rates(NamedTuple):
    """(a second, burst) of messages and of their bytes; most sessions. 0: no limit."""

    requests: tuple[int, int]
    size: tuple[int, int]
    sessions_max: int


def client_rates(settings: BrokerSettings) -> Callable[[Role, Limits], Rates]:
    """Of clients: the settings, where a principal has nothing of its own; operators are free."""
    defaults = Rates(
        (settings.requests_per_s, settings.requests_burst),
        (settings.bytes_per_s, settings.bytes_burst),
        settings.sessions_per_key_max,
    )
    return lambda role, own: _rates(own, FREE if role == "operator" else defaults)


def worker_rates(settings: BrokerSettings) -> Callable[[Role, Limits], Rates]:
    """Of workers: HELLOs and refused messages."""
    requests = settings.worker_requests_per_s, limits.WORKER_REQUESTS_BURST
    return lambda role, own: _rates(own, Rates(requests, (0, 0), 0))


FREE = Rates((0, 0), (0, 0), 0)


def _rates(own: Limits, default: Rates) -> Rates:
    return Rates(
        _rate(own.requests_per_s, own.requests_burst, default.requests),
        _rate(own.bytes_per_s, own.bytes_burst, default.size),
        own.sessions_max or default.sessions_max,
    )


def _rate(per_s: int, burst: int, default: tuple[int, int]) -> tuple[int, int]:
    """A rate of its own without a burst has that of a second."""
    return (per_s, burst or per_s) if per_s else (default[0], burst or default[1])


class Gate:
    """See the module's text.

    Args:
        port: its name, for the log.
        principals: who may speak here; None where there are no keys.
    """

    def __init__(
        self,
        port: str,
        principals: Principals | None,
        rates: Callable[[Role, Limits], Rates],
        metrics: Metrics,
    ) -> None:
        self._port = port
        self._principals = principals
        self._rates = rates
        self._metrics = metrics
        self._meters: dict[str, Meter] = {}
        self._refusals = Refusals()
        self._shut: dict[bytes, Meter] = {}  # by routing id: nothing of it is looked at

    # ------------------------------------------------------------ messages

    def is_shut(self, routing: bytes, now_ms: int) -> bool:
        """Whether this message is to be dropped unread; see the module's text."""
        if not self._shut or (meter := self._shut.get(routing)) is None:
            return False
        if now_ms >= meter.closed_until_ms:
            del self._shut[routing]
            return False
        meter.refused += 1
        self._metrics.rate_limited += 1
        return True

    def take(self, public: str, meter: Meter, cost: int, frames: list[bytes], now_ms: int) -> None:
        """A message of who has this key.

        Raises:
            RateError: it does not pass.
        """
        wait_ms = meter.take(cost, sum(map(len, frames)), now_ms)
        if wait_ms:
            raise self._limited(public, meter, frames[0], wait_ms, now_ms)

    def take_stranger(
        self, frames: list[bytes], cost: int, user: User, now_ms: int
    ) -> Meter | None:
        """A message without a session: its connection's key is asked for, which costs 12 us.

        Raises:
            RateError: it does not pass.
        """
        if self._principals is None:
            return None
        public = user()
        meter = self.meter(public, now_ms)
        self.take(public, meter, cost, frames, now_ms)
        return meter

    def _limited(
        self, public: str, meter: Meter, routing: bytes, wait_ms: int, now_ms: int
    ) -> RateError:
        self._metrics.rate_limited += 1
        meter.answered += 1
        is_answered = meter.answered <= limits.RATE_ANSWERS_MAX
        if not is_answered and len(self._shut) < _SHUT_MAX:
            self._shut[routing] = meter
        found = self._principals.find(public) if self._principals is not None else None
        name = f"{found.name!r} of tenant {found.tenant}" if found else f"{public:.12}..."
        told = f"the key {name} is at its rate of {meter.cause}"
        return RateError(f"{told}; it may go on in {wait_ms} ms", wait_ms, is_answered)

    def check_session(self, public: str, meter: Meter | None) -> None:
        """Whether who has this key may open another session.

        Raises:
            RateError: it has too many.
        """
        if meter is None or not meter.sessions_max or meter.sessions < meter.sessions_max:
            return
        self._metrics.rate_limited += 1
        told = f"the key {public:.12}... has {meter.sessions} open sessions; the limit is"
        raise RateError(f"{told} {meter.sessions_max}", SESSION_RETRY_MS, True)

    # ------------------------------------------------------------ meters

    def meter(self, public: str, now_ms: int) -> Meter:
        """That of a key; made at its first message."""
        meter = self._meters.get(public)
        if meter is None:
            meter = self._meters[public] = Meter(now_ms)
            self._limit(public, meter, now_ms)
        return meter

    def limits_of(self, public: str) -> Limits:
        """What its principal says of a key."""
        found = self._principals.find(public) if self._principals is not None else None
        return found.limits if found is not None else NO_LIMITS

    def change(self, changed: set[str], now_ms: int) -> None:
        """Principals changed: their limits hold from now on; who is gone is forgotten."""
        for public in changed:
            meter = self._meters.get(public)
            if meter is None or self._principals is None:
                continue
            if self._principals.find(public) is None and not meter.sessions:
                del self._meters[public]
            else:
                self._limit(public, meter, now_ms)

    def _limit(self, public: str, meter: Meter, now_ms: int) -> None:
        assert self._principals is not None
        found = self._principals.find(public)
        role: Role = found.role if found is not None else "client"
        own = found.limits if found is not None else NO_LIMITS
        meter.limit(*self._rates(role, own), now_ms)

    def rows(
        self, public: str, now_ms: int, tenants: Mapping[str, Tenant], config: Config
    ) -> list[LimitRow]:
        """Of one key, or ("") of every one that may come."""
        if self._principals is None:
            return []
        found = self._principals.find(public)
        known = self._principals.all() if not public else [found] if found is not None else []
        rows = []
        for who in known:
            if who.role not in PORTS[self._port]:
                continue
            rates, meter = self._rates(who.role, who.limits), self._meters.get(who.public)
            tenant = tenants.get(who.tenant)
            used = (0, 0) if tenant is None else (tenant.jobs, tenant.queued)
            did = (0, 0, 0, 0)
            if meter is not None:
                wait_ms = max(meter.closed_until_ms - now_ms, 0)
                did = meter.sessions, meter.passed, meter.refused, wait_ms
            rows.append(
                LimitRow(
                    who.name, who.public, who.tenant, who.role, *rates.requests, *rates.size,
                    rates.sessions_max, who.limits.jobs_max or config.jobs_per_tenant_max,
                    who.limits.subtasks_max or config.subtasks_per_tenant_max, did[0], *used,
                    *did[1:],
                )
            )  # fmt: skip
        return rows

    def held(self, tenant: str, now_ms: int) -> tuple[str, str] | None:
        """(key, its rate) of a tenant that had to wait within the last seconds."""
        if self._principals is None:
            return None
        for public, meter in self._meters.items():
            if meter.closings and now_ms - meter.closed_until_ms < HELD_MS:
                found = self._principals.find(public)
                if found is not None and found.tenant == tenant:
                    return found.name, meter.cause
        return None

    # ------------------------------------------------------------ who was refused

    def note(self, error: RemoteError, public: str, user: User, now_ms: int) -> None:
        """A message was refused: one line for each key and second, with how many there were."""
        if error.code not in _TOLD:
            return
        name = public or user() or "local"
        if line := self._refusals.note(name, error.code, error.message, now_ms):
            log.warning("refused at the %s: %s", self._port, line)

    def look(self, now_ms: int) -> None:
        """To be called once a second."""
        for line in self._refusals.due(now_ms):
            log.warning("refused at the %s: %s", self._port, line)
        if self._shut:
            self._shut = {at: one for at, one in self._shut.items() if now_ms < one.closed_until_ms}
