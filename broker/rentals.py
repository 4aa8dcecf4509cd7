"""Rentals and payouts: relayed to the ledger; the broker knows who may say what."""

import msgspec

from gristmill.broker.bills import Relay
from gristmill.broker.sessions import ClientSession
from gristmill.wire.chain import (
    Agree,
    AskAgreed,
    AskChainBooks,
    EndRental,
    ShowVoucher,
    decode_by_clients,
)
from gristmill.wire.client import OnChain
from gristmill.wire.errors import RemoteError


class Rentals:
    """See the module's text."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def say(self, session: ClientSession, message: OnChain) -> None:
        """Bring it to the ledger, in the tenant's name.

        A payee needs none: its node signed it, and whoever brings it may be anybody.

        Raises:
            RemoteError: it is no such message, or (``FORBIDDEN``) the books of all are asked for.
        """
        said = decode_by_clients.decode(message.said)
        if isinstance(said, AskChainBooks | AskAgreed) and not session.is_operator:
            told = f"{session.tenant} is no operator: the sums of all rentals are for operators"
            raise RemoteError("FORBIDDEN", told)
        if isinstance(said, Agree):
            mine = msgspec.structs.replace(said.agreement, tenant=session.tenant)
            said = msgspec.structs.replace(said, agreement=mine)
        elif isinstance(said, EndRental | ShowVoucher):
            said = msgspec.structs.replace(said, tenant=session.tenant)
        self._relay.ask(session, message.request, said)
