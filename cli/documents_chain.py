"""What ``gristmill chain`` prints with ``--json``; see ``documents.py``.

Addresses and hashes are text: 0x and hexadecimal digits, addresses with their checksum.
"""

import msgspec

from gristmill.cli.document import Document


class ChainStep(msgspec.Struct, frozen=True):
    """One contract of a deployment. ``state``: ``done``, ``sent`` or ``to do``; ``gas``: estimated.

    ``arguments``: of its constructor, as text. ``block`` and ``transaction``: 0 and empty before.
    """

    contract: str
    state: str
    address: str
    arguments: dict[str, str]
    gas: int
    block: int
    transaction: str


class ChainDeploy(Document, frozen=True, tag="gristmill/chain-deploy/1"):
    """A deployment: what it would do (``is_dry_run``), or what it did.

    ``cost_wei``: of the steps that were left, at the fee of now; ``cost_limit_wei``: what the
    sender must have for them. ``effects``: who can do what afterwards, in words.
    """

    is_dry_run: bool
    chain_id: int
    sender: str
    token: str
    file: str
    steps: list[ChainStep]
    gas: int
    cost_wei: int
    cost_limit_wei: int
    balance_wei: int
    effects: list[str]


class ChainPool(msgspec.Struct, frozen=True):
    """WorkPool's root, and the one that waits (``waiting`` 0: none) until ``waiting_from_s``."""

    coordinator: str
    guardian: str
    number: int
    root: str
    total_ucredits: int
    claimed_ucredits: int
    waiting: int
    waiting_root: str
    waiting_total_ucredits: int
    waiting_from_s: int


class ChainContract(msgspec.Struct, frozen=True):
    """One contract. ``fault``: how its code differs from what is pinned; then the rest is empty.

    ``proposal``: a fee wallet that may take its place from ``proposal_from_s`` (Unix time) on.
    ``balance_ucredits``: of the token; ``liability_ucredits``: what the escrow holds for others.
    """

    contract: str
    address: str
    fault: str
    owner: str
    next_owner: str
    fee_wallet: str
    proposal: str
    proposal_from_s: int
    balance_ucredits: int
    liability_ucredits: int | None
    pool: ChainPool | None


class ChainStatus(Document, frozen=True, tag="gristmill/chain-status/1"):
    """The contracts of a deployment at one block; ``now_s``: that block's time."""

    chain_id: int
    block: int
    now_s: int
    token: str
    symbol: str
    contracts: list[ChainContract]


class ChainPins(Document, frozen=True, tag="gristmill/chain-pins/1"):
    """Whether a deployment file agrees with the artifacts of this gristmill; no chain is asked."""

    file: str
    chain_id: int
    contracts: dict[str, str]
    faults: list[str]


class ChainKey(Document, frozen=True, tag="gristmill/chain-key/1"):
    """A new key, in a keystore."""

    file: str
    address: str


class ReconcileLine(msgspec.Struct, frozen=True):
    """Two figures that must be one; ``surplus``: what came unasked, which is no drift."""

    name: str
    ours: int
    theirs: int
    drift: int
    surplus: int


class ChainReconcile(Document, frozen=True, tag="gristmill/chain-reconcile/1"):
    """The chain against the ledger as of a block; ``drift`` 0: everything agrees.

    ``foreign_ucredits``: locked for agreements that nobody made with this ledger.
    """

    block: int
    lines: list[ReconcileLine]
    drift: int
    foreign_ucredits: int
    faults: list[str]


DOCUMENTS: tuple[type[Document], ...] = (
    ChainDeploy,
    ChainStatus,
    ChainReconcile,
    ChainPins,
    ChainKey,
)
