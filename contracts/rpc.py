"""One chain, by one RPC or several: what a settlement, a deployment and the command ask of it.

Every answer is checked for what a caller builds on: types, ranges, that a log is of the blocks and
contracts that were asked for, that a sent transaction has the hash that its bytes have. Whether the
chain is the right one is asked first on each connection. A node can still tell a false history:
who needs more asks a node of its own.

Where several URLs are given, the one that answers is kept; another is asked when it is down, which
may know fewer blocks: a reader compares hashes of headers (``header``), not only numbers.
Not for several threads at a time.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from gristmill.contracts import abi
from gristmill.contracts.artifact import Artifact, load
from gristmill.contracts.ethereum import keccak
from gristmill.contracts.faults import RevertedError, fault_of, is_known
from gristmill.contracts.transport import TIMEOUT_S, Endpoint, RpcError
from gristmill.wire.errors import RemoteError

Block = int | bytes | str  #: a number, a hash, or one of ``BLOCK_WORDS``
BLOCK_WORDS = ("latest", "pending", "safe", "finalized", "earliest")
TOKEN_DECIMALS = 6  #: a base unit is a micro-credit
POLL_S = 0.05  #: between two looks for a receipt, at first; doubled up to ``POLL_MAX_S``
POLL_MAX_S = 2.0
_QUANTITY = re.compile(r"0x[0-9a-fA-F]{1,64}")
_BYTES = re.compile(r"0x(?:[0-9a-fA-F]{2})*")


class Contract(NamedTuple):
    """A contract at an address (20 bytes)."""

    name: str
    address: bytes
    artifact: Artifact

    @property
    def interface(self) -> abi.Interface:
        """Its ABI."""
        return abi.interface_of(self.name)


def contract_at(name: str, address: bytes) -> Contract:
    """One of ours (``artifacts.NAMES``); whether its code lies there is ``deployment.check``'s."""
    return Contract(name, address, load(name))


def token_at(address: bytes) -> Contract:
    """Any ERC-20 token: DevToken's interface has all that is asked of one."""
    return Contract("DevToken", address, load("DevToken"))


class Header(NamedTuple):
    """A block; ``hash`` and ``parent`` 32 bytes, ``timestamp`` in seconds of Unix time."""

    number: int
    hash: bytes
    parent: bytes
    timestamp: int


class Event(NamedTuple):
    """A log of one of our contracts, decoded; addresses and hashes in ``arguments`` are bytes.

    ``log_index``: of the log in its block: (block, log_index) orders all events of a chain.
    """

    name: str
    address: bytes
    arguments: Mapping[str, Any]
    block: int
    block_hash: bytes
    transaction: bytes
    log_index: int


class Receipt(NamedTuple):
    """How a transaction ended. ``contract``: the address of what it made; empty for nothing.

    ``gas_price``: wei for each unit of gas that was paid.
    """

    transaction: bytes
    block: int
    block_hash: bytes
    is_ok: bool
    gas_used: int
    gas_price: int
    contract: bytes


class Fees(NamedTuple):
    """Wei for a unit of gas: the next block's base fee, and what its miner wants on top."""

    base: int
    priority: int

    @property
    def limit(self) -> int:
        """What to offer at most, so that it is enough when the base fee doubles."""
        return 2 * self.base + self.priority


class Transaction(NamedTuple):
    """One of type 2 (EIP-1559); ``to`` is empty for what makes a contract."""

    chain_id: int
    nonce: int
    to: bytes
    body: bytes
    gas: int
    fee_limit: int
    fee_priority: int
    value: int = 0

    def as_rpc(self, sender: bytes) -> dict[str, str]:
        """As JSON-RPC has it."""
        told = {
            "from": abi.show_address(sender),
            "chainId": hex(self.chain_id),
            "nonce": hex(self.nonce),
            "value": hex(self.value),
            "data": f"0x{self.body.hex()}",
            "gas": hex(self.gas),
            "maxFeePerGas": hex(self.fee_limit),
            "maxPriorityFeePerGas": hex(self.fee_priority),
        }
        return told | ({"to": abi.show_address(self.to)} if self.to else {})


