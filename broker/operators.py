"""What operators say to the registry through the broker: it adds who said it, by their key."""

from collections import OrderedDict

import msgspec

from gristmill.broker.mailbox import Mailbox
from gristmill.broker.principals import Principals
from gristmill.broker.registry_link import RegistryLink
from gristmill.broker.sessions import ClientSession
from gristmill.wire.client import Answer, Operate, Operated, Refused
from gristmill.wire.errors import CODES, RemoteError
from gristmill.wire.frames import encode
from gristmill.wire.registry import (
    AddPrincipal,
    AskRows,
    Decide,
    IssueToken,
    RegistryAnswer,
    decode_to_registry,
)

TOLD_MAX = 64  #: answers kept for a request that comes again
_SAID_BY_BROKERS = ("canary_right", "canary_wrong", "drain")
_NO_REGISTRY = RemoteError(
    "REGISTRY_DOWN",
    "this grid has no registry: nobody enrols here",
    "let nodes in by --allow or 'gristmill deploy install', or start the broker with --registry",
)


class Operators:
    """See the module's text. ``link``: None where there is no registry."""

    def __init__(self, link: RegistryLink | None, principals: Principals, mailbox: Mailbox) -> None:
        self._link = link
        self._principals = principals
        self._mailbox = mailbox
        self._told: OrderedDict[tuple[int, int], bytes] = OrderedDict()  # empty: not answered yet

    def name_of(self, session: ClientSession) -> str:
        """Who an operator is, for the log: the name of their key; here, this host."""
        found = self._principals.find(session.public)
        return "local" if found is None else found.name

    def operate(self, session: ClientSession, message: Operate) -> None:
        """Relay one act; what it changed is answered once, however often it is said.

        Raises:
            RemoteError: it is none, brokers say it, or there is no registry.
        """
        key = session.number, message.request
        if (known := self._told.get(key)) is not None:
            if known:
                self._mailbox.send(session.peer, [known])
            return
        if self._link is None:
            raise _NO_REGISTRY
        act = decode_to_registry.decode(message.act)
        if not isinstance(act, IssueToken | Decide | AddPrincipal | AskRows):
            raise RemoteError("MALFORMED", f"{type(act).__name__} is for brokers to say")
        if isinstance(act, Decide) and act.act in _SAID_BY_BROKERS:
            raise RemoteError("FORBIDDEN", f"{act.act} is for brokers to say")
        if not isinstance(act, AskRows):
            by = self.name_of(session)
            by = f"{by}:{act.by}" if by == "local" and act.by else by
            act = msgspec.structs.replace(act, by=by[:80])

        def reply(answer: RegistryAnswer | RemoteError) -> None:
            told: Answer | Refused
            if isinstance(answer, RemoteError):
                code = answer.code if answer.code in CODES else "INTERNAL"
                told = Refused(message.request, code, answer.message, answer.hint, 0)
            else:
                body = msgspec.Raw(encode(Operated(answer.body, answer.is_repeat)))
                told = Answer(message.request, body)
            frame = encode(told)
            if key in self._told:
                self._told[key] = frame
            self._mailbox.send(session.peer, [frame])

        self._link.ask(act, reply)
        self._told[key] = b""
        if len(self._told) > TOLD_MAX:
            self._told.popitem(last=False)
