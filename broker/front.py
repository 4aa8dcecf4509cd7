"""The clients' side: frames in, checked; events for the core, or questions, out.

``VERBS`` is the whole table of what may be said here, and by whom. A message that makes no sense,
or that is not allowed, is answered with ``Refused`` and counted; the connection goes on.
"""

import dataclasses
import difflib
import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from gristmill.broker import past
from gristmill.broker.answers import Answers
from gristmill.broker.core import events as on
from gristmill.broker.core.on_clients import content_digest
from gristmill.broker.delivery import Delivery
from gristmill.broker.execution import Execution
from gristmill.broker.gate import Gate, RateError, client_rates
from gristmill.broker.mailbox import Mailbox
from gristmill.broker.metrics import Metrics
from gristmill.broker.operators import Operators
from gristmill.broker.ports import User, no_user
from gristmill.broker.principals import Principals
from gristmill.broker.sessions import Clients, ClientSession, Workers, WorkerSession
from gristmill.broker.settings import BrokerSettings
from gristmill.wire import client as say
from gristmill.wire import limits
from gristmill.wire.errors import RemoteError
from gristmill.wire.frames import encode
from gristmill.wire.registry import Principal, Role
from gristmill.wire.spec import check_spec
from gristmill.wire.tariffs import ZERO_TARIFFS
from gristmill.wire.values import decode_ref

log = logging.getLogger("gristmill.broker.front")

LOCAL_TENANT = "local"
_CODEC_CHARS_MAX = 80
_RANGE_BYTES = 16
_NAMES_TOLD, _NEAR_CHARS_MAX, _NEAR_OF = 10, 80, 1_000  #: of workers, to who mistypes one


@dataclasses.dataclass(frozen=True, slots=True)
class Verb:
    """A row of the verb table: who may say it, and with how many body frames.

    ``scope``: what a client's token must be good for; "" for any. Operators need none.
    """

    handler: str
    scope: str
    roles: frozenset[Role] = frozenset({"client", "operator"})
    frames: int = 0


_OPERATORS: frozenset[Role] = frozenset({"operator"})
_READERS: frozenset[Role] = frozenset({"client", "operator", "portal"})
VERBS: dict[type[say.Message], Verb] = {
    say.Submit: Verb("_on_submit", "submit", frames=1),
    say.Parcel: Verb("_on_parcel", "submit", frames=1),
    say.CloseUpload: Verb("_on_close_upload", "submit"),
    say.Subscribe: Verb("_on_subscribe", "read", _READERS),
    say.Credit: Verb("_on_credit", "read", _READERS),
    say.Unsubscribe: Verb("_on_unsubscribe", "read", _READERS),
    say.Cancel: Verb("_on_cancel", "submit"),
    say.Steer: Verb("_on_steer", "submit"),
    say.Ask: Verb("_on_ask", "read", _READERS),
    say.DrainWorker: Verb("_on_drain_worker", "", _OPERATORS),
    say.ReleaseNode: Verb("_on_release_node", "", _OPERATORS),
    say.Operate: Verb("_on_operate", "", _OPERATORS),
    say.Buy: Verb("_on_buy", "pay"),
    say.Purchase: Verb("_on_purchase", "pay"),
    say.OnChain: Verb("_on_chain", "pay"),
    say.Ping: Verb("_on_ping", "", _READERS),
    say.Goodbye: Verb("_on_goodbye", "", _READERS),
}


def check_right(name: str, verb: Verb, role: Role, scopes: frozenset[str]) -> None:
    """Whether who has this role and these scopes may say it.

    Raises:
        RemoteError: ``FORBIDDEN``, with what it takes.
    """
    if role not in verb.roles:
        raise RemoteError("FORBIDDEN", f"{name} is for {' and '.join(sorted(verb.roles))}s")
    if role == "client" and verb.scope and verb.scope not in scopes:
        has = ", ".join(sorted(scopes)) or "none"
        told = f"{name} needs a token with the scope {verb.scope!r}; this one has {has}"
        raise RemoteError("FORBIDDEN", told, "ask the operator for a token with that scope")


