"""Who may speak to a ledger over TCP, and what: keys with roles, and the table of its verbs.

Over ``ipc://`` the folder of the socket is the door: whoever is in it may say everything.
"""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import zmq
from nacl.signing import SigningKey

from gristmill.ledger.core.state import LedgerState
from gristmill.wire import chain, payments
from gristmill.wire import ledger as wire
from gristmill.wire.curve import ZAP_ADDRESS, be_server, curve_public, zap_answer
from gristmill.wire.errors import RemoteError
from gristmill.wire.ids import is_digest

Role = Literal["broker", "operator", "treasury", "settlement"]
DOMAIN = "ledger"

#: the whole table of what may be said to a ledger, and by whom
VERBS: dict[type, frozenset[Role]] = {
    wire.Post: frozenset({"broker"}),
    wire.Ping: frozenset({"broker"}),
    wire.AskUsage: frozenset({"broker", "operator"}),
    wire.AskBalance: frozenset({"broker", "operator"}),
    wire.AskStatement: frozenset({"broker", "operator"}),
    wire.AskReceipts: frozenset({"broker", "operator"}),
    wire.Fund: frozenset({"operator"}),
    wire.Transfer: frozenset({"operator"}),
    payments.AskOffers: frozenset({"broker", "operator"}),
    payments.AskIntents: frozenset({"broker", "operator", "treasury"}),
    payments.CreateIntent: frozenset({"broker"}),
    payments.CancelIntent: frozenset({"broker", "operator"}),
    payments.ConfirmIntent: frozenset({"broker", "operator"}),
    payments.DecideIntent: frozenset({"broker", "operator"}),
    payments.Sell: frozenset({"treasury"}),
    payments.ReportInvoice: frozenset({"treasury"}),
    payments.Observe: frozenset({"treasury"}),
    chain.Agree: frozenset({"broker"}),
    chain.EndRental: frozenset({"broker"}),
    chain.StatePayee: frozenset({"broker", "operator", "settlement"}),
    chain.StateRental: frozenset({"settlement"}),
    chain.CommitPayouts: frozenset({"settlement"}),
    chain.StateRoot: frozenset({"settlement"}),
    chain.StateClaims: frozenset({"settlement"}),
    chain.ShowVoucher: frozenset({"broker"}),
    chain.VoucherRuling: frozenset({"settlement"}),
    chain.AskPayout: frozenset({"broker", "operator", "settlement"}),
    chain.AskLeaves: frozenset({"broker", "operator", "settlement"}),
    chain.AskAgreed: frozenset({"broker", "operator", "settlement"}),
    chain.AskChainBooks: frozenset({"broker", "operator", "settlement"}),
}


def parse_allow(text: str) -> tuple[str, Role]:
    """(public key, role) from ``ROLE=KEY``.

    Raises:
        ValueError: the message shows what is accepted.
    """
    role, _, public = text.partition("=")
    if role not in get_args(Role) or not is_digest(public):
        raise ValueError(
            f"{text!r:.100} lets nobody in; write ROLE=KEY: {', '.join(get_args(Role))}, and a"
            " public key of 64 hex characters"
        )
    curve_public(public)
    return public, role  # type: ignore[return-value]


class Door:
    """See the module's text.

    Args:
        allow: public key to role; empty for a socket in a folder of ours.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        router: "zmq.Socket[bytes]",
        key: SigningKey,
        allow: Mapping[str, Role],
    ) -> None:
        self._allow = dict(allow)
        self._by_curve = {curve_public(public): public for public in allow}
        self.socket: zmq.Socket[bytes] | None = None  #: of libzmq's questions, see ``answer``
        if allow:
            self.socket = context.socket(zmq.REP)
            self.socket.setsockopt(zmq.LINGER, 0)
            self.socket.bind(ZAP_ADDRESS)
            be_server(router, key, DOMAIN)

    def answer(self) -> tuple[str, RemoteError] | None:
        """Says whether a key may connect; to be called when ``socket`` is readable.

        Of who may not: the address, and why.
        """
        assert self.socket is not None
        asked = self.socket.recv_multipart()
        answer = zap_answer(asked, lambda _, key: self._by_curve.get(key, ""))
        self.socket.send_multipart(answer)
        if answer[2] == b"200":
            return None
        address, key = (asked[at] if at < len(asked) else b"" for at in (3, 6))
        told = f"no CURVE key of this ledger: {key[:32].hex() or '-'}"
        return address.decode("ascii", "replace"), RemoteError("UNAUTHORISED", told)

    def receive(self, router: "zmq.Socket[bytes]") -> tuple[list[bytes], str]:
        """A message and the public key of its connection; empty where everybody may.

        Raises:
            zmq.Again: there is none.
        """
        if self.socket is None:
            return router.recv_multipart(zmq.NOBLOCK), ""
        first = router.recv(zmq.NOBLOCK, copy=False)
        return [first.bytes, *router.recv_multipart()], str(first.get("User-Id"))

    def check(self, public: str, message: Any, state: LedgerState) -> None:
        """Whether this may be said by who has this key.

        Raises:
            RemoteError: ``FORBIDDEN``.
        """
        if self.socket is None:
            return
        role, name = self._allow[public], type(message).__name__
        if role not in VERBS[type(message)]:
            told = f"{name} is not for the {role} with the key {public:.16}..."
            raise RemoteError("FORBIDDEN", told)
        if isinstance(message, wire.Post | wire.Ping) and message.broker:
            owner = self._owner(message, state)
            if owner and owner != public:
                raise RemoteError(
                    "FORBIDDEN",
                    f"the broker {message.broker!r:.80} has the key {owner:.16}..., not"
                    f" {public:.16}...",
                )

    def _owner(self, message: wire.Post | wire.Ping, state: LedgerState) -> str:
        """Whose name it is: of who stated its key first, which a new broker does at once."""
        known = state.keys.get(("broker", message.broker))
        if known is not None:
            return known[0]
        if isinstance(message, wire.Post) and message.entries:
            first = message.entries[0]
            return first.public if isinstance(first, wire.Key) else "nobody's yet"
        return ""

    def close(self) -> None:
        """Nobody is let in any more."""
        if self.socket is not None:
            self.socket.close(0)