class Chain:
    """See the module's text.

    Args:
        urls: of the RPCs, one at least.
        chain_id: the one that it must be; None: whatever the first says, which is then kept to.
        timeout_s: of each question.

    Attributes:
        chain_id: of the chain.

    Raises:
        RemoteError: ``CHAIN_DOWN``: none of them answers; ``CHAIN_WRONG``: one is another chain.
    """

    def __init__(
        self, urls: Sequence[str], chain_id: int | None = None, timeout_s: float = TIMEOUT_S
    ) -> None:
        if not urls:
            raise RemoteError("INVALID_SPEC", "no RPC is named", "give its URL: --rpc URL")
        self._pinned = chain_id
        self._endpoints = [Endpoint(url, timeout_s, self._greet) for url in urls]
        self._now = 0  # which of them is asked
        self.ask("eth_chainId", [])
        assert self._pinned is not None
        self.chain_id: int = self._pinned

    def __repr__(self) -> str:
        return f"Chain({self.shown!r}, {self._pinned})"

    @property
    def shown(self) -> str:
        """The RPC that is asked now, without the path that may be a secret."""
        return self._endpoints[self._now].shown

    def close(self) -> None:
        """Forget the connections."""
        for endpoint in self._endpoints:
            endpoint.close()

    # ------------------------------------------------------------ questions

    def ask(self, method: str, params: Sequence[Any], what: str = "") -> Any:
        """The raw result of any JSON-RPC method; ``what`` names it in a refusal.

        Raises:
            RemoteError: ``CHAIN_DOWN`` (no URL answers; every reason is told), ``CHAIN_WRONG``,
                or what ``faults.fault_of`` makes of a refusal: ``CHAIN_REVERTED`` (a
                ``RevertedError``), ``CHAIN_FUNDS``, ``CHAIN_NONCE``, ``CHAIN_UNDERPRICED``,
                ``CHAIN_REFUSED``.
        """
        try:
            return self._ask(method, params)
        except RpcError as error:
            raise fault_of(error, what or method, self.shown) from None

    def header(self, block: Block = "latest") -> Header | None:
        """A block's header; None when the node has no such block."""
        if isinstance(block, bytes):
            found = self.ask("eth_getBlockByHash", [_hex(block), False])
        else:
            found = self.ask("eth_getBlockByNumber", [_block(block), False])
        if found is None:
            return None
        header = Header(
            self._number(found, "number"),
            self._bytes(found, "hash", 32),
            self._bytes(found, "parentHash", 32),
            self._number(found, "timestamp"),
        )
        if block not in (header.number, header.hash) and block not in BLOCK_WORDS:
            raise self._odd(f"block {_block(block)} was asked for and {header.number} came")
        return header

    def number(self) -> int:
        """The number of the newest block."""
        return self._quantity(self.ask("eth_blockNumber", []), "eth_blockNumber")

    def code(self, address: bytes, block: Block = "latest") -> bytes:
        """The code at an address; empty where there is none."""
        return self._body(self.ask("eth_getCode", [_hex(address), _block(block)]), "eth_getCode")

    def balance(self, address: bytes, block: Block = "latest") -> int:
        """Wei that an address has for gas."""
        found = self.ask("eth_getBalance", [_hex(address), _block(block)])
        return self._quantity(found, "eth_getBalance")

    def nonce(self, address: bytes, block: Block = "latest") -> int:
        """How many transactions an address has sent; with ``pending``: those that wait, too."""
        found = self.ask("eth_getTransactionCount", [_hex(address), _block(block)])
        return self._quantity(found, "eth_getTransactionCount")

    def call(
        self,
        contract: Contract,
        function: str,
        *arguments: Any,
        block: Block = "latest",
        sender: bytes = b"",
    ) -> Any:
        """What a function answers, and nothing is changed: one value, or a tuple of several.

        Raises:
            RemoteError: as ``ask``; ``CHAIN_WRONG``: it answers what no such contract does.
        """
        asked = {
            "to": _hex(contract.address),
            "data": _hex(contract.interface.encode_call(function, arguments)),
        }
        if sender:
            asked["from"] = _hex(sender)
        what = f"{function} of {contract.name} at {abi.show_address(contract.address)}"
        body = self._body(self.ask("eth_call", [asked, _block(block)], what), what)
        try:
            return contract.interface.decode_result(function, body)
        except ValueError as error:
            told = "nothing" if not body else f"what is no such answer: {error}"
            raise RemoteError("CHAIN_WRONG", f"{what} answers {told}") from None

    def logs(self, from_block: int, to_block: int, contracts: Sequence[Contract]) -> list[Event]:
        """Events of contracts in a range of blocks, both ends included, in the chain's order.

        A range that the node finds too large is asked for in halves. Events that are not in a
        contract's ABI are left out.

        Raises:
            RemoteError: as ``ask``.
        """
        asked = {
            "fromBlock": hex(from_block),
            "toBlock": hex(to_block),
            "address": [_hex(contract.address) for contract in contracts],
        }
        try:
            found = self.ask("eth_getLogs", [asked])
        except RemoteError as error:
            is_too_much = error.code == "CHAIN_REFUSED" or "an answer of more" in error.message
            if not is_too_much or from_block >= to_block:
                raise
            middle = (from_block + to_block) // 2
            head = self.logs(from_block, middle, contracts)
            return head + self.logs(middle + 1, to_block, contracts)
        if not isinstance(found, list):
            raise self._odd(f"eth_getLogs got {type(found).__name__}, no list")
        at = {contract.address: contract for contract in contracts}
        events = [event for log in found if (event := self._event(log, at)) is not None]
        if any(not from_block <= event.block <= to_block for event in events):
            raise self._odd(f"eth_getLogs has blocks outside of {from_block} to {to_block}")
        return sorted(events, key=lambda event: (event.block, event.log_index))

    def fees(self) -> Fees:
        """What gas costs now, in wei."""
        found = self.ask("eth_getBlockByNumber", ["pending", False])
        if not isinstance(found, dict) or "baseFeePerGas" not in found:
            found = self.ask("eth_getBlockByNumber", ["latest", False])
        base = self._number(found, "baseFeePerGas")
        priority = self.ask("eth_maxPriorityFeePerGas", [])
        return Fees(base, self._quantity(priority, "eth_maxPriorityFeePerGas"))

    # ------------------------------------------------------------ transactions

    def estimate(self, transaction: Transaction, sender: bytes, what: str = "") -> int:
        """Gas that a transaction would use, by trying it; ``what`` names it in a refusal.

        Its own ``gas``, fees and nonce are left out.

        Raises:
            RemoteError: as ``ask``; a ``RevertedError`` says what it would be refused with.
        """
        told = transaction.as_rpc(sender)
        for field in ("gas", "nonce", "maxFeePerGas", "maxPriorityFeePerGas"):
            del told[field]
        return self._quantity(self.ask("eth_estimateGas", [told], what), "eth_estimateGas")

    def send(self, raw: bytes) -> bytes:
        """Hand a signed transaction in; its hash. One that the node has already is no error.

        That it was taken does not mean that it will be mined: see ``receipt``.

        Raises:
            RemoteError: as ``ask``; after ``CHAIN_DOWN`` it may have been taken: send the same
                bytes again.
        """
        expected = keccak(raw)
        try:
            answer = self._ask("eth_sendRawTransaction", [_hex(raw)])
        except RpcError as error:
            if is_known(error):
                return expected
            raise fault_of(error, "the transaction", self.shown) from None
        if answer != _hex(expected):
            raise self._odd(f"a transaction was taken as {answer!r:.70}, it is {_hex(expected)}")
        return expected

    def receipt(self, transaction: bytes) -> Receipt | None:
        """How a transaction ended; None while it is in no block that the node has."""
        found = self.ask("eth_getTransactionReceipt", [_hex(transaction)])
        if found is None:
            return None
        if self._bytes(found, "transactionHash", 32) != transaction:
            raise self._odd(f"the receipt of another transaction than {_hex(transaction)}")
        made = found.get("contractAddress")
        status = self._number(found, "status")
        return Receipt(
            transaction,
            self._number(found, "blockNumber"),
            self._bytes(found, "blockHash", 32),
            status == 1,
            self._number(found, "gasUsed"),
            self._number(found, "effectiveGasPrice"),
            self._bytes(found, "contractAddress", 20) if made else b"",
        )

    def is_known(self, transaction: bytes) -> bool:
        """Whether the node has a transaction, mined or waiting."""
        return self.ask("eth_getTransactionByHash", [_hex(transaction)]) is not None

    def wait(
        self,
        transaction: bytes,
        timeout_s: float,
        sleep: Callable[[float], None] = time.sleep,
    ) -> Receipt:
        """The receipt, as soon as there is one.

        Raises:
            RemoteError: ``CHAIN_DOWN``: not mined in that time; it still may be.
        """
        until, pause_s = time.monotonic() + timeout_s, POLL_S
        while (found := self.receipt(transaction)) is None:
            if time.monotonic() > until:
                raise RemoteError(
                    "CHAIN_DOWN",
                    f"{_hex(transaction)} was sent and is in no block after {timeout_s:g} s",
                    "wait; say the same again: what was sent is not sent twice",
                )
            sleep(pause_s)
            pause_s = min(2 * pause_s, POLL_MAX_S)
        return found

    # ------------------------------------------------------------ inside

    def _greet(self, ask: Callable[[str, Sequence[Any]], Any]) -> None:
        """The first question on each connection."""
        found = self._quantity(ask("eth_chainId", []), "eth_chainId")
        if self._pinned is None:
            self._pinned = found
        if found != self._pinned:
            raise RemoteError(
                "CHAIN_WRONG",
                f"{self.shown} is chain {found}, and not {self._pinned}",
                "name an RPC of that chain, or the deployment of this one",
            )

    def _ask(self, method: str, params: Sequence[Any]) -> Any:
        """As ``ask``, with refusals as ``RpcError``."""
        down: list[str] = []
        for _ in self._endpoints:
            try:
                return self._endpoints[self._now].ask(method, params)
            except RemoteError as error:
                if error.code != "CHAIN_DOWN":
                    raise
                down.append(error.message)
                self._now = (self._now + 1) % len(self._endpoints)
        raise RemoteError("CHAIN_DOWN", "; ".join(down))

    def _event(self, log: Any, at: Mapping[bytes, Contract]) -> Event | None:
        if not isinstance(log, dict) or not isinstance(log.get("topics"), list):
            raise self._odd("eth_getLogs got what is no log")
        address = self._bytes(log, "address", 20)
        if address not in at:
            raise self._odd(f"eth_getLogs has {abi.show_address(address)}, not asked for")
        if log.get("removed"):
            return None
        topics = [self._body(topic, "a topic") for topic in log["topics"]]
        try:
            name, arguments = at[address].interface.decode_event(
                topics, self._body(log.get("data"), "data")
            )
        except ValueError as error:
            raise self._odd(f"a log that does not decode: {error}") from None
        if not name:
            return None
        return Event(
            name,
            address,
            arguments,
            self._number(log, "blockNumber"),
            self._bytes(log, "blockHash", 32),
            self._bytes(log, "transactionHash", 32),
            self._number(log, "logIndex"),
        )

    def _number(self, found: Any, field: str) -> int:
        return self._quantity(found.get(field) if isinstance(found, dict) else None, field)

    def _bytes(self, found: Any, field: str, length: int) -> bytes:
        body = self._body(found.get(field) if isinstance(found, dict) else None, field)
        if len(body) != length:
            raise self._odd(f"{field} has {len(body)} bytes, not {length}")
        return body

    def _quantity(self, found: Any, what: str) -> int:
        if not isinstance(found, str) or not _QUANTITY.fullmatch(found):
            raise self._odd(f"{what} is no number: {found!r:.60}")
        return int(found, 16)

    def _body(self, found: Any, what: str) -> bytes:
        if not isinstance(found, str) or not _BYTES.fullmatch(found):
            raise self._odd(f"{what} is no bytes: {found!r:.60}")
        return bytes.fromhex(found[2:])

    def _odd(self, told: str) -> RemoteError:
        return RemoteError("CHAIN_DOWN", f"{self.shown} answers nonsense: {told}")


