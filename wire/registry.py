"""The registry dialogue (docs/rfc/0005): who may speak on this grid, as what, until when.

A principal is an Ed25519 public key. Its X25519 form is the CURVE key of its sockets, its
signatures are those of its receipts: one key, one principal. The registry is the only writer of
principals; brokers follow it, and keep what they know while it is away.
"""

from typing import Any, Literal

import msgspec

from gristmill.wire.frames import HeaderDecoder, Integer

Role = Literal["client", "operator", "worker", "ledger", "broker", "portal"]
#: clients and services are active until they are revoked; nodes go through all of these
State = Literal[
    "pending", "approved", "active", "draining", "quarantined",
    "rejected", "expired", "banned", "revoked",
]  # fmt: skip
SCOPES = ("submit", "read", "pay")  #: of a client: run work, look at it, buy and spend credits


class Message(msgspec.Struct, array_like=True, frozen=True, tag_field="type", gc=False):
    """Base of the dialogue's messages."""


class Principal(msgspec.Struct, array_like=True, frozen=True):
    """A public key and what it may do.

    ``public``: 64 hex characters, Ed25519. ``name``: of the node, or of the token. ``tenant``:
    whose it is: the tenant of a client, the owner of a node. ``version``: of this row, one more
    with each change. ``expires_ms``: 0 for never; past it the key is refused, whatever its state.
    ``slots_max`` and ``node_class``: what was approved of a node (0: what it has).
    """

    public: str
    role: Role
    name: str
    tenant: str
    state: State
    version: int = 1
    scopes: list[str] = []
    expires_ms: int = 0
    slots_max: int = 0
    node_class: str = ""
    reason: str = ""


class Follow(Message, frozen=True, tag=1):
    """A broker: tell me all that changed behind change ``known``, and what changes from now on.

    Said again every 10 s: what was lost is told then.
    """

    broker: str
    known: Integer


class Changes(Message, frozen=True, tag=1):
    """Principals as they are now, each as of a change up to ``known``; a page of them.

    ``is_all``: nothing behind ``known`` is left to tell.
    """

    known: Integer
    principals: list[Principal]
    is_all: bool = True


ToRegistry = Follow
FromRegistry = Changes
decode_to_registry: HeaderDecoder[Any] = HeaderDecoder(ToRegistry)
decode_from_registry: HeaderDecoder[Any] = HeaderDecoder(FromRegistry)
