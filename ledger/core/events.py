"""What happens to the ledger: the only inputs of its core."""

import msgspec

from gristmill.ledger.core.chain_records import ChainEvent
from gristmill.ledger.core.intent_records import IntentEvent
from gristmill.ledger.core.state import Hold
from gristmill.wire.ledger import Contribution, Key, Leg, Release
from gristmill.wire.ledger import Hold as HoldEntry


class Applied(msgspec.Struct, frozen=True):
    """An entry of an outbox as it was applied: enough to know it again and to answer it again.

    ``digest``: of the entry's content (``step.digest_of_entry``); ``code`` empty for yes.
    """

    digest: bytes
    code: str = ""
    message: str = ""


class OutboxReceived(msgspec.Struct, frozen=True):
    """Entries ``first ..`` of a broker's outbox.

    ``applied``: those of them that the ledger already has, by sequence. ``recalled``: closed holds
    that the entries name and that the state no longer has in memory.
    """

    broker: str
    first: int
    entries: list[HoldEntry | Release | Contribution | Key]
    applied: dict[int, Applied] = {}
    recalled: list[Hold] = []


class CreditsFunded(msgspec.Struct, frozen=True):
    """An operator mints credits.

    ``earlier``: (tenant, amount) of the mint that has this ``ref`` already.
    """

    tenant: str
    amount_ucredits: int
    ref: str
    earlier: tuple[str, int] | None = None


class TransfersAsked(msgspec.Struct, frozen=True):
    """An operator moves credits between accounts: all of these legs or none.

    ``earlier``: (debit, credit, amount) of those ids that the ledger has already.
    """

    legs: list[Leg]
    earlier: dict[bytes, tuple[str, str, int]] = {}


class SilenceEnded(msgspec.Struct, frozen=True):
    """These brokers were not heard for so long that their open holds go back to their tenants."""

    brokers: list[str]


Event = OutboxReceived | CreditsFunded | TransfersAsked | SilenceEnded | IntentEvent | ChainEvent