def _hex(body: bytes) -> str:
    return f"0x{body.hex()}"


def _block(block: Block) -> Any:
    """As a JSON-RPC parameter; a hash by EIP-1898."""
    if isinstance(block, bytes):
        return {"blockHash": _hex(block)}
    return hex(block) if isinstance(block, int) else block


def check_token(chain: Chain, token: Contract) -> None:
    """Raises unless the token has an amount of micro-credits in one base unit.

    Raises:
        RemoteError: ``CHAIN_WRONG``: it has no code, or other than ``TOKEN_DECIMALS`` decimals.
    """
    shown = abi.show_address(token.address)
    if not chain.code(token.address):
        raise RemoteError(
            "CHAIN_WRONG",
            f"there is no contract at {shown} on chain {chain.chain_id}",
            "give the address of a token with 6 decimals, such as USDC has",
        )
    try:
        decimals = chain.call(token, "decimals")
    except RevertedError as error:
        raise RemoteError("CHAIN_WRONG", f"{shown} is no token: {error.message}") from None
    if decimals != TOKEN_DECIMALS:
        raise RemoteError(
            "CHAIN_WRONG",
            f"the token at {shown} has {decimals} decimals, not {TOKEN_DECIMALS}: one of its base "
            "units would not be a micro-credit",
            "give a token with 6 decimals, such as USDC has",
        )
