"""A chain in memory that lags, forgets, lies and re-orgs, under the real courier and follower.

Time is turns. A seed reproduces everything. The chain's contract pays whatever it is called for,
as often as it is called: that nothing is spent twice must come from the queue.
"""

import contextlib
import hashlib
import logging
import random
from collections.abc import Iterator, Sequence

import msgspec

from gristmill.ledger.settlement.core import chain_log, queue_records
from gristmill.ledger.settlement.core.chain_log import Block, Fact
from gristmill.ledger.settlement.core.queue_records import Attempt, Receipt
from gristmill.ledger.settlement.courier import Courier
from gristmill.ledger.settlement.follower import Follower
from gristmill.ledger.settlement.ports import (
    Head,
    NodeDownError,
    RangeRefusedError,
    RevertedError,
    SendResult,
)
from gristmill.ledger.settlement.rows import Rows

GWEI = 10**9
DEPTH = 4
BASE_FEE = 10 * GWEI
GRID, POOL = b"g" * 20, b"p" * 20


class CrashError(Exception):
    """kill -9, as far as the simulator can."""


class Sent(msgspec.Struct, frozen=True):
    """What is in a raw transaction."""

    nonce: int
    target: bytes
    call: bytes
    max_fee_wei: int
    tip_wei: int
    salt: int


class Mined(msgspec.Struct, frozen=True):
    """A block of the world: its transactions by hash, each with whether it reverted."""

    block: Block
    transactions: dict[bytes, bool]
    nonce: int  #: of our account after it


def digest(*parts: object) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


class World:
    """The chain itself, and what every node of it may have heard."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.calls: dict[bytes, Sent] = {}
        self.pool: dict[bytes, None] = {}
        self.base_fee = BASE_FEE
        self.reverting: dict[bytes, None] = {}
        self.is_calm = False
        self.made = 0
        genesis = Block(0, digest("genesis"), b"")
        self.chain = [Mined(genesis, {}, 0)]
        self.harm = 0

    def chance(self, percent: int) -> bool:
        """Trouble, unless the world is calm."""
        return not self.is_calm and self.random.randrange(100) < percent

    @property
    def tip(self) -> int:
        return len(self.chain) - 1

    def mine(self) -> None:
        """One block, with what pays enough, by nonce; of two with one nonce any may win."""
        nonce, done, facts = self.chain[-1].nonce, {}, []
        number = len(self.chain)
        while len(done) < 4:
            fitting = [
                hash
                for hash in self.pool
                if self.calls[hash].nonce == nonce and self.calls[hash].max_fee_wei >= self.base_fee
            ]
            if not fitting or self.chance(30):
                break
            hash = self.random.choice(fitting)
            call = self.calls[hash]
            reverted = call.call in self.reverting
            done[hash] = reverted
            if call.call and not reverted:
                fields: dict[str, int | bytes | bool] = {"call": call.call}
                facts.append(Fact(number, len(facts), "rental", "Paid", fields, hash))
            nonce += 1
        self.made += 1
        own = digest(number, self.made)
        block = Block(number, own, self.chain[-1].block.hash, facts)
        self.chain.append(Mined(block, done, nonce))
        self.pool = {hash: None for hash in self.pool if self.calls[hash].nonce >= nonce}

    def re_org(self, depth: int) -> None:
        """The last blocks are others, one more than before; some transactions are forgotten."""
        depth = min(depth, len(self.chain) - 1)
        gone, self.chain = self.chain[-depth:], self.chain[:-depth]
        for mined in gone:
            for hash in mined.transactions:
                if not self.chance(30):
                    self.pool[hash] = None
        for _ in range(depth + 1):
            self.mine()

    def executed(self) -> list[bytes]:
        """Every call that the chain has carried out."""
        return [
            fact.fields["call"]  # type: ignore[misc]
            for mined in self.chain
            for fact in mined.block.facts
        ]


class WorldNode:
    """One RPC of the world: it lags, fails, forgets, and leaves events out."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.lag = 0

    def _answer(self) -> int:
        """The number of the last block that it has."""
        if self.world.chance(5):
            raise NodeDownError(f"{self.name} does not answer")
        if self.world.is_calm:
            self.lag = 0
        elif self.world.chance(10):
            self.lag = self.world.random.randrange(4)
        return max(0, self.world.tip - self.lag)

    def head(self) -> Head:
        tip = self._answer()
        return Head(tip, self.world.chain[tip].block.hash, self.world.base_fee, GWEI)

    def block(self, number: int) -> Block | None:
        if number > self._answer():
            return None
        block = self.world.chain[number].block
        if self.world.chance(10):
            return msgspec.structs.replace(block, facts=[], is_short=bool(block.facts))
        return block

    def facts(self, first: int, last: int) -> list[Fact]:
        self._answer()
        if last - first > 6:
            raise RangeRefusedError
        mined = self.world.chain[first : last + 1]
        return [fact for one in mined for fact in one.block.facts]

    def receipts(self, hashes: Sequence[bytes]) -> dict[bytes, Receipt]:
        tip, found = self._answer(), {}
        for mined in self.world.chain[: tip + 1]:
            for hash, reverted in mined.transactions.items():
                if hash in hashes and not self.world.chance(5):
                    block = mined.block
                    found[hash] = Receipt(hash, block.number, block.hash, reverted, GWEI)
        return found

    def known(self, hashes: Sequence[bytes]) -> frozenset[bytes]:
        tip = self._answer()
        mined = {hash for one in self.world.chain[: tip + 1] for hash in one.transactions}
        return frozenset(h for h in hashes if h in mined or h in self.world.pool)

    def nonce(self, block: int | None) -> int:
        tip = self._answer()
        return self.world.chain[tip if block is None else min(block, tip)].nonce

    def preflight(self, target: bytes, call: bytes, block: int | None = None) -> int:
        self._answer()
        if call in self.world.reverting:
            raise RevertedError("Refused()")
        return 50_000

    def send(self, attempt: Attempt) -> SendResult:
        world = self.world
        call = msgspec.msgpack.decode(attempt.raw, type=Sent)
        assert digest(call) == attempt.hash
        is_lost = world.chance(15)
        if is_lost and world.chance(50):
            return "unknown", "no answer, and it did not arrive"
        world.calls[attempt.hash] = call
        told: SendResult = ("accepted", "")
        if attempt.hash in world.pool:
            told = ("known", "")
        elif call.nonce < world.chain[-1].nonce:
            told = ("nonce_used", "nonce too low")
        else:
            rivals = [h for h in world.pool if world.calls[h].nonce == call.nonce]
            if any(call.max_fee_wei * 8 < world.calls[h].max_fee_wei * 9 for h in rivals):
                told = ("underpriced", "")
            else:
                for rival in rivals:
                    del world.pool[rival]
                world.pool[attempt.hash] = None
        return ("unknown", "no answer, and it arrived") if is_lost else told


