"""What a connection does with an RPC that is slow, odd, another chain's, or lies."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from lying_rpc_rig import Error, Liar, Raw, liar

from gristmill.contracts import abi, transport
from gristmill.contracts.ethereum import keccak
from gristmill.contracts.faults import RevertedError
from gristmill.contracts.rpc import Chain, contract_at, token_at
from gristmill.wire.errors import RemoteError

HASH = "0x" + "11" * 32
POOL = b"\xaa" * 20


class World:
    """What the server says: chain 7, and what a test puts into ``says``."""

    def __init__(self) -> None:
        self.chain = 7
        self.says: dict[str, Any] = {}

    def answer(self, method: str, params: Any) -> Any:
        if method == "eth_chainId" and method not in self.says:
            return hex(self.chain)
        found = self.says.get(method)
        return found(params) if callable(found) else found


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def server(world: World) -> Iterator[Liar]:
    with liar(world.answer) as started:
        yield started


def refused(chain: Chain, method: str = "eth_x") -> RemoteError:
    with pytest.raises(RemoteError) as caught:
        chain.ask(method, [])
    return caught.value


@pytest.mark.parametrize(
    "url",
    ["", "ftp://host", "file:///etc/passwd", "127.0.0.1:8545", "http://", "http://[", "ws://host",
     "https://ann:" + "word@host/v3", "http://host:port"],
)  # fmt: skip
def test_only_http_without_a_password(url: str) -> None:
    with pytest.raises(RemoteError) as caught:
        Chain([url])
    assert caught.value.code == "INVALID_SPEC"
    assert "word" not in str(caught.value).replace("a password", "")


def test_the_chain_is_asked_for_first_and_on_each_connection(world: World, server: Liar) -> None:
    world.says["eth_blockNumber"] = "0x10"
    chain = Chain([server.url])
    assert (chain.chain_id, chain.number(), chain.number()) == (7, 16, 16)
    assert server.connections == 1
    chain.close()
    assert chain.number() == 16
    assert server.asked == ["eth_chainId", "eth_chainId", "eth_blockNumber", "eth_blockNumber",
                            "eth_chainId", "eth_blockNumber"]  # fmt: skip
    world.chain = 8
    chain.close()
    error = refused(chain)
    assert error.code == "CHAIN_WRONG"
    assert "is chain 8, and not 7" in error.message
    assert server.asked[-1] == "eth_chainId"  # and nothing after it


def test_an_old_connection_is_not_believed_for_ever(
    world: World, server: Liar, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "CONNECTION_S", -1.0)
    chain = Chain([server.url], 7)
    world.chain = 1
    assert refused(chain).code == "CHAIN_WRONG"


def test_a_server_that_closes_is_asked_who_it_is_each_time(world: World, server: Liar) -> None:
    server.is_closing = True
    world.says["eth_blockNumber"] = "0x5"
    chain = Chain([server.url])
    assert (chain.number(), chain.number()) == (5, 5)
    assert server.asked[-4:] == ["eth_chainId", "eth_blockNumber"] * 2
    world.chain = 8
    assert refused(chain).code == "CHAIN_WRONG"


def test_a_pinned_chain(server: Liar) -> None:
    with pytest.raises(RemoteError, match="is chain 7, and not 1") as caught:
        Chain([server.url], 1)
    assert caught.value.spec.exit_code == 5


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>busy</html>", b"[]", b"null", b'{"id":99,"result":1}', b'{"id":1}',
     b'{"id":null,"error":"no"}', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000],
)  # fmt: skip
def test_what_is_no_json_rpc_is_named(world: World, server: Liar, body: bytes) -> None:
    chain = Chain([server.url])
    world.says["eth_x"] = Raw(body)
    error = refused(chain)
    assert error.code == "CHAIN_DOWN"
    assert error.message.startswith(f"http://127.0.0.1:{server.server_port}: eth_x got ")


def test_a_status_without_an_answer(world: World, server: Liar) -> None:
    chain = Chain([server.url])
    server.status, world.says["eth_x"] = 503, Raw(b"")
    assert "eth_x got status 503" in refused(chain).message


def test_an_endless_answer_is_cut_off(
    world: World, server: Liar, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = Chain([server.url])
    monkeypatch.setattr(transport, "ANSWER_BYTES_MAX", 1000)
    world.says["eth_x"] = "x" * 1001
    assert "an answer of more than 1000 bytes" in refused(chain).message
    world.says["eth_x"] = "x" * 900
    assert chain.ask("eth_x", []) == "x" * 900


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nX", b"HTTP/1.1 200 OK\r\n\r\n{"])
def test_a_server_that_drips_is_cut_off(said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ends = threading.Event()

        def drip() -> None:
            peer = listener.accept()[0]
            with peer:
                peer.sendall(said)
                while not ends.wait(0.05):
                    try:
                        peer.sendall(b" " if said else b"")
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        began = time.monotonic()
        with pytest.raises(RemoteError, match=r"no whole answer within 0\.5 s"):
            Chain([f"http://127.0.0.1:{listener.getsockname()[1]}"], timeout_s=0.5)
        assert time.monotonic() - began < 5
        ends.set()
        thread.join(10)


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(RemoteError) as caught:
        Chain([f"http://127.0.0.1:{port}/v3/secret-path"])
    assert caught.value.code == "CHAIN_DOWN"
    assert caught.value.message == f"http://127.0.0.1:{port}: Connection refused"


def test_another_rpc_is_asked_when_one_is_down(world: World, server: Liar) -> None:
    world.says["eth_blockNumber"] = "0x5"
    other = World()
    other.says["eth_blockNumber"] = Raw(b"oops")
    with liar(other.answer) as second:
        chain = Chain([second.url, server.url])
        assert chain.number() == 5
        assert chain.shown == server.url  # and it is kept to
        assert chain.number() == 5
        assert second.asked.count("eth_blockNumber") == 1
        world.says["eth_blockNumber"] = Raw(b"no")
        message = refused(chain, "eth_blockNumber").message
        assert second.url in message
        assert server.url in message


def test_another_rpc_of_another_chain_is_refused(world: World, server: Liar) -> None:
    other = World()
    other.chain = 8
    with liar(other.answer) as second:
        chain = Chain([server.url, second.url])
        world.says["eth_x"] = Raw(b"down")
        assert refused(chain).code == "CHAIN_WRONG"


def test_a_connection_that_was_closed_meanwhile_is_made_again(world: World, server: Liar) -> None:
    world.says["eth_blockNumber"] = "0x5"
    chain = Chain([server.url])
    connection = chain._endpoints[0]._connection
    assert connection is not None
    assert connection.sock is not None
    connection.sock.shutdown(socket.SHUT_RDWR)
    assert chain.number() == 5
    assert server.connections == 2


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        ({"code": -32000, "message": "nonce too low: next nonce 3"}, "CHAIN_NONCE", "next nonce 3"),
        ({"code": -32000, "message": "insufficient funds for gas * price + value: balance 0"},
         "CHAIN_FUNDS", "balance 0"),
        ({"code": -32000, "message": "replacement transaction underpriced"},
         "CHAIN_UNDERPRICED", "replacement"),
        ({"code": -32000, "message": "max fee per gas less than block base fee: 1 < 2"},
         "CHAIN_UNDERPRICED", "1 < 2"),
        ({"code": -32601, "message": "no such method"}, "CHAIN_REFUSED", "no such method"),
        ({"code": -32005, "message": "rate limit exceeded"}, "CHAIN_DOWN", "takes no more"),
        ({"code": 3, "message": "execution reverted", "data": "0x"},
         "CHAIN_REVERTED", "it gave no reason"),
        ({"code": 3, "message": "execution reverted: too late"}, "CHAIN_REVERTED", "too late"),
        ({"code": "x", "message": None}, "CHAIN_REFUSED", "None"),
        ({}, "CHAIN_REFUSED", ""),
    ],
)  # fmt: skip
def test_refusals(world: World, server: Liar, error: dict[str, Any], code: str, told: str) -> None:
    chain = Chain([server.url])
    world.says["eth_x"] = Error(error)
    found = refused(chain)
    assert found.code == code
    assert told in found.message
    assert found.hint


def data_of(signature: str, types: list[str], values: list[Any]) -> str:
    return f"0x{(keccak(signature.encode())[:4] + abi.encode(types, values)).hex()}"


@pytest.mark.parametrize("place", ["plain", "nested", "parity"])
def test_a_custom_error_is_put_into_words(world: World, server: Liar, place: str) -> None:
    body = data_of("TooEarly(uint256)", ["uint256"], [1_800_000_000])
    data: Any = {"plain": body, "nested": {"data": body}, "parity": f"Reverted {body}"}[place]
    world.says["eth_x"] = Error(code=-32015, message="VM execution error.", data=data)
    with pytest.raises(RevertedError) as caught:
        Chain([server.url]).ask("eth_x", [], "acceptFeeWallet")
    assert caught.value.name == "TooEarly"
    assert caught.value.arguments == {"from": 1_800_000_000}
    assert caught.value.message == (
        "acceptFeeWallet was refused by the contract: TooEarly(from 1800000000)"
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (data_of("Error(string)", ["string"], ["too late"]), "too late"),
        (data_of("Panic(uint256)", ["uint256"], [0x11]), "Panic(0x11): a number is too large"),
        (data_of("Panic(uint256)", ["uint256"], [0x77]), "Panic(0x77): of a kind that is not kn"),
        (data_of("ZeroAddress()", [], []), "ZeroAddress()"),
        (data_of("Foreign(uint256)", ["uint256"], [1]), "none of our contracts': 0x"),
        (data_of("TooEarly(uint256)", [], []), "none of our contracts': 0x"),
        ("0x01", "none of our contracts': 0x01"),
    ],
)
def test_other_reverts(world: World, server: Liar, data: str, words: str) -> None:
    chain = Chain([server.url])
    world.says["eth_x"] = Error(code=3, message="execution reverted", data=data)
    assert words in refused(chain).message


HEADER = {"number": "0x5", "hash": HASH, "parentHash": HASH, "timestamp": "0x6"}
LOG = {
    "address": f"0x{POOL.hex()}", "topics": [HASH], "data": "0x", "blockNumber": "0x5",
    "blockHash": HASH, "transactionHash": HASH, "logIndex": "0x0",
}  # fmt: skip
RECEIPT = {
    "transactionHash": HASH, "blockNumber": "0x5", "blockHash": HASH, "status": "0x1",
    "gasUsed": "0x9", "effectiveGasPrice": "0x2", "contractAddress": None,
}  # fmt: skip


@pytest.mark.parametrize("wrong", [None, 5, "5", "0x", "0xzz", "0x" + "1" * 65, [], {}, True])
def test_numbers_that_are_none(world: World, server: Liar, wrong: Any) -> None:
    chain = Chain([server.url])
    pool = contract_at("WorkPool", POOL)
    world.says["eth_getBlockByNumber"] = {**HEADER, "timestamp": wrong}
    world.says["eth_getBalance"] = wrong
    world.says["eth_getLogs"] = [{**LOG, "blockNumber": wrong}]
    world.says["eth_getTransactionReceipt"] = {**RECEIPT, "gasUsed": wrong}
    for ask in (
        lambda: chain.header(5),
        lambda: chain.balance(POOL),
        lambda: chain.receipt(bytes.fromhex(HASH[2:])),
    ):
        with pytest.raises(RemoteError, match=r"answers nonsense: .* is no number"):
            ask()
    assert chain.logs(1, 5, [pool]) == []  # an event that is none of the pool's is not read


def test_blocks_and_receipts_that_were_not_asked_for(world: World, server: Liar) -> None:
    chain = Chain([server.url])
    world.says["eth_getBlockByNumber"] = world.says["eth_getBlockByHash"] = HEADER
    found = chain.header(5)
    assert found is not None
    assert (found.number, found.hash.hex(), found.timestamp) == (5, HASH[2:], 6)
    assert chain.header("latest") == found == chain.header(found.hash)
    for block in (4, b"\x22" * 32):
        with pytest.raises(RemoteError, match="was asked for and 5 came"):
            chain.header(block)
    world.says["eth_getBlockByNumber"] = None
    assert chain.header(9) is None
    world.says["eth_getTransactionReceipt"] = RECEIPT
    with pytest.raises(RemoteError, match="the receipt of another transaction"):
        chain.receipt(bytes(32))
    world.says["eth_getTransactionReceipt"] = None
    assert chain.receipt(bytes(32)) is None


def test_a_transaction_must_be_taken_as_what_it_is(world: World, server: Liar) -> None:
    chain = Chain([server.url])
    world.says["eth_sendRawTransaction"] = HASH
    with pytest.raises(RemoteError, match="a transaction was taken as"):
        chain.send(b"raw")
    world.says["eth_sendRawTransaction"] = f"0x{keccak(b'raw').hex()}"
    assert chain.send(b"raw") == keccak(b"raw")
    world.says["eth_sendRawTransaction"] = Error(code=-32000, message="already known")
    assert chain.send(b"raw") == keccak(b"raw")


def test_logs_of_others_or_of_other_blocks(world: World, server: Liar) -> None:
    chain = Chain([server.url])
    pool = contract_at("WorkPool", POOL)
    vetoed = f"0x{keccak(b'RootVetoed(uint64)').hex()}"
    log = {**LOG, "topics": [vetoed, f"0x{5:064x}"]}
    world.says["eth_getLogs"] = [{**log, "blockNumber": "0x4"}, {**log, "logIndex": "0x1"}, log]
    found = chain.logs(4, 5, [pool])
    assert [(event.name, event.block, event.log_index) for event in found] == [
        ("RootVetoed", 4, 0),
        ("RootVetoed", 5, 0),
        ("RootVetoed", 5, 1),
    ]
    assert dict(found[0].arguments) == {"number": 5}
    for wrong, told in (
        ([{**log, "blockNumber": "0x6"}], "blocks outside of 4 to 5"),
        ([{**log, "address": "0x" + "bb" * 20}], "not asked for"),
        ([{**log, "topics": [vetoed]}], "does not decode"),
        ([{**log, "topics": [vetoed, "0x" + "ff" * 32]}], "does not decode"),
        ([5], "what is no log"),
        ({}, "no list"),
    ):
        world.says["eth_getLogs"] = wrong
        with pytest.raises(RemoteError, match=told):
            chain.logs(4, 5, [pool])
    world.says["eth_getLogs"] = [{**log, "removed": True}]
    assert chain.logs(4, 5, [pool]) == []


def test_a_range_that_is_too_large_is_asked_for_in_halves(world: World, server: Liar) -> None:
    asked: list[tuple[int, int]] = []

    def logs(params: Any) -> Any:
        low, high = (int(params[0][name], 16) for name in ("fromBlock", "toBlock"))
        asked.append((low, high))
        if high - low >= 2:
            return Error(code=-32005, message="query returned more than 10000 results")
        return []

    world.says["eth_getLogs"] = logs
    chain = Chain([server.url])
    assert chain.logs(1, 6, [contract_at("WorkPool", POOL)]) == []
    assert asked == [(1, 6), (1, 3), (1, 2), (3, 3), (4, 6), (4, 5), (6, 6)]
    world.says["eth_getLogs"] = Error(code=-32602, message="never")
    with pytest.raises(RemoteError, match="never"):
        chain.logs(1, 1 << 60, [contract_at("WorkPool", POOL)])


@pytest.mark.parametrize("body", ["0x", "0x01", "0x" + "ff" * 31])
def test_an_answer_that_no_such_contract_gives(world: World, server: Liar, body: str) -> None:
    chain = Chain([server.url])
    world.says["eth_call"] = body
    with pytest.raises(RemoteError) as caught:
        chain.call(token_at(POOL), "balanceOf", POOL)
    assert caught.value.code == "CHAIN_WRONG"
    assert "balanceOf of DevToken at 0xaAaAaA" in caught.value.message


def test_the_interpreters_limit_stays_what_it_was() -> None:
    script = (
        "import sys; before = sys.getrecursionlimit()\n"
        "import gristmill.contracts.plan, gristmill.contracts.merkle\n"
        "import gristmill.contracts.vouchers, gristmill.contracts.overview\n"
        "assert sys.getrecursionlimit() == before, sys.getrecursionlimit()"
    )
    command = [sys.executable, "-P", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_else_loads_the_library() -> None:
    script = (
        "import json, sys, gristmill.cli.main, gristmill.client, gristmill.ledger, gristmill.broker"
        "\nfrom gristmill.cli import parser, documents\nparser.build()\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    command = [sys.executable, "-P", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert not {"web3", "eth_account", "eth_hash", "requests", "aiohttp"} & set(
        json.loads(done.stdout)
    )
