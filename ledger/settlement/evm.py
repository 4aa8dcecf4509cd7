"""The chain as the settlement asks it: one RPC, its answers checked, its words put into ours.

A block's events are believed when they are all of them: the bloom in the block's header is made of
every event in it, so events that a node leaves out are missed (``Block.is_short``), except those
whose bits others set as well. What a node adds or tells otherwise is found by a second node and by
the reconciliation.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from gristmill.contracts import faults
from gristmill.contracts.ethereum import keccak
from gristmill.contracts.keys import Signer as KeySigner
from gristmill.contracts.rpc import Chain, Contract, Transaction
from gristmill.ledger.settlement.core.chain_log import Block, Fact
from gristmill.ledger.settlement.core.queue_records import Attempt, Receipt
from gristmill.ledger.settlement.core.reconcile import Figures
from gristmill.ledger.settlement.ports import Head, NodeDownError, RevertedError, SendResult
from gristmill.wire.errors import RemoteError

BLOOM_BYTES = 256
ASKED_MAX = 3
_Kind = TypeVar("_Kind")


class EvmNode:
    """One RPC of an EVM chain.

    Args:
        chain: over one URL.
        rental: ComputeRental there.
        pool: WorkPool there.
        token: that both hold.
        account: our address, which sends.
    """

    def __init__(
        self, chain: Chain, rental: Contract, pool: Contract, token: Contract, account: bytes
    ) -> None:
        self._chain, self._token, self._account = chain, token, account
        self._rental, self._pool = rental, pool
        self._names = {rental.address: "rental", pool.address: "pool"}
        self._at = {rental.address: rental, pool.address: pool}

    @property
    def name(self) -> str:
        """The RPC without the path that may be a secret."""
        return self._chain.shown

    def head(self) -> Head:
        """See ``Node``."""
        found = self._ask("eth_getBlockByNumber", ["latest", False])
        tip = self._ask("eth_maxPriorityFeePerGas", [])
        try:
            return Head(
                _number(found["number"]),
                _bytes(found["hash"]),
                _number(found.get("baseFeePerGas", "0x0")),
                _number(tip),
                _number(found["timestamp"]),
            )
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise self._odd("its last block", error) from None

    def block(self, number: int) -> Block | None:
        """See ``Node``."""
        found = self._ask("eth_getBlockByNumber", [hex(number), False])
        if found is None:
            return None
        try:
            if _number(found["number"]) != number:
                raise ValueError(f"it is {found['number']}")
            hash, parent = _bytes(found["hash"]), _bytes(found["parentHash"])
            bloom = _bytes(found["logsBloom"])
        except (TypeError, KeyError, ValueError) as error:
            raise self._odd(f"block {number}", error) from None
        if not any(_has(bloom, address) for address in self._at):
            return Block(number, hash, parent)
        logs = self._ask("eth_getLogs", [{"blockHash": f"0x{hash.hex()}"}])
        try:
            facts, theirs = self._read(logs, number, hash)
        except (TypeError, KeyError, ValueError) as error:
            raise self._odd(f"the events of block {number}", error) from None
        return Block(number, hash, parent, facts, is_short=theirs != bloom)

    def _read(self, logs: Any, number: int, hash: bytes) -> tuple[list[Fact], bytes]:
        """Facts of ours in all logs of a block, and the bloom that those logs make."""
        bloom = bytearray(BLOOM_BYTES)
        facts = []
        for log in logs:
            address = _bytes(log["address"])
            topics = [_bytes(topic) for topic in log["topics"]]
            for part in (address, *topics):
                _set(bloom, part)
            if _bytes(log["blockHash"]) != hash:
                raise ValueError("one is of another block")
            contract = self._at.get(address)
            if contract is None:
                continue
            name, fields = contract.interface.decode_event(topics, _bytes(log["data"]))
            if name:
                facts.append(
                    Fact(
                        number,
                        _number(log["logIndex"]),
                        self._names[address],
                        name,
                        fields,
                        _bytes(log["transactionHash"]),
                    )
                )
        return sorted(facts, key=lambda fact: fact.index), bytes(bloom)

    def facts(self, first: int, last: int) -> list[Fact]:
        """See ``Node``. Every header is looked at, so events that are left out are found here, too.

        A question for each block, against one for thousands that nobody could check.
        """
        found: list[Fact] = []
        parent = b""
        for number in range(first, last + 1):
            block = self.block(number)
            if block is None or block.is_short or (parent and block.parent != parent):
                raise NodeDownError(f"{self.name} does not tell all events of block {number}")
            parent = block.hash
            found += block.facts
        return found

    def receipts(self, hashes: Sequence[bytes]) -> Mapping[bytes, Receipt]:
        """See ``Node``."""
        found = {}
        for hash in hashes:
            told = self._again(self._chain.receipt, hash)
            if told is not None:
                paid = told.gas_used * told.gas_price
                found[hash] = Receipt(hash, told.block, told.block_hash, not told.is_ok, paid)
        return found

    def known(self, hashes: Sequence[bytes]) -> frozenset[bytes]:
        """See ``Node``."""
        return frozenset(hash for hash in hashes if self._again(self._chain.is_known, hash))

    def nonce(self, block: int | None) -> int:
        """See ``Node``."""
        place = "latest" if block is None else block
        return self._again(self._chain.nonce, self._account, place)

    def preflight(self, target: bytes, call: bytes, block: int | None = None) -> int:
        """See ``Node``; at the last block: what waits may be this very call, sent before."""
        told = {
            "from": f"0x{self._account.hex()}",
            "to": f"0x{target.hex()}",
            "data": f"0x{call.hex()}",
        }
        try:
            if block is not None:
                self._chain.ask("eth_call", [told, hex(block)])
                return 0
            return _number(self._chain.ask("eth_estimateGas", [told, "latest"]))
        except faults.RevertedError as error:
            raise RevertedError(error.message.partition("contract: ")[2] or error.message) from None
        except RemoteError as error:
            raise NodeDownError(error.message) from None
        except (TypeError, ValueError) as error:
            raise self._odd("an estimate", error) from None

    def send(self, attempt: Attempt) -> SendResult:
        """See ``Node``."""
        try:
            self._chain.send(attempt.raw)
        except RemoteError as error:
            if error.code == "CHAIN_DOWN":
                return "unknown", error.message
            if error.code == "CHAIN_NONCE":
                return "nonce_used", error.message
            if error.code == "CHAIN_UNDERPRICED":
                return "underpriced", error.message
            return "refused", error.message
        return "accepted", ""

    def figures(self, block: int) -> Figures:
        """What the contracts say of themselves, as of a block.

        Raises:
            NodeDownError: no whole answer.
        """
        call, rental, pool = self._chain.call, self._rental, self._pool
        try:
            number, _, total = call(pool, "current", block=block)
            waiting, _, waiting_total, _ = call(pool, "waiting", block=block)
            if waiting:
                number, total = waiting, waiting_total
            return Figures(
                block,
                call(rental, "totalLiability", block=block),
                call(self._token, "balanceOf", rental.address, block=block),
                call(self._token, "balanceOf", pool.address, block=block),
                call(pool, "claimedTotal", block=block),
                number,
                total,
            )
        except RemoteError as error:
            raise NodeDownError(error.message) from None

    def _ask(self, method: str, params: list[Any]) -> Any:
        return self._again(self._chain.ask, method, params)

    def _again(self, ask: Callable[..., _Kind], *arguments: Any) -> _Kind:
        """A question, asked up to ``ASKED_MAX`` times: a turn has hundreds, and needs them all."""
        for number in range(1, ASKED_MAX + 1):
            try:
                return ask(*arguments)
            except RemoteError as error:
                if error.code != "CHAIN_DOWN" or number == ASKED_MAX:
                    raise NodeDownError(error.message) from None
        raise AssertionError

    def _odd(self, what: str, error: Exception) -> NodeDownError:
        return NodeDownError(f"{self.name} tells nonsense of {what}: {error!r:.100}")


class EvmSigner:
    """The account's signer for one chain.

    Args:
        signer: a keystore's key, or a signer elsewhere.
        chain_id: what its transactions are good for.
    """

    def __init__(self, signer: KeySigner, chain_id: int) -> None:
        self._signer, self._chain_id = signer, chain_id
        self.address = signer.address

    def sign(
        self, nonce: int, target: bytes, call: bytes, gas: int, max_fee_wei: int, tip_wei: int
    ) -> tuple[bytes, bytes]:
        """See ``ports.Signer``."""
        asked = Transaction(self._chain_id, nonce, target, call, gas, max_fee_wei, tip_wei)
        try:
            raw = self._signer.sign(asked)
        except RemoteError as error:
            raise NodeDownError(error.message) from None
        return keccak(raw), raw


def _number(told: Any) -> int:
    if not isinstance(told, str) or not told.startswith("0x"):
        raise ValueError(f"{told!r:.40} is no quantity")
    return int(told, 16)


def _bytes(told: Any) -> bytes:
    if not isinstance(told, str) or not told.startswith("0x"):
        raise ValueError(f"{told!r:.40} is no hex")
    return bytes.fromhex(told[2:])


def _bits(part: bytes) -> list[int]:
    """The three bits of a bloom that an address or a topic sets (yellow paper, section 4.3.1)."""
    hash = keccak(part)
    return [int.from_bytes(hash[at : at + 2]) & 2047 for at in (0, 2, 4)]


def _set(bloom: bytearray, part: bytes) -> None:
    for bit in _bits(part):
        bloom[BLOOM_BYTES - 1 - bit // 8] |= 1 << bit % 8


def _has(bloom: bytes, part: bytes) -> bool:
    return all(bloom[BLOOM_BYTES - 1 - bit // 8] >> bit % 8 & 1 for bit in _bits(part))
