"""Rentals: credits locked in a contract on a chain pay for jobs; vouchers say how much.

    with Client() as client:
        rental = Rental.lock(client, chain, deployment, key, amount_ucredits, deadline_s)
        rental.wait()
        results = client.map(work, inputs, rental=rental.name, cap="5")
        rental.pay(results.job, is_last=True)

The grid never has the key. Until a voucher is signed nothing of what is locked is anybody's but the
client's; what is not paid by the deadline (and the contract's grace) goes back to it.
"""

import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from gristmill.client.errors import grid_error
from gristmill.contracts import abi, vouchers
from gristmill.contracts.act import act
from gristmill.contracts.deployment import Deployment
from gristmill.contracts.keys import AccountKey
from gristmill.contracts.rpc import Chain
from gristmill.wire import chain as wire
from gristmill.wire.merkle import leaf_of, levels_of, root_of
from gristmill.wire.receipts import content_digest, is_countersigned, is_signed, receipt_in
from gristmill.wire.units import format_credits

if TYPE_CHECKING:
    from gristmill.client.client import Client
    from gristmill.client.questions import AnyJob

LOOK_S = 0.5  #: between two looks whether a lock is confirmed


class OnChain(NamedTuple):
    """What the contract has of a rental; amounts are micro-credits, times seconds of Unix time.

    ``state``: ``none``, ``locked``, ``disputed`` or ``closed``.
    """

    client: bytes
    deadline_s: int
    provider: bytes
    disputed_s: int
    state: str
    payee: bytes
    locked: int
    paid: int
    signed: int
    spec: bytes


_STATES = ("none", "locked", "disputed", "closed")


class Proof(NamedTuple):
    """What jobs cost by their receipts: the sum, and the root over them that a voucher names."""

    amount: int
    receipts: int
    root: bytes


