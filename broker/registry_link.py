"""The line to the registry: who may speak here, as it is decided there.

What comes is put into the ``principals`` file, which this broker and its next incarnation read. A
registry that is away changes nothing: nobody new becomes active, and who is stays so.
"""

import logging
import pathlib
import time

import zmq

from gristmill.broker.principals import FILE_NAME, read, write
from gristmill.wire.errors import RemoteError
from gristmill.wire.frames import encode
from gristmill.wire.registry import Changes, Follow, decode_from_registry

log = logging.getLogger("gristmill.broker.registry")

FOLLOW_S = 10.0  #: between two questions for what was missed
AGAIN_S = 1.0  #: until the first answer of a registry, and between two questions while it is away


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
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 100)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2_000)
        self._socket.setsockopt(zmq.SNDHWM, 16)  # while it is away few questions wait
        self._socket.connect(address)
        self._address = address
        self._broker = broker
        self._path = state / FILE_NAME
        self._known = 0
        self._asked_at = -1e9
        self._heard_at = time.monotonic()
        self._is_up = False

    def look(self) -> None:
        """Ask for what is new, now and then; to be called often."""
        now = time.monotonic()
        pause = FOLLOW_S if self._is_up else AGAIN_S
        if now - self._asked_at < pause:
            return
        if self._is_up and now - self._heard_at > 2 * FOLLOW_S:
            self._is_up = False
            log.warning("the registry at %s is away: nobody new becomes active", self._address)
        self._ask(now)

    def receive(self) -> None:
        """Take what there is; to be called often."""
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
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

    def _ask(self, now: float) -> None:
        self._asked_at = now
        try:
            self._socket.send(encode(Follow(self._broker, self._known)), zmq.NOBLOCK)
        except zmq.Again:
            return

    def _take(self, changes: Changes) -> None:
        """The file has them before we ask for what follows: a crash between asks again."""
        if changes.known < self._known and changes.is_all:
            log.warning("the registry knows %d changes, it knew %d", changes.known, self._known)
        if changes.principals:
            try:
                kept = {one.public: one for one in read(self._path)}
                kept.update((one.public, one) for one in changes.principals)
                write(self._path, kept.values())
            except (RemoteError, OSError) as error:
                log.error("principals cannot be kept, asked again later: %s", error)
                return
        self._known = changes.known
        if not changes.is_all:
            self._ask(time.monotonic())

    def close(self) -> None:
        """Close the socket."""
        self._socket.close(0)
