"""The contracts on a chain that makes a block for each transaction, and people who use them."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from chain_rig import ChainRig, chain_rig

from gristmill.contracts import plan, vouchers
from gristmill.contracts.act import act
from gristmill.contracts.ethereum import Account, keccak
from gristmill.contracts.faults import RevertedError
from gristmill.contracts.keys import AccountKey
from gristmill.contracts.rpc import Chain, Contract, Event, Receipt

CREDIT = 1_000_000
DAY_S = 86_400
PASSWORD = "a long password"


class Shop:
    """Deployed once; what a test does to the chain is taken back.

    Attributes:
        operator, client, fees, arbiter, guardian, creator, stranger: accounts with coin.
        folder: has ``deployment.json``, and a keystore of each by its name.
    """

    def __init__(self, rig: ChainRig, folder: pathlib.Path) -> None:
        self.rig, self.folder = rig, folder
        self.chain = Chain([rig.url])
        (
            self.operator, self.client, self.fees, self.arbiter, self.guardian, self.creator,
            self.stranger,
        ) = keys = [AccountKey(person.secret) for person in rig.people[:7]]  # fmt: skip
        self.wanted = plan.Wanted(
            b"", self.fees.address, self.arbiter.address, self.guardian.address,
            self.operator.address, 60, 10**15, DAY_S, DAY_S,
        )  # fmt: skip
        self.file = folder / "deployment.json"
        made = plan.make(self.chain, self.wanted, self.operator.address, None)
        self.placed = plan.execute(
            self.chain, made, self.operator, self.file, None, lambda *_: None
        )
        self.token = self.placed.token_contract()
        self.rental, self.market = map(self.placed.at, ("ComputeRental", "PromptMarketplace"))
        self.pool = self.placed.at("WorkPool")
        (folder / "password").write_text(PASSWORD)
        names = ("operator", "client", "fees", "arbiter", "guardian", "creator", "stranger")
        for name, key in zip(names, keys, strict=True):
            body = Account.encrypt(key.secret, PASSWORD, kdf="scrypt", iterations=2)
            (folder / name).write_text(json.dumps(body))
        for path in folder.iterdir():
            path.chmod(0o600)

    # ------------------------------------------------------------ the chain

    def do(self, key: AccountKey, contract: Contract, function: str, *values: Any) -> Receipt:
        """A transaction as the commands send it, mined."""
        return act(self.chain, key, contract, function, *values)

    def refused(self, key: AccountKey, contract: Contract, function: str, *values: Any) -> str:
        """The name of the error that it is refused with; nothing is sent."""
        before = self.chain.nonce(key.address)
        try:
            self.do(key, contract, function, *values)
        except RevertedError as error:
            assert self.chain.nonce(key.address) == before
            return error.name
        raise AssertionError(f"{function} was not refused")

    def forced(self, key: AccountKey, contract: Contract, function: str, *values: Any) -> bool:
        """Send it untried, as somebody without our commands; whether it counted."""
        told = {
            "from": f"0x{key.address.hex()}",
            "to": f"0x{contract.address.hex()}",
            "data": f"0x{contract.interface.encode_call(function, values).hex()}",
            "gas": hex(1_000_000),
        }
        hash = str(self.rig.ask("eth_sendTransaction", told))
        return self.chain.wait(bytes.fromhex(hash[2:]), 10).is_ok

    def events(self, receipt: Receipt, *contracts: Contract) -> list[Event]:
        """Of one transaction, in order."""
        found = self.chain.logs(receipt.block, receipt.block, list(contracts))
        return [event for event in found if event.transaction == receipt.transaction]

    def now_s(self) -> int:
        """The chain's time."""
        header = self.chain.header()
        assert header is not None
        return header.timestamp

    def has(self, address: bytes) -> int:
        """Micro-credits of an account."""
        return int(self.chain.call(self.token, "balanceOf", address))

    def owed(self, contract: Contract, key: AccountKey) -> int:
        """What it can withdraw."""
        return int(self.chain.call(contract, "owed", key.address))

    # ------------------------------------------------------------ rentals

    def money(self, key: AccountKey, amount: int, spender: Contract) -> None:
        """Give somebody money, which a contract may take."""
        self.do(key, self.token, "mint", key.address, amount)
        self.do(key, self.token, "approve", spender.address, amount)

    def lock(self, amount: int, payee: bytes = b"", salt: int = 1) -> bytes:
        """A rental of the client's for a day; its id."""
        self.money(self.client, amount, self.rental)
        self.do(
            self.client, self.rental, "lock", salt.to_bytes(32), self.operator.address,
            payee or self.pool.address, amount, self.now_s() + DAY_S, keccak(b"agreed"),
        )  # fmt: skip
        return vouchers.rental_id(self.client.address, salt.to_bytes(32))

    def signed(self, id: bytes, cumulative: int) -> tuple[bytes, int, bytes, bytes]:
        """A voucher as ``redeem`` and ``settle`` take it."""
        root = keccak(id)
        voucher = vouchers.Voucher(id, cumulative, root)
        place = (self.chain.chain_id, self.rental.address)
        return id, cumulative, root, vouchers.sign(voucher, *place, self.client.secret)

    def state(self, id: bytes) -> int:
        """1 locked, 2 disputed, 3 closed."""
        return int(self.chain.call(self.rental, "rentals", id)[4])

    # ------------------------------------------------------------ the command

    def run(
        self, *words: str, key: str = "", address: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """The command as a person types it; ``key``: whose keystore, ``address``: of a grid."""
        more = ["--rpc", self.rig.url, "--deployment", str(self.file)]
        if key:
            more += ["--key", str(self.folder / key)]
            more += ["--password-file", str(self.folder / "password")]
        return subprocess.run(
            [sys.executable, "-P", "-m", "gristmill.cli.main", *words, *more],
            env={**os.environ, "NO_COLOR": "1", "GRISTMILL_ADDRESS": address},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@contextlib.contextmanager
def contract_shop(folder: pathlib.Path) -> Iterator[Shop]:
    """One with a chain of its own."""
    with chain_rig() as rig:
        shop = Shop(rig, folder)
        try:
            yield shop
        finally:
            shop.chain.close()


def assembled(parts: Sequence[str | bytes]) -> bytes:
    """A contract's code of hex and bytes; ``>name`` is the place of ``:name``, in two bytes."""
    places: dict[str, int] = {}
    at = 0
    for part in parts:
        if isinstance(part, str) and part.startswith(":"):
            places[part[1:]] = at
        elif isinstance(part, str) and part.startswith(">"):
            at += 2
        else:
            at += len(part if isinstance(part, bytes) else bytes.fromhex(part))
    code = b""
    for part in parts:
        if isinstance(part, bytes):
            code += part
        elif part.startswith(">"):
            code += places[part[1:]].to_bytes(2)
        elif not part.startswith(":"):
            code += bytes.fromhex(part)
    return code


def refusing(real: bytes, barred: bytes) -> bytes:
    """A token that pays everybody but one, as issuers of stable coins can: code for its address."""
    return assembled(
        ["600435 73", barred, "14 61", ">fail", "57", *_delegating(real)],
    )


def calling_back(real: bytes, target: bytes, body: bytes) -> bytes:
    """A token that calls a contract in the middle of each transfer.

    Slot 0xdead has 2 when the last such call counted, 1 when it was refused.
    """
    length = len(body).to_bytes(2)
    return assembled(
        [
            "5f35 60e01c 63a9059cbb 14 15 61", ">go", "57",
            "61", length, "61", ">body", "5f39",
            "5f5f 61", length, "5f 5f 73", target, "5af1",
            "6001 01 61dead 55",
            ":go", "5b", *_delegating(real),
            ":body", body,
        ]
    )  # fmt: skip


def _delegating(real: bytes) -> list[str | bytes]:
    """On to the real code, as if it were here; what it says is said."""
    return [
        "365f5f37", "5f5f365f73", real, "5af4", "3d5f5f3e", "61", ">ok", "57",
        ":fail", "5b", "3d5ffd", ":ok", "5b", "3d5ff3",
    ]  # fmt: skip


def burning(rounds: int, answer: bytes) -> bytes:
    """A contract that turns in a circle, 26 gas each time, then answers four bytes to anything."""
    return assembled(
        [
            "62", rounds.to_bytes(3), ":again", "5b", "6001 90 03 80 61", ">again", "57",
            "63", answer, "60e01b 5f52 60205ff3",
        ]
    )  # fmt: skip
