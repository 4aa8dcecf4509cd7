"""What the contracts hold, rebuilt from certain facts alone, to the unit.

Theory of operation. Every event of ``ComputeRental`` and ``WorkPool`` says how much moved and for
whom, so a fold over them is the contracts' state. A fold that comes out below zero, or meets a
rental that was never locked, has missed an event, and a fee that is not the contract's floor(3 %)
is no event of our contract: that is written down as a fault, and a reconciliation with a fault is
a drift.

    event             | what it moves
    ------------------|--------------------------------------------------------------------------
    Locked, ToppedUp  | into a rental
    Paid              | out of it, to what the payee and the fee wallet are owed
    Returned          | the rest of it, to what the client is owed
    Closed            | nothing is left in it
    Withdrawn         | out of what an account is owed: to the pool, or away
    RootPosted        | nothing; the payout ``number`` has a root
    RootVetoed        | nothing; it has none any more
    Claimed           | out of the pool, away
    FeeWalletChanged  | nothing; whom the next fee is owed to
"""

from typing import Literal

import msgspec

from gristmill.ledger.settlement.core.chain_log import Fact

FAULTS_MAX = 20
FEE_BPS, BPS = 300, 10_000  #: of what is paid, as FeeWallet.sol has it

RentalState = Literal["locked", "disputed", "closed"]


class Rental(msgspec.Struct):
    """One escrow; amounts in micro-credits. ``shown``: the largest voucher in its dispute.

    ``paid``: gross, fees included. ``block``: of the last fact about it.
    """

    id: bytes
    client: bytes
    provider: bytes
    payee: bytes
    spec: bytes
    deadline_s: int
    locked: int = 0
    paid: int = 0
    returned: int = 0
    shown: int = 0
    state: RentalState = "locked"
    block: int = 0

    @property
    def left(self) -> int:
        """What is still in it."""
        return self.locked - self.paid - self.returned


class Root(msgspec.Struct):
    """A payout's root. ``active_s``: from when on it is claimed from (Unix time)."""

    number: int
    root: bytes
    list_digest: bytes
    total: int
    active_s: int
    transaction: bytes
    block: int
    is_vetoed: bool = False


class Mirror(msgspec.Struct):
    """``pool``: the pool's address. ``fees``: ever made, ``withdrawn``: ever sent, by account."""

    pool: bytes
    fee_wallet: bytes = b""
    rentals: dict[bytes, Rental] = {}
    owed: dict[bytes, int] = {}
    withdrawn: dict[bytes, int] = {}
    roots: dict[int, Root] = {}
    claims: dict[bytes, int] = {}
    fees: int = 0
    faults: list[str] = []
    block: int = -1


class Sums(msgspec.Struct, frozen=True):
    """All rentals and the pool. ``away``: withdrawn by others than the pool."""

    locked: int
    paid: int
    returned: int
    open: int
    owed: int
    to_pool: int
    away: int
    claimed: int

    @property
    def pool(self) -> int:
        """What is in the pool."""
        return self.to_pool - self.claimed


def sums(mirror: Mirror) -> Sums:
    """Everything added up."""
    rentals = mirror.rentals.values()
    to_pool = mirror.withdrawn.get(mirror.pool, 0)
    return Sums(
        sum(one.locked for one in rentals),
        sum(one.paid for one in rentals),
        sum(one.returned for one in rentals),
        sum(one.left for one in rentals),
        sum(mirror.owed.values()),
        to_pool,
        sum(mirror.withdrawn.values()) - to_pool,
        sum(mirror.claims.values()),
    )


def newest_root(mirror: Mirror) -> Root | None:
    """The last that nobody vetoed."""
    standing = [number for number, root in mirror.roots.items() if not root.is_vetoed]
    return mirror.roots[max(standing)] if standing else None


def apply(mirror: Mirror, fact: Fact) -> None:
    """Take one more fact in; they come in the chain's order."""
    mirror.block = fact.block
    if fact.contract == "pool":
        _apply_pool(mirror, fact)
        return
    if fact.name == "FeeWalletChanged":
        mirror.fee_wallet = _bytes(fact, "wallet")
    elif fact.name == "Withdrawn":
        account, amount = _bytes(fact, "account"), _amount(fact, "amount")
        _owe(mirror, account, -amount, fact)
        mirror.withdrawn[account] = mirror.withdrawn.get(account, 0) + amount
    elif fact.name == "Locked":
        _lock(mirror, fact)
    elif "id" in fact.fields:
        rental = mirror.rentals.get(_bytes(fact, "id"))
        if rental is None:
            _fault(mirror, fact, "of a rental that was never locked")
        else:
            rental.block = fact.block
            _apply_rental(mirror, rental, fact)