class Rental:
    """One escrow of ours, by its id (32 bytes).

    Args:
        client: of the grid.
        chain: an open connection.
        deployment: of the grid's contracts, checked (``deployment.check``).
        key: what locked it.
        id: of the rental.
    """

    def __init__(
        self, client: "Client", chain: Chain, deployment: Deployment, key: AccountKey, id: bytes
    ) -> None:
        self._client, self._chain, self._deployment, self._key = client, chain, deployment, key
        self._contract = deployment.at("ComputeRental")
        self.id = id

    @property
    def name(self) -> str:
        """What ``rental=`` and ``--rental`` take: the id in hex."""
        return self.id.hex()

    @classmethod
    def lock(
        cls,
        client: "Client",
        chain: Chain,
        deployment: Deployment,
        key: AccountKey,
        amount_ucredits: int,
        deadline_s: int,
        provider: bytes,
    ) -> "Rental":
        """Agree with the grid, then lock credits for its pool.

        Args:
            client: of the grid, as the tenant who will use it.
            chain: an open connection.
            deployment: of the grid's contracts.
            key: of the account that pays; it needs the token and coin for gas.
            amount_ucredits: base units of the token.
            deadline_s: when the work is to be done, Unix time.
            provider: who acts for the grid on the chain: its settlement's address.

        Raises:
            RemoteError: the grid's or the chain's; nothing is locked then.
        """
        contract, token = deployment.at("ComputeRental"), deployment.token_contract()
        asked = wire.Agreement(
            "", "", chain.chain_id, contract.address, provider, secrets.randbelow(1 << 53)
        )
        agreed: wire.Agreement = client.on_chain(wire.Agree(0, asked), wire.Agreement)
        allowed = chain.call(token, "allowance", key.address, contract.address)
        if allowed < amount_ucredits:
            act(chain, key, token, "approve", contract.address, amount_ucredits)
        salt = secrets.token_bytes(32)
        pool = deployment.at("WorkPool").address
        act(
            chain, key, contract, "lock", salt, provider, pool, amount_ucredits, deadline_s,
            wire.spec_of(agreed),
        )  # fmt: skip
        return cls(client, chain, deployment, key, vouchers.rental_id(key.address, salt))

    def seen(self) -> OnChain:
        """What the contract says now."""
        found = self._chain.call(self._contract, "rentals", self.id)
        client, deadline, provider, disputed, state, payee, locked, paid, signed, spec = found
        return OnChain(
            client, deadline, provider, disputed, _STATES[state], payee, locked, paid, signed, spec
        )

    def state_id(self) -> bytes:
        """32 bytes over all that the contract has of it: who has the same sees the same state."""
        found: bytes = self._chain.call(self._contract, "stateId", self.id)
        return found

    def dispute_ends_s(self) -> int:
        """When the arbiter's time is over, Unix time; 0 where there is no dispute."""
        found: int = self._chain.call(self._contract, "disputeEnd", self.id)
        return found if self.seen().state == "disputed" else 0

    def now_s(self) -> int:
        """The chain's time, by which the contract goes."""
        return now_on(self._chain)

    def credits(self) -> int | None:
        """Micro-credits that jobs can be held from; None until the grid has seen the lock."""
        name = f"rental:{self.name}"
        for account in self._client.balance().accounts:
            if account.name == name:
                return account.available_ucredits
        return None

    def wait(self, timeout_s: float = 600.0, tell: Callable[[], Any] = lambda: None) -> int:
        """The credits, as soon as the lock is deep enough for the grid.

        Raises:
            GridError: ``UNKNOWN_RENTAL``: not in that time; what is locked stays locked.
        """
        until = time.monotonic() + timeout_s
        while (found := self.credits()) is None:
            if time.monotonic() > until:
                raise grid_error(
                    "UNKNOWN_RENTAL",
                    f"rental {self.name:.16}... is not known to the grid after {timeout_s:g} s",
                    "wait for more blocks; what nobody uses goes back at its deadline",
                )
            tell()
            time.sleep(LOOK_S)
        return found

    def proof(self, *jobs: "AnyJob") -> Proof:
        """What these jobs cost, by receipts that worker and broker have signed.

        Raises:
            GridError: ``LEDGER_CONFLICT``: a receipt is signed by somebody else; sign nothing.
        """
        amount, digests = 0, list[bytes]()
        for job in jobs:
            for page in self._client.receipts(job):
                brokers = [k.statement.public for k in page.keys if k.statement.kind == "broker"]
                for row in page.receipts:
                    one = row.contribution
                    is_whole = is_signed(receipt_in(one), one.signature, one.node)
                    if not is_whole or not any(is_countersigned(one, key) for key in brokers):
                        raise grid_error(
                            "LEDGER_CONFLICT",
                            f"receipt {row.sequence} of {one.ref} is not signed by its worker and "
                            "its broker",
                            "sign no voucher for it, and show it to the operator",
                        )
                    amount += one.amount_ucredits
                    digests.append(content_digest(one))
        return Proof(amount, len(digests), root_of(levels_of([leaf_of(d) for d in digests])))

    def pay(self, *jobs: "AnyJob", is_last: bool = False) -> wire.Shown:
        """Sign for what all jobs of this rental cost so far, and bring the voucher to the grid.

        Args:
            jobs: all that this rental paid for, those of earlier vouchers included.
            is_last: nothing more will be asked of it: the grid gives the rest back.

        Raises:
            GridError: what the settlement refuses with; ``INVALID_SPEC``: more than is locked, or
                not all jobs; ``RENTAL_BUSY``: a last voucher while a job goes on.
        """
        spent = -1
        if is_last:
            spent = self._client.on_chain(wire.EndRental(0, "", self.id), int)
        proof = self.proof(*jobs)
        if spent not in (-1, proof.amount):
            raise grid_error(
                "INVALID_SPEC",
                f"these jobs cost {format_credits(proof.amount)} credits by their receipts, all of "
                f"rental {self.name:.16}... {format_credits(spent)}",
                "name each job that it paid for",
            )
        seen = self.seen()
        if proof.amount > seen.locked:
            raise grid_error(
                "INVALID_SPEC",
                f"these jobs cost {format_credits(proof.amount)} credits; rental "
                f"{self.name:.16}... has {format_credits(seen.locked)} locked",
                "name only jobs that it paid for",
            )
        voucher = vouchers.Voucher(self.id, proof.amount, proof.root)
        signature = vouchers.sign(
            voucher, self._chain.chain_id, self._contract.address, self._key.secret
        )
        said = wire.ShowVoucher(0, "", self.id, proof.amount, proof.root, signature, is_last)
        shown: wire.Shown = self._client.on_chain(said, wire.Shown)
        return shown

    def refund(self) -> None:
        """After the deadline and the grace: take back what was not paid, and withdraw it."""
        act(self._chain, self._key, self._contract, "refund", self.id)
        self.withdraw()

    def withdraw(self) -> int:
        """Have the contract send us all that it owes us; micro-credits, 0 for nothing."""
        owed: int = self._chain.call(self._contract, "owed", self._key.address)
        if owed:
            act(self._chain, self._key, self._contract, "withdrawTo", self._key.address)
        return owed

    def __repr__(self) -> str:
        return f"Rental({self.name}, {abi.show_address(self._key.address)})"


def now_on(chain: Chain) -> int:
    """A chain's time: of its newest block, seconds of Unix time."""
    newest = chain.header("latest")
    return newest.timestamp if newest is not None else int(time.time())


def state_payee(client: "Client", payee: wire.Payee, signature: bytes) -> None:
    """Tell the grid where a node is paid, in the node's own words (``wire.chain.sign_payee``)."""
    client.on_chain(wire.StatePayee(0, payee, signature), type(None))


def leaves(client: "Client", pool: str, number: int = 0) -> list[wire.Leaf]:
    """The leaves of a payout (0: of the last), in the order of their addresses."""
    found: list[wire.Leaf] = []
    after = b""
    while page := client.on_chain(wire.AskLeaves(0, pool, number, after), list[wire.Leaf]):
        found += page
        after = page[-1].address
    return found