class Front:
    """See the module's text.

    Args:
        principals: who may speak here; None where everybody who can connect is ``local``.
        apply: steps the core with an event and does its effects.
        refusal: why nothing new of a tenant is taken now (a job, or else a parcel), or None.
        nodes: worker names pinned to keys.
        operators: brings their acts to the registry.
        on_drained: takes the worker that an operator drains, and their session.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        broker: str,
        principals: Principals | None,
        mailbox: Mailbox,
        clients: Clients,
        workers: Workers,
        execution: Execution,
        delivery: Delivery,
        answers: Answers,
        apply: Callable[[on.AnyEvent], None],
        refusal: Callable[[str, bool], RemoteError | None],
        nodes: Mapping[str, str],
        operators: Operators,
        on_drained: Callable[[WorkerSession, ClientSession], None],
        metrics: Metrics,
    ) -> None:
        self._nodes = nodes
        self._operators = operators
        self._on_drained = on_drained
        self._gate = Gate("front", principals, client_rates(settings), metrics)
        self._settings = settings
        self._broker = broker
        self._mailbox = mailbox
        self._clients = clients
        self._workers = workers
        self._execution = execution
        self._delivery = delivery
        self._answers = answers
        answers.gate = self._gate
        self._apply = apply
        self._refusal = refusal
        self._metrics = metrics
        self._principals = principals
        self._verbs: dict[type, tuple[Callable[[ClientSession, Any, list[bytes]], None], Verb]] = {
            kind: (getattr(self, verb.handler), verb) for kind, verb in VERBS.items()
        }

    def receive(self, frames: list[bytes], now_ms: int, user: User = no_user) -> None:
        """One message of the front socket; ``user``: of its connection, see ``mailbox``."""
        self._metrics.front_messages += 1
        routing, request, job, token, known, wait_ms = frames[0], 0, 0, b"", "", 0
        if self._gate.is_shut(routing, now_ms):
            return
        try:
            if len(frames) < 2:
                raise RemoteError("MALFORMED", "a message without a header frame")
            message = say.decode_client.decode(frames[1])
            request, job = getattr(message, "request", 0), getattr(message, "job", 0)
            if isinstance(message, say.Hello):
                self._on_hello(frames, message, now_ms, user)
                return
            session = self._clients.find(message.session)
            if session is None or session.peer.routing != routing:
                # A token is good on its own connection: on another what was said may be lost.
                if session is not None and user() != session.public:
                    told = f"it said the session of client {session.number}, which has another key"
                    self._gate.note(RemoteError("FORBIDDEN", told), "", user, now_ms)
                raise RemoteError("REJOIN")
            known = session.public
            self._handle(session, message, frames, now_ms)
        except RemoteError as error:
            try:
                if not known and error.code != "RATE_LIMITED":
                    self._gate.take_stranger(frames, 1, user, now_ms)
            except RateError as limited:
                error = limited
            self._gate.note(error, known, user, now_ms)
            if error.code == "MALFORMED":
                self._metrics.malformed += 1
            elif error.code == "REJOIN":
                token = getattr(message, "session", b"")
                self._metrics.rejoins += 1
            elif isinstance(error, RateError):
                wait_ms = error.retry_after_ms
                if not error.is_answered:
                    return
            else:
                self._metrics.refused += 1
            refused = say.Refused(
                request, error.code, error.message, error.hint, job, token, wait_ms
            )
            self._mailbox.answer(routing, [encode(refused)])

    def _handle(
        self, session: ClientSession, message: Any, frames: list[bytes], now_ms: int
    ) -> None:
        session.seen_ms = now_ms
        if session.meter is not None:
            self._gate.take(session.public, session.meter, 1, frames, now_ms)
        handler, verb = self._verbs[type(message)]
        bodies = frames[2:]
        if len(bodies) != verb.frames:
            raise RemoteError(
                "MALFORMED",
                f"{type(message).__name__} with {len(bodies)} body frames; it has {verb.frames}",
            )
        try:
            check_right(type(message).__name__, verb, session.role, session.scopes)
        except RemoteError as error:
            if self._principals is not None and (who := self._principals.find(session.public)):
                self._principals.note_refused(error.code, who, error.message)
            raise
        handler(session, message, bodies)

    # ------------------------------------------------------------ sessions

    def _on_hello(self, frames: list[bytes], message: say.Hello, now_ms: int, user: User) -> None:
        routing = frames[0]
        meter = self._gate.take_stranger(frames, limits.HELLO_REQUESTS, user, now_ms)
        if message.protocol != limits.PROTOCOL:
            raise RemoteError(
                "PROTOCOL",
                f"the client (gristmill {message.version:.40}) speaks protocol {message.protocol},"
                f" this broker speaks {limits.PROTOCOL}",
            )
        if len(message.client) != 16:
            raise RemoteError("MALFORMED", f"client has {len(message.client)} bytes, must be 16")
        who = self._who(message, user)
        tenant = who.tenant
        if len(tenant) > limits.NAME_CHARS_MAX or not tenant.isprintable() or "/" in tenant:
            raise RemoteError(
                "MALFORMED",
                f"tenant is {tenant!r:.60}: at most {limits.NAME_CHARS_MAX} printable characters,"
                " no '/'",
            )
        if len(self._clients) >= limits.SESSIONS_MAX:
            raise RemoteError(
                "QUEUE_FULL", f"{len(self._clients)} sessions; the limit is {limits.SESSIONS_MAX}"
            )
        known = self._clients.known(who, message.client)
        if (
            known is not None
            and known.token
            and known.peer.routing == routing
            and (known.role, known.scopes) == (who.role, frozenset(who.scopes))
        ):
            # Said again because our answer was slow: a new token would void what came meanwhile.
            session, session.seen_ms = known, now_ms
        else:
            if known is not None:
                self._mailbox.forget(known.peer)
            else:
                self._gate.check_session(who.public, meter)
            session = self._clients.join(routing, message.client, who, now_ms, meter)
            self._delivery.drop_session(session)
            log.info(
                "client=%d generation=%d tenant=%s key=%.12s version=%.40s joined",
                session.number, session.generation, tenant, who.public or "-", message.version,
            )  # fmt: skip
        pythons = sorted({python for one in self._workers for python in one.hello.pythons})
        settings = self._settings
        welcome = say.Welcome(
            session.token, self._broker, tenant, settings.client_ping_ms, settings.client_ttl_ms,
            settings.store_address, self._principals is None, pythons,
        )  # fmt: skip
        self._mailbox.send(session.peer, [encode(welcome)])

    def _who(self, message: say.Hello, user: User) -> Principal:
        """By the key of the connection; whoever is in the folder of an open one is ``local``."""
        if self._principals is None:
            tenant = message.tenant or LOCAL_TENANT
            return Principal("", "operator", LOCAL_TENANT, tenant, "active")
        found = self._principals.admit(user(), self._execution.inbox.utc_ms)
        if found.role != "operator" and message.tenant not in ("", found.tenant):
            raise RemoteError(
                "FORBIDDEN", f"the token is of tenant {found.tenant}, not of {message.tenant}"
            )
        tenant = message.tenant or found.tenant
        return msgspec.structs.replace(found, tenant=tenant)

    def end_refused(self, changed: set[str], now_ms: int) -> None:
        """Principals changed, or their time is over: their sessions begin anew, or end."""
        self._gate.look(now_ms)
        if self._principals is None:
            return
        self._gate.change(changed, now_ms)
        utc_ms = self._execution.inbox.utc_ms
        for session in self._clients:
            if not session.token:
                continue
            found = self._principals.find(session.public)
            if session.public in changed and not session.is_of(found):
                cause = "its principal changed"
            elif found is None or 0 < found.expires_ms <= utc_ms:
                cause = "the time of its key is over"
            else:
                continue
            # Unasked: an answer that is on its way to it is dropped, and it would wait for that.
            told = say.Refused(0, "REJOIN", cause, "", 0, session.token)
            self._mailbox.send(session.peer, [encode(told)])
            self.suspend_session(session, cause)

    def _on_ping(self, session: ClientSession, message: say.Ping, bodies: list[bytes]) -> None:
        self._mailbox.send(session.peer, [encode(say.Pong())])

    def _on_goodbye(
        self, session: ClientSession, message: say.Goodbye, bodies: list[bytes]
    ) -> None:
        self.end_session(session, "said goodbye")

    def end_session(self, session: ClientSession, cause: str) -> None:
        """The session is over: its subscriptions end, its jobs go on."""
        self.suspend_session(session, cause)
        self._clients.remove(session)
        self._apply(on.ClientLost(session.number))

    def suspend_session(self, session: ClientSession, cause: str) -> None:
        """What it says next is answered with REJOIN; a HELLO in time takes the session up again."""
        log.info("client=%d left: %s", session.number, cause)
        self._delivery.drop_session(session)
        self._mailbox.forget(session.peer)
        self._clients.suspend(session)

    def expire(self, now_ms: int) -> None:
        """Ends sessions that were silent for longer than their time-to-live."""
        ttl_ms = self._settings.client_ttl_ms
        for session in self._clients:
            if now_ms - session.seen_ms > ttl_ms:
                self._metrics.clients_expired += 1
                self.end_session(session, f"silent for {now_ms - session.seen_ms} ms")

    # ------------------------------------------------------------ jobs

    def _on_submit(self, session: ClientSession, message: say.Submit, bodies: list[bytes]) -> None:
        if self._answers.refuse_again(session, message.request):
            return
        spec, function = message.spec, bodies[0]
        check_spec(spec)
        if len(message.submission) != 16:
            raise RemoteError(
                "MALFORMED", f"submission has {len(message.submission)} bytes, must be 16"
            )
        spec_bytes = len(encode(spec))
        if spec_bytes > limits.HEADER_BYTES_MAX - 4_096:
            raise RemoteError(
                "INVALID_SPEC",
                f"the spec has {spec_bytes} bytes; the limit is {limits.HEADER_BYTES_MAX - 4_096}",
            )
        if spec.kind == "command":
            if function:
                raise RemoteError("MALFORMED", f"a command with {len(function)} function bytes")
        elif spec.is_function_stored:
            if decode_ref(function).digest != spec.function:
                raise RemoteError("MALFORMED", "the stored function has another digest")
        elif len(function) > limits.FUNCTION_BYTES_MAX:
            raise RemoteError(
                "PARCEL_TOO_LARGE",
                f"a function of {len(function)} bytes; the limit is {limits.FUNCTION_BYTES_MAX}",
                "put it into the store and submit with is_function_stored",
            )
        elif hashlib.sha256(function).hexdigest() != spec.function:
            raise RemoteError(
                "MALFORMED", f"the function's bytes do not have the digest {spec.function:.12}..."
            )
        self._answers.find_submission(
            session, message, lambda known: self._submit(session, message, function, known)
        )

    def _submit(
        self,
        session: ClientSession,
        message: say.Submit,
        function: bytes,
        known: past.KnownSubmission | None,
    ) -> None:
        spec, inbox = message.spec, self._execution.inbox
        is_new = known is None and not self._answers.is_known(session, message)
        if is_new and not message.is_dry_run:  # a repeat of what was accepted needs no room
            refusal = self._refusal(session.tenant, True)
            if refusal is not None:
                self._answers.refuse(session, message.request, refusal, 0)
                return
        own = self._gate.limits_of(session.public)
        inbox.body = function
        inbox.tariffs = self._settings.tariff if spec.tariff == "standard" else ZERO_TARIFFS
        self._apply(
            on.JobSubmitted(
                session.number, message.request, session.tenant, message.submission, spec,
                inbox.tariffs, inbox.utc_ms, message.is_dry_run, _content_of(known),
                jobs_max=own.jobs_max, subtasks_max=own.subtasks_max,
            )
        )  # fmt: skip
        inbox.body = b""

    def _on_parcel(self, session: ClientSession, message: say.Parcel, bodies: list[bytes]) -> None:
        body, count, codec = bodies[0], message.count, message.codec
        items_max = limits.RANGE_ITEMS_MAX if codec == "range" else limits.PARCEL_ITEMS_MAX
        if len(body) > limits.PARCEL_BYTES_MAX or not 1 <= count <= items_max:
            raise RemoteError(
                "PARCEL_TOO_LARGE",
                f"a parcel of {len(body)} bytes and {count} items; the limits are"
                f" {limits.PARCEL_BYTES_MAX} bytes and 1 to {items_max} items",
            )
        if message.first < 0 or not codec or len(codec) > _CODEC_CHARS_MAX:
            raise RemoteError(
                "MALFORMED",
                f"a parcel at {message.first} with a codec of {len(codec)} characters;"
                f" from 0, and 1 to {_CODEC_CHARS_MAX} characters",
            )
        if codec == "range" and len(body) != _RANGE_BYTES:
            raise RemoteError("MALFORMED", f"a range of {len(body)} bytes; it has {_RANGE_BYTES}")
        if codec[0] == "@":
            decode_ref(body)
        if (refusal := self._refusal(session.tenant, False)) is not None:
            raise refusal
        execution = self._execution
        known = execution.frame(message.job, message.first)
        if known is not None and known != body:
            raise RemoteError(
                "PARCEL_ORDER",
                f"the parcel at {message.first} of job j{message.job} came before with other bytes",
            )
        if message.job in execution.jobs:
            execution.uploaders[message.job] = session.number
        inbox = execution.inbox
        inbox.body = body
        self._apply(
            on.ParcelArrived(
                session.number, session.tenant, message.job, message.first, count, codec, len(body),
                self._gate.limits_of(session.public).subtasks_max,
            )
        )  # fmt: skip
        inbox.body = b""

    def _on_close_upload(
        self, session: ClientSession, message: say.CloseUpload, bodies: list[bytes]
    ) -> None:
        if message.count < 0:
            raise RemoteError("MALFORMED", f"an upload of {message.count} subtasks")
        self._apply(
            on.UploadClosed(
                session.number, message.request, session.tenant, message.job, message.count
            )
        )

    def _on_cancel(self, session: ClientSession, message: say.Cancel, bodies: list[bytes]) -> None:
        if self._is_repeated(session, message.request):
            return
        for start, length in message.runs:
            if start < 0 or length < 1 or start + length > limits.SUBTASKS_MAX:
                raise RemoteError(
                    "MALFORMED", f"a run of {length} subtasks from {start}: no such subtasks"
                )
        self._apply(
            on.CancelAsked(
                session.number, message.request, session.tenant, message.job, message.runs
            )
        )

    def _is_repeated(self, session: ClientSession, request: int) -> bool:
        """Whether this request was confirmed before: then it is only answered.

        A pause that comes a second time after the resume that followed it must not pause again, nor
        may a cancel of what a growing job had take with it what came later.
        """
        if request not in session.done:
            return False
        self._metrics.requests_repeated += 1
        answer = [encode(say.Answer(request))]
        self._execution.when_durable(lambda: self._mailbox.send(session.peer, answer))
        return True

    def _on_steer(self, session: ClientSession, message: say.Steer, bodies: list[bytes]) -> None:
        if self._is_repeated(session, message.request):
            return
        event = on.PauseAsked if message.verb == "pause" else on.ResumeAsked
        self._apply(event(session.number, message.request, session.tenant, message.job))

    # ------------------------------------------------------------ results, questions

    def _on_subscribe(
        self, session: ClientSession, message: say.Subscribe, bodies: list[bytes]
    ) -> None:
        if message.after < 0 or message.bytes_allowed < 0:
            raise RemoteError(
                "MALFORMED", f"after is {message.after}, bytes_allowed {message.bytes_allowed}"
            )
        self._answers.subscribe(session, message)

    def _on_credit(self, session: ClientSession, message: say.Credit, bodies: list[bytes]) -> None:
        self._delivery.allow(session, message.job, message.acked, message.bytes_allowed)

    def _on_unsubscribe(
        self, session: ClientSession, message: say.Unsubscribe, bodies: list[bytes]
    ) -> None:
        self._delivery.unsubscribe(session, message.job)

    def _on_ask(self, session: ClientSession, message: say.Ask, bodies: list[bytes]) -> None:
        self._metrics.questions += 1
        self._answers.answer(session, message)

    def _on_buy(self, session: ClientSession, message: say.Buy, bodies: list[bytes]) -> None:
        self._answers.purchases.buy(session, message)

    def _on_purchase(
        self, session: ClientSession, message: say.Purchase, bodies: list[bytes]
    ) -> None:
        self._answers.purchases.change(session, message)

    def _on_chain(self, session: ClientSession, message: say.OnChain, bodies: list[bytes]) -> None:
        self._answers.rentals.say(session, message)

    def _on_drain_worker(
        self, session: ClientSession, message: say.DrainWorker, bodies: list[bytes]
    ) -> None:
        if self._is_repeated(session, message.request):
            return
        worker = self._workers.named(message.worker)
        if worker is None:
            known = sorted(one.hello.name for one in self._workers)
            near = difflib.get_close_matches(message.worker[:_NEAR_CHARS_MAX], known[:_NEAR_OF], 3)
            names = f"the nearest: {', '.join(near)}" if near else f"there are: {_some(known)}"
            raise RemoteError(
                "INVALID_SPEC",
                f"no live worker is named {message.worker!r:.80}; {names}",
                "gristmill node list",
            )
        session.note_done(message.request)
        worker.is_draining = True
        self._apply(on.WorkerDrainAsked(worker.number))
        self._on_drained(worker, session)
        self._mailbox.send(session.peer, [encode(say.Answer(message.request))])

    def _on_release_node(
        self, session: ClientSession, message: say.ReleaseNode, bodies: list[bytes]
    ) -> None:
        if self._is_repeated(session, message.request):
            return
        node = self._nodes.get(message.worker)
        if node is None:
            raise RemoteError(
                "INVALID_SPEC",
                f"no worker was ever named {message.worker!r:.80}",
                "gristmill node list",
            )
        session.note_done(message.request)
        self._apply(on.NodeReleased(node))
        number, peer = message.request, session.peer
        # Who hears yes may restart the broker at once: it must still be so.
        self._execution.when_durable(lambda: self._mailbox.send(peer, [encode(say.Answer(number))]))

    def _on_operate(
        self, session: ClientSession, message: say.Operate, bodies: list[bytes]
    ) -> None:
        self._operators.operate(session, message)


def _content_of(known: past.KnownSubmission | None) -> tuple[int, bytes] | None:
    """(job, digest of its content) for the core."""
    return None if known is None or known.spec is None else (known.job, content_digest(known.spec))


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMES_TOLD]) + ", ..." * (len(names) > _NAMES_TOLD) or "none"
