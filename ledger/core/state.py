"""What the ledger knows: accounts, open holds, how far each broker's outbox is applied.

Accounts are ``world`` (where credits come from; the only one that may be negative),
``tenant:NAME``, ``node:NAME``, ``toll``, ``rental:ID`` and ``pool:POOL`` (core/chain.py), and
``escrow``, which only ever has pending credits: the other side of every open hold, so that pending
amounts sum to zero like posted ones.
"""

from collections.abc import Iterable

import msgspec

from gristmill.ledger.core.coverage import Coverage

WORLD, TOLL, ESCROW = "world", "toll", "escrow"
#: the largest single amount, and the largest sum of credits ever minted: far inside 64 bits
AMOUNT_MAX = 1 << 60
MINTED_MAX = 1 << 62


class Account(msgspec.Struct):
    """One account in micro-credits.

    ``debits`` and ``credits`` only grow; the pending ones are what open holds reserve. Unless
    ``may_overdraw``: ``debits + debits_pending <= credits``, always.
    """

    id: int
    name: str
    may_overdraw: bool = False
    debits: int = 0
    credits: int = 0
    debits_pending: int = 0
    credits_pending: int = 0

    @property
    def posted(self) -> int:
        """What the account has, holds included."""
        return self.credits - self.debits

    @property
    def available(self) -> int:
        """What a new hold may still reserve."""
        return self.credits - self.debits - self.debits_pending


class Hold(msgspec.Struct):
    """A job's cap, reserved from its payer: one pending transfer and what was posted out of it.

    ``rental``: hex of the rental that pays, empty for the tenant itself. ``id``: the number of the
    pending transfer. ``closed_ms``: when the rest was voided; 0 while open. ``billed``: covered
    indices for each (replica, attempt), only of open holds. The sums of contributions
    (``subtasks`` and on) are the job's line of the bill.
    """

    id: int
    ref: str
    tenant: str
    amount: int
    rental: str = ""
    spent: int = 0
    closed_ms: int = 0
    subtasks: int = 0
    failed: int = 0
    cpu_us: int = 0
    wall_us: int = 0
    toll: int = 0
    billed: dict[tuple[int, int], Coverage] = {}

    @property
    def payer(self) -> str:
        """The account that it is reserved in."""
        return f"rental:{self.rental}" if self.rental else f"tenant:{self.tenant}"

    @property
    def left(self) -> int:
        """What contributions may still take."""
        return self.amount - self.spent


class LedgerState:
    """Everything that ``step`` decides by.

    ``holds`` has every open hold, and closed ones for as long as the shell leaves them here: an
    event brings those that it needs (``recalled``). ``applied``: the last entry of each broker's
    outbox that was applied; ``heard``: when it last posted something, in ms, or asked whether we
    are there. ``transfers``: how many there are. ``keys``: (kind, name) to the newest public key
    and since when it is. ``rentals``: the open ones (hex of their ids) of each tenant.
    """

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self.holds: dict[str, Hold] = {}
        self.applied: dict[str, int] = {}
        self.heard: dict[str, int] = {}
        self.transfers = 0
        self.keys: dict[tuple[str, str], tuple[str, int]] = {}
        self.rentals: dict[str, dict[str, None]] = {}

    def accounts_of(self, tenant: str) -> list[Account]:
        """What a tenant has: its own account, and those of its open rentals."""
        names = [f"tenant:{tenant}", *(f"rental:{id_}" for id_ in self.rentals.get(tenant, ()))]
        return [self.accounts.get(name) or Account(0, name) for name in names]

    def forget_closed(self, refs: Iterable[str]) -> None:
        """Drop those of these holds that are closed; a later event brings them again."""
        for ref in refs:
            hold = self.holds.get(ref)
            if hold is not None and hold.closed_ms:
                del self.holds[ref]
