"""What the registry decided about nodes takes effect here, and what is seen here reaches it.

A node's state in the registry, and why the core has it shut (``Standing.cause``), are brought
together whenever either changes::

    registry      core                  done
    approved      anything but on trial  shut: on trial
    approved      on trial               its worker gets a canary; its answer is decided upon
    active        on trial               opened
    active        shut by a quorum       the registry hears of the quarantine
    draining      open                   its worker is drained
    quarantined   open                   shut; the session ends, see ``Back.end_refused``

Nothing opens a node but the registry's ``active``: while it is away nobody new gets work.
"""

import logging
import os
from collections.abc import Callable, Iterable

from gristmill.broker import canary
from gristmill.broker.core import events as on
from gristmill.broker.core.checks import ON_TRIAL
from gristmill.broker.core.state import State
from gristmill.broker.execution import Execution
from gristmill.broker.principals import Principals
from gristmill.broker.registry_link import RegistryLink
from gristmill.broker.sessions import Workers, WorkerSession
from gristmill.wire.registry import Decide, Decision, Principal
from gristmill.wire.tariffs import ZERO_TARIFFS
from gristmill.wire.values import pack_plain

log = logging.getLogger("gristmill.broker.membership")

AGAIN_MS = 10_000  #: until a node is asked again whose canary came to nothing
NOBODY = 0  #: the client that a canary is of


class Membership:
    """See the module's text.

    Args:
        broker: our name, for the registry's log.
        apply: steps the core with an event and does its effects.
    """

    def __init__(
        self,
        link: RegistryLink,
        principals: Principals,
        broker: str,
        state: State,
        workers: Workers,
        execution: Execution,
        apply: Callable[[on.AnyEvent], None],
    ) -> None:
        self._link = link
        self._principals = principals
        self._by = f"broker:{broker}"
        self._state = state
        self._workers = workers
        self._execution = execution
        self._apply = apply
        self._on_trial: dict[str, int] = {}  # public key to when it may be asked (again)
        self._unsettled = {one.public for one in principals.nodes()}
        self._answers: dict[int, bytes] = {}  # canary to what was said, until it is decided
        execution.on_canary_ended = self._on_canary_ended
        execution.on_node_shut = self._unsettled.add

    def look(self, changed: Iterable[str], now_ms: int) -> None:
        """Principals changed, or time went by; to be called often."""
        self._unsettled.update(changed)
        for public in list(self._unsettled):
            self._unsettled.discard(public)
            found = self._principals.find(public)
            if found is not None and found.role == "worker":
                self._settle(found)
        for public, at_ms in list(self._on_trial.items()):
            if at_ms <= now_ms and not self._link.is_deciding(public):
                self._ask(public, now_ms)

    def _settle(self, node: Principal) -> None:
        public = node.public
        standing = self._state.standings.get(public)
        cause = "" if standing is None else standing.cause
        if node.state == "approved":
            if cause != ON_TRIAL:
                self._apply(on.NodeShut(public, ON_TRIAL))
            self._on_trial.setdefault(public, 0)
            return
        self._on_trial.pop(public, None)
        for job in self._canaries_of(public):
            self._answers.pop(job, None)
            self._apply(on.CancelAsked(NOBODY, 0, canary.TENANT, job, []))
        if node.state == "quarantined" and not cause:
            reason = node.reason or "an operator decided so"
            self._apply(on.NodeShut(public, f"quarantined: {reason}"))
        elif node.state == "active" and cause == ON_TRIAL:
            self._apply(on.NodeReleased(public))
        elif node.state in ("active", "draining") and cause:
            self._decide(node, "quarantine", cause)
        if node.state == "draining" and (session := self._session_of(node)) is not None:
            self.drain(session)

    def drain(self, session: WorkerSession) -> None:
        """Its worker finishes what it has and takes no more."""
        if not session.is_draining:
            session.is_draining = True
            self._apply(on.WorkerDrainAsked(session.number))

    def joined(self, session: WorkerSession) -> None:
        """A worker is there: one that was drained before it came goes again."""
        found = self._principals.find(session.hello.node)
        if found is not None and found.state == "draining":
            self.drain(session)

    def drained(self, session: WorkerSession, by: str) -> None:
        """An operator drained it here: it stays so until the registry has it released."""
        found = self._principals.find(session.hello.node)
        if found is not None and found.state == "active":
            self._decide(found, "drain", "", by)

    def _session_of(self, node: Principal) -> WorkerSession | None:
        session = self._workers.named(node.name)
        return session if session is not None and session.hello.node == node.public else None

    def _decide(self, node: Principal, act: Decision, reason: str, by: str = "") -> None:
        if self._link.knows(node.public):  # others are let in by this host alone
            decision = Decide(0, by or self._by, act, node.public, node.version, reason[:4_000])
            self._link.decide(decision)

    # ------------------------------------------------------------ canaries

    def _canaries_of(self, public: str) -> list[int]:
        return [
            number
            for number in self._state.canaries
            if (check := self._state.jobs[number].check) is not None
            and check.canary is not None
            and check.canary.node == public
        ]

    def _ask(self, public: str, now_ms: int) -> None:
        node = self._principals.find(public)
        session = None if node is None else self._session_of(node)
        if node is None or session is None or self._canaries_of(public):
            return
        self._on_trial[public] = now_ms + AGAIN_MS
        spec = canary.question_for(session.hello)
        packed = pack_plain([""])
        assert packed is not None
        codec, frame = packed
        submission, inbox = os.urandom(16), self._execution.inbox
        right = on.Canary(public, canary.digest_of(canary.answer_to(spec)))
        inbox.body, inbox.tariffs = b"", ZERO_TARIFFS
        self._apply(
            on.JobSubmitted(
                NOBODY, 0, canary.TENANT, submission, spec, ZERO_TARIFFS, inbox.utc_ms,
                canary=right,
            )
        )  # fmt: skip
        known = self._state.submissions.get((canary.TENANT, submission))
        if known is None:
            log.warning("node=%s no canary now: its job was refused", node.name)
            return
        number, inbox.body = known[0], frame
        self._apply(on.ParcelArrived(NOBODY, canary.TENANT, number, 0, 1, codec, len(frame)))
        inbox.body = b""

    def hear(self, job: int, node: str, answer: bytes) -> None:
        """What a node said to its canary; kept until the core has decided."""
        if job in self._canaries_of(node):  # anybody may send a result of any job
            self._answers[job] = answer

    def _on_canary_ended(self, job: int, node: str, is_right: bool) -> None:
        answer = self._answers.pop(job, b"")
        found = self._principals.find(node)
        if found is None or found.state != "approved":
            return
        if is_right:
            self._decide(found, "canary_right", "")
            return
        facts = self._execution.jobs.get(job)
        told = (
            "the canary was not answered"
            if facts is None
            else canary.difference(facts.spec, answer)
        )
        self._decide(found, "canary_wrong", told)
