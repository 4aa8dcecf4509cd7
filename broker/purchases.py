"""Purchases of credits: relayed to the ledger, which decides; the broker knows who may ask what."""

from gristmill.broker.bills import Relay
from gristmill.broker.sessions import ClientSession
from gristmill.wire import payments
from gristmill.wire.client import Ask, Buy, Purchase
from gristmill.wire.errors import RemoteError

INTENTS_MAX = 100  #: in one answer; it has as many of them as fit a header


class Purchases:
    """See the module's text."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def offers(self, session: ClientSession, message: Ask) -> None:
        """What is sold now."""
        self._relay.ask(session, message.request, payments.AskOffers(0))

    def intents(self, session: ClientSession, message: Ask) -> None:
        """One intent, or the newest of the tenant; of all tenants for operators."""
        tenant = session.tenant
        if message.digest == "all":
            if not session.is_operator:
                raise RemoteError("FORBIDDEN", f"{tenant} is no operator: own purchases only")
            tenant = ""
        asked = payments.AskIntents(
            0, tenant, message.text, limit=min(message.limit, INTENTS_MAX)
        )  # fmt: skip
        self._relay.ask(session, message.request, asked)

    def buy(self, session: ClientSession, message: Buy) -> None:
        """A new intent of the tenant, or the one that has its key."""
        asked = payments.CreateIntent(
            0, session.tenant, message.key, message.backend, message.amount_ucredits,
            message.price, message.fee,
        )  # fmt: skip
        self._relay.ask(session, message.request, asked)

    def change(self, session: ClientSession, message: Purchase) -> None:
        """A tenant cancels; an operator confirms, credits or refunds.

        Raises:
            RemoteError: ``FORBIDDEN``.
        """
        asked: payments.Message
        if message.verb == "cancel":
            asked = payments.CancelIntent(0, session.tenant, message.intent)
        elif not session.is_operator:
            told = f"{session.tenant} is no operator: to {message.verb} is for operators"
            raise RemoteError("FORBIDDEN", told)
        elif message.verb == "confirm":
            asked = payments.ConfirmIntent(0, message.intent, message.received, message.ref)
        else:
            asked = payments.DecideIntent(0, message.intent, message.verb, message.ref)
        self._relay.ask(session, message.request, asked)