def _lock(mirror: Mirror, fact: Fact) -> None:
    rental = Rental(
        _bytes(fact, "id"),
        _bytes(fact, "client"),
        _bytes(fact, "provider"),
        _bytes(fact, "payee"),
        _bytes(fact, "spec"),
        _amount(fact, "deadline"),
        _amount(fact, "amount"),
        block=fact.block,
    )
    if rental.id in mirror.rentals:
        _fault(mirror, fact, "of a rental that is there already")
    mirror.rentals[rental.id] = rental


def _apply_rental(mirror: Mirror, rental: Rental, fact: Fact) -> None:
    if rental.state == "closed":
        _fault(mirror, fact, "of a rental that is closed")
    match fact.name:
        case "ToppedUp":
            rental.locked += _amount(fact, "amount")
            rental.deadline_s = _amount(fact, "deadline")
            if rental.locked != _amount(fact, "locked"):
                _fault(mirror, fact, f"says {_amount(fact, 'locked')}, {rental.locked} are locked")
        case "Paid":
            net, fee = _amount(fact, "net"), _amount(fact, "fee")
            due = -_fee_of(rental.paid)
            rental.paid += net + fee
            due += _fee_of(rental.paid)
            if fee != due:
                _fault(mirror, fact, f"has a fee of {fee}, {due} is due")
            mirror.fees += fee
            _owe(mirror, _bytes(fact, "payee"), net, fact)
            _owe(mirror, mirror.fee_wallet, fee, fact)
            if rental.paid != _amount(fact, "cumulative"):
                told = f"says {_amount(fact, 'cumulative')}, {rental.paid} are paid"
                _fault(mirror, fact, told)
        case "Returned":
            rental.returned += _amount(fact, "amount")
            _owe(mirror, _bytes(fact, "client"), _amount(fact, "amount"), fact)
        case "Disputed":
            rental.state = "disputed"
        case "Shown":
            rental.shown = max(rental.shown, _amount(fact, "cumulative"))
        case "Closed":
            rental.state = "closed"
            if rental.left:
                _fault(mirror, fact, f"with {rental.left} left in it")


def _fee_of(cumulative: int) -> int:
    """The contract's: of everything that was ever paid, rounded down."""
    return cumulative * FEE_BPS // BPS


def _apply_pool(mirror: Mirror, fact: Fact) -> None:
    match fact.name:
        case "RootPosted":
            number = _amount(fact, "number")
            mirror.roots[number] = Root(
                number,
                _bytes(fact, "root"),
                _bytes(fact, "listDigest"),
                _amount(fact, "total"),
                _amount(fact, "activeAt"),
                fact.transaction,
                fact.block,
            )
        case "RootVetoed":
            root = mirror.roots.get(_amount(fact, "number"))
            if root is None:
                _fault(mirror, fact, "of a root that was never posted")
            else:
                root.is_vetoed = True
        case "Claimed":
            worker = _bytes(fact, "worker")
            mirror.claims[worker] = mirror.claims.get(worker, 0) + _amount(fact, "amount")
            if mirror.claims[worker] != _amount(fact, "cumulative"):
                told = f"says {_amount(fact, 'cumulative')}, {mirror.claims[worker]} were claimed"
                _fault(mirror, fact, told)


def _owe(mirror: Mirror, account: bytes, amount: int, fact: Fact) -> None:
    owed = mirror.owed.get(account, 0) + amount
    if owed < 0:
        _fault(mirror, fact, f"leaves 0x{account.hex()} owed {owed}")
    if owed:
        mirror.owed[account] = owed
    else:
        mirror.owed.pop(account, None)


def _fault(mirror: Mirror, fact: Fact, told: str) -> None:
    if len(mirror.faults) < FAULTS_MAX:
        mirror.faults.append(f"{fact.name} in block {fact.block} {told}")


def _amount(fact: Fact, name: str) -> int:
    value = fact.fields[name]
    assert isinstance(value, int), (fact, name)
    return value


def _bytes(fact: Fact, name: str) -> bytes:
    value = fact.fields[name]
    assert isinstance(value, bytes), (fact, name)
    return value
