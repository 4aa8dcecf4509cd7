"""The 16 bytes by which a transfer is known: made by its sender, the same each time it asks.

What comes through an outbox is named by broker, sequence and leg: 10 bytes of the sha-256 of the
broker's name, then a number that grows, so that an index of ids grows at its end. Anything else is
named by the sha-256 of what it is for. Two legs of one entry are *linked*: both or none.
"""

import hashlib

ID_BYTES = 16
_PREFIX_BYTES = 10
NODES_LEG, TOLLS_LEG = 0, 1  #: of a contribution; other entries have one leg, 0


def outbox_prefix(broker: str) -> bytes:
    """What the ids of all transfers of this broker's outbox begin with."""
    return hashlib.sha256(broker.encode()).digest()[:_PREFIX_BYTES]


def outbox_id(prefix: bytes, sequence: int, leg: int) -> bytes:
    """The id of a leg of an entry.

    >>> outbox_id(outbox_prefix("mill"), 3, TOLLS_LEG).hex()[20:]
    '000000000007'
    """
    return prefix + (sequence << 1 | leg).to_bytes(ID_BYTES - _PREFIX_BYTES, "big")


def named_id(purpose: str, name: str) -> bytes:
    """The id of what is done once for each ``name``, a funding or an expiry, say.

    >>> len(named_id("fund", "up/local"))
    16
    """
    return hashlib.sha256(f"{purpose}\0{name}".encode()).digest()[:ID_BYTES]
