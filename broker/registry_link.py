"""The line to the registry: who may speak here, as it is decided there; what is seen here, told.

What comes is put into a file of its own (``followed``), which this broker and its next incarnation
read. A registry that is away changes nothing: nobody new becomes active, and who is stays so.
"""

import logging
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import zmq

from gristmill.broker.principals import FOLLOWED_NAME, read, write
from gristmill.wire.errors import RemoteError
from gristmill.wire.frames import encode
from gristmill.wire.registry import (
    AddPrincipal,
    AskRows,
    Changes,
    Decide,
    Follow,
    IssueToken,
    Note,
    Principal,
    RegistryAnswer,
    RegistryRefused,
    decode_from_registry,
)

log = logging.getLogger("gristmill.broker.registry")

FOLLOW_S = 10.0  #: between two questions for what was missed
AGAIN_S = 1.0  #: until the first answer of a registry, between two questions while it is away, and
#: until a decision that is not answered is said again
ASK_S = 5.0  #: an operator's act that is not answered within this is told so
ASKED_MAX = 1_000  #: acts of operators that wait at a time
NOTE_S = 60.0  #: between two notes of the same refusal
NOTED_MAX = 4_096  #: kinds of refusals that are remembered

Act = IssueToken | Decide | AddPrincipal | AskRows
#: the answer, or a refusal
Reply = Callable[[RegistryAnswer | RemoteError], None]


class _Asked(NamedTuple):
    """An operator's act that waits for its answer."""

    reply: Reply
    until: float


class RegistryLink:
    """See the module's text.

    Args:
        address: of the registry, on this host: ``ipc://``.
        broker: our name, for its log.
        state: folder of the principals.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        address: str,
        broker: str,
        state: pathlib.Path,
    ) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 100)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2_000)
        self.socket.setsockopt(zmq.SNDHWM, 1_000)
        self.socket.connect(address)
        self._address = address
        self._broker = broker
        self._path = state / FOLLOWED_NAME
        self._kept: dict[str, Principal] = {}
        self._known = 0
        self._is_anew = False  # it knows less than it did: what it does not tell again is forgotten
        self._asked_at = -1e9
        self._heard_at = time.monotonic()
        self._is_up = False
        self._number = 0
        self._asked: dict[int, _Asked] = {}
        self._decisions: dict[str, tuple[Decide, float]] = {}  # by public key
        self._noted: dict[tuple[str, str], float] = {}
        try:
            self._kept = {one.public: one for one in read(self._path)}
        except (RemoteError, OSError) as error:
            log.error("what the registry told is asked for anew: %s", error)

    def look(self) -> None:
        """Ask for what is new, now and then, and for what was not answered; to be called often."""
        now = time.monotonic()
        for number, asked in list(self._asked.items()):
            if asked.until > now:
                break  # they are in order
            del self._asked[number]
            asked.reply(
                RemoteError(
                    "REGISTRY_DOWN",
                    f"the registry did not answer within {ASK_S:.0f} s: whether it was done is not"
                    " known",
                )
            )
        for public, (decision, said_at) in list(self._decisions.items()):
            if now - said_at >= AGAIN_S:
                self._decisions[public] = decision, now
                self._send(decision)
        pause = FOLLOW_S if self._is_up else AGAIN_S
        if now - self._asked_at < pause:
            return
        if self._is_up and now - self._heard_at > 2 * FOLLOW_S:
            self._is_up = False
            log.warning("the registry at %s is away: nobody new becomes active", self._address)
        self._ask_for_changes(now)

    def receive(self) -> None:
        """Take what there is; to be called when ``socket`` is readable."""
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                message = decode_from_registry.decode(frames[0])
            except RemoteError as error:
                log.error("registry malformed: %.300s", error.message)
                continue
            self._heard_at = time.monotonic()
            if not self._is_up:
                self._is_up = True
                log.info("registry up address=%s", self._address)
            if isinstance(message, Changes):
                self._take(message)
            else:
                self._answered(message)

    # ------------------------------------------------------------ what is said here

    def ask(self, act: Act, reply: Reply) -> None:
        """An operator's act; ``reply`` is called with the answer, once.

        Raises:
            RemoteError: ``REGISTRY_DOWN``, ``QUEUE_FULL``: it was not said.
        """
        if len(self._asked) >= ASKED_MAX:
            raise RemoteError("QUEUE_FULL", f"{ASKED_MAX} acts of operators wait for the registry")
        self._number += 1
        if not self._send(msgspec.structs.replace(act, request=self._number)):
            raise RemoteError("REGISTRY_DOWN", f"the registry at {self._address} takes nothing")
        self._asked[self._number] = _Asked(reply, time.monotonic() + ASK_S)

    def decide(self, decision: Decide) -> None:
        """What was seen of a node here; said until it is answered, instead of what was before."""
        self._number += 1
        decision = msgspec.structs.replace(decision, request=self._number)
        self._decisions[decision.name] = decision, time.monotonic()
        self._send(decision)

    def knows(self, public: str) -> bool:
        """Whether the registry told of this key."""
        return public in self._kept

    def is_deciding(self, public: str) -> bool:
        """Whether something about this node was said, and is not answered."""
        return public in self._decisions

    def note(self, code: str, who: Principal, why: str) -> None:
        """Somebody whom the registry knows was refused: for its log, if it is no repetition."""
        now, key = time.monotonic(), (who.public, code)
        if now - self._noted.get(key, -1e9) < NOTE_S:
            return
        self._noted.pop(key, None)
        self._noted[key] = now
        if len(self._noted) > NOTED_MAX:
            del self._noted[next(iter(self._noted))]
        self._send(Note(self._broker, code, who.public, who.name, why[:1_000]))

    def _send(self, message: msgspec.Struct) -> bool:
        try:
            self.socket.send(encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def _answered(self, message: RegistryAnswer | RegistryRefused) -> None:
        answer: RegistryAnswer | RemoteError
        if isinstance(message, RegistryRefused):
            answer = RemoteError(message.code, message.message, message.hint)
        else:
            answer = message
        if (asked := self._asked.pop(message.request, None)) is not None:
            asked.reply(answer)
            return
        for public, (decision, _) in list(self._decisions.items()):
            if decision.request == message.request:
                del self._decisions[public]
                if isinstance(answer, RemoteError):
                    log.warning(
                        "registry refused %s of %.16s...: %.300s",
                        decision.act, public, answer.message,
                    )  # fmt: skip

    # ------------------------------------------------------------ what is decided there

    def _ask_for_changes(self, now: float) -> None:
        self._asked_at = now
        self._send(Follow(self._broker, self._known))

    def _take(self, changes: Changes) -> None:
        """The file has them before they count as known: after a crash they are asked for again."""
        if changes.after not in (self._known, 0):
            if changes.known > self._known:  # something between was lost
                self._ask_for_changes(time.monotonic())
            return
        if not changes.after:
            if changes.known < self._known:
                log.error(
                    "the registry knows %d changes, it knew %d: what it does not tell again is"
                    " forgotten here",
                    changes.known, self._known,
                )  # fmt: skip
            self._kept, self._is_anew = {}, True
        self._kept.update((one.public, one) for one in changes.principals)
        self._known = changes.known
        if not changes.is_all:
            self._ask_for_changes(time.monotonic())
        elif changes.principals or self._is_anew:
            try:
                write(self._path, self._kept.values())
                self._is_anew = False
            except OSError as error:
                log.error("principals cannot be kept, asked again later: %s", error)
                self._known = 0

    def close(self) -> None:
        """Close the socket."""
        self.socket.close(0)
