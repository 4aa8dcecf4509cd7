"""The broker's word on what it bills: contributions completed and signed, and keys.

The core decides what a contribution costs; what its receipt needs besides (digests, the worker's
own readings) is bytes that the core never sees. One signature a contribution.
"""

from collections.abc import Mapping

import msgspec
from nacl.signing import SigningKey

from gristmill.broker import schema
from gristmill.broker.journal import Journal
from gristmill.broker.outbox import Outbox
from gristmill.wire.ledger import Contribution, Key
from gristmill.wire.receipts import countersign
from gristmill.wire.worker import ResultHead

KEY_TOLD = "key_told"  #: of the journal's ``meta``: the public key that the ledger was told


class Countersigner:
    """Called for each contribution before it is recorded; gives it with all of its receipt."""

    def __init__(self, key: SigningKey) -> None:
        self._key = key

    def __call__(
        self, entry: Contribution, head: ResultHead, work: bytes, outcome_digest: bytes
    ) -> Contribution:
        """``head``: of its result; ``work``: what the job runs."""
        complete = msgspec.structs.replace(
            entry,
            work=work,
            outcome_digest=outcome_digest,
            signed_wall_us=head.wall_us,
            signed_cpu_us=head.cpu_us,
        )
        return countersign(complete, self._key)


def node_key(broker: str, name: str, node: str, now_utc_ms: int) -> Key:
    """The entry of a worker whose name was pinned to its key."""
    return Key("node", f"{broker}/{name}", node, now_utc_ms)


def tell_keys(
    journal: Journal,
    outbox: Outbox,
    public: str,
    told: str,
    nodes: Mapping[str, str],
    now_utc_ms: int,
) -> None:
    """Before anything that it signs, the broker's key, when the ledger does not have this one.

    ``told``: what an earlier start told. At the first start that tells anything the nodes that were
    pinned before follow; later ones are told as they are pinned.
    """
    if told == public:
        return
    outbox.add(Key("broker", journal.broker, public, now_utc_ms))
    if not told:
        for name, node in nodes.items():
            outbox.add(node_key(journal.broker, name, node, now_utc_ms))
    journal.record("meta", schema.SET_META, (KEY_TOLD, public), 96)