class WorldSigner:
    """Signs nothing; two signatures of the same are two transactions, as a bad signer's are."""

    address = b"s" * 20

    def __init__(self, world: World) -> None:
        self.world = world

    def sign(
        self, nonce: int, target: bytes, call: bytes, gas: int, max_fee_wei: int, tip_wei: int
    ) -> tuple[bytes, bytes]:
        if self.world.chance(3):
            raise NodeDownError("the signer does not answer")
        self.world.made += 1
        sent = Sent(nonce, target, call, max_fee_wei, tip_wei, self.world.made)
        return digest(sent), msgspec.msgpack.encode(sent)


class CrashingRows(Rows):
    """A file whose process is killed around its commits."""

    world: World | None = None
    _depth = 0

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        is_outer = self._depth == 0
        self._depth += 1
        try:
            with super().together():
                yield
                if is_outer and self.world is not None and self.world.chance(2):
                    raise CrashError
        finally:
            self._depth -= 1
        if is_outer and self.world is not None and self.world.chance(2):
            raise CrashError


LIMITS = queue_records.Limits(in_flight_max=4, bump_blocks=2, fee_cap_wei=100 * GWEI)


class Run:
    """One run of a seed: turns under faults with everything checked, then calm to the end."""

    def __init__(self, seed: int, is_witnessed: bool = False) -> None:
        logging.getLogger("gristmill.settlement").setLevel(logging.CRITICAL)
        self.world = World(seed)
        self.nodes = [WorldNode(self.world, "one"), WorldNode(self.world, "two")]
        self.rows = CrashingRows(None)
        self.depths = chain_log.Limits(depth=DEPTH, range_max=16, is_witnessed=is_witnessed)
        self.asked: dict[str, bytes] = {}
        self.unwanted: dict[str, None] = {}
        self.crashes = self.re_orgs = 0
        self.start()
        self.rows.world = self.world

    def start(self) -> None:
        """A process begins on what the file has."""
        self.rows._depth = 0
        self.follower = Follower(
            self.rows, self.depths, 1, lambda facts: None, self._halted, lambda block: None
        )
        self.courier = Courier(
            self.rows, LIMITS, WorldSigner(self.world), self.follower.log, lambda: 0
        )

    def _halted(self, why: str) -> None:
        raise AssertionError(f"halted without a re-org deeper than K: {why}")

    def go(self, turns: int) -> dict[str, int]:
        """Faults for so many turns, then calm until all is final; figures."""
        for _ in range(turns):
            self._trouble()
            self.turn()
        self.world.is_calm = True
        self.world.base_fee = BASE_FEE
        for _ in range(120):
            self.world.mine()
            self.turn()
            if not self.courier.lane.open:
                break
        self.finish()
        return {
            "turns": turns,
            "purposes": len(self.asked),
            "crashes": self.crashes,
            "re-orgs": self.re_orgs,
        }

    def _trouble(self) -> None:
        world, dice = self.world, self.world.random
        for _ in range(dice.randrange(3)):
            world.mine()
        if dice.randrange(100) < 8 and world.tip > DEPTH:
            world.re_org(dice.randrange(1, DEPTH))
            self.re_orgs += 1
        if dice.randrange(100) < 5:
            world.base_fee = dice.choice([1, 2, 5, 30, 120]) * BASE_FEE // 2
        if dice.randrange(100) < 10 and world.pool:  # every node forgets it
            world.pool.pop(dice.choice(list(world.pool)))
        if dice.randrange(100) < 3 and self.asked:
            world.reverting[dice.choice(list(self.asked.values()))] = None

    def turn(self) -> None:
        dice = self.world.random
        nodes = list(self.nodes)
        if dice.randrange(2):
            nodes.reverse()
        try:
            if dice.randrange(100) < 40 and not self.world.is_calm:
                name = f"redeem/{dice.randrange(60)}"
                if name not in self.asked:
                    self.asked[name] = name.encode()
                self.courier.ask(name, POOL, self.asked[name])
            if dice.randrange(100) < 3 and self.asked and not self.world.is_calm:
                name = dice.choice(list(self.asked))
                self.unwanted[name] = None
                self.courier.drop(name, "not needed")
            self.follower.turn(nodes)
            self.courier.turn(nodes[0])
        except NodeDownError:
            pass
        except CrashError:
            self._start_again()
        self.check()

    def _start_again(self) -> None:
        """A process may be killed while it starts, too."""
        while True:
            self.crashes += 1
            with contextlib.suppress(CrashError):
                self.start()
                return

    # ------------------------------------------------------------ what must hold

    def check(self) -> None:
        """The invariants, judged from the file and the world only."""
        world, lane_row = self.world, self.rows.db.execute
        done = world.executed()
        twice = [call for call in set(done) if done.count(call) > 1]
        assert not twice, f"spent twice: {twice}"
        intents = self.rows.all("intent", queue_records.Intent)
        nonces = sorted(one.nonce for one in intents if one.nonce >= 0)
        assert nonces == list(range(len(nonces))), f"nonces {nonces}"
        deep = world.tip - DEPTH + 1
        for intent in intents:
            if intent.state in ("confirmed", "failed", "replaced"):
                assert intent.receipt is not None
                number = intent.receipt.block
                assert number <= deep, f"{intent.purpose} is final in block {number} of {world.tip}"
                mined = world.chain[number]
                assert intent.receipt.hash in mined.transactions, f"{intent.purpose} is not there"
            if intent.state == "confirmed":
                assert intent.call in done, f"{intent.purpose} is confirmed and was not done"
        ((count,),) = lane_row("SELECT count(*) FROM rows WHERE kind = 'log'")
        if count:
            log = chain_log.Log(self.depths)
            self.rows.load_log(log)
            assert log.applied <= max(0, deep), f"applied {log.applied} at {world.tip}"
            fresh = [f for m in world.chain[: log.applied + 1] for f in m.block.facts]
            assert list(self.rows.facts()) == fresh, "the facts are not a fresh replay's"

    def finish(self) -> None:
        """All is final, and what was asked for was done, once."""
        lane = self.courier.lane
        assert not lane.open, f"never final: {[(o, lane.intents[o].state) for o in lane.open]}"
        assert self.world.chain[-1].nonce == lane.next_nonce, "a nonce is left open"
        done = self.world.executed()
        for purpose, call in self.asked.items():
            intent = lane.intents.get(purpose)
            if intent is None:
                continue  # the process ended before it was asked
            if purpose not in self.unwanted and call not in self.world.reverting:
                assert done.count(call) == 1, (
                    f"{purpose} is {intent.state}, done {done.count(call)}"
                )
                assert intent.state == "confirmed"
