"""Round a settlement: contracts deployed on a real chain, clients with vouchers, a real ledger."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import msgspec
from chain_rig import ChainRig
from ledger_rig import LedgerProcess
from nacl.signing import SigningKey

from gristmill.contracts import plan, vouchers
from gristmill.contracts.abi import show_address
from gristmill.contracts.ethereum import Account, keccak
from gristmill.contracts.keys import AccountKey
from gristmill.contracts.rpc import Chain
from gristmill.ledger import chain_rows
from gristmill.ledger.settlement.core.vouchers import Voucher
from gristmill.ledger.sqlite_checks import open_for_reading
from gristmill.wire import chain as wire
from gristmill.wire.ledger import Contribution, Hold, LedgerAnswer, Release

CREDIT = 1_000_000
DAY_S = 86_400
WINDOW_S = 60
NODES = 7
ENTRIES_MAX = 300  #: of one frame
TENANT = "ann"


class Grid:
    """A real ledger's process, a tenant's rentals and jobs in it, and nodes that earn.

    Args:
        ledger: started.
    """

    def __init__(self, ledger: LedgerProcess) -> None:
        self.ledger = ledger
        self.nodes = [SigningKey(bytes([number + 1]) * 32) for number in range(NODES)]
        self._number = self._entry = 0

    def _ask(self, message: Any, kind: Any = Any) -> Any:
        answer = self.ledger.ask(message)
        assert isinstance(answer, LedgerAnswer), answer
        return msgspec.msgpack.decode(answer.body, type=kind)

    def order(self, message: Any) -> None:
        """An operator's message, which must be carried out."""
        self._ask(message)

    def agree(self, market: "Market") -> bytes:
        """The spec of one more agreement of the tenant."""
        self._number += 1
        asked = wire.Agreement(
            "",
            TENANT,
            market.chain.chain_id,
            market.rental.address,
            market.grid.address,
            self._number,
        )
        kept = self._ask(wire.Agree(1, asked), wire.Agreement)
        return wire.spec_of(kept)

    def pay_nodes(self, pool: str) -> None:
        """Each node says where it is paid."""
        for number, key in enumerate(self.nodes):
            payee = wire.Payee(bytes(key.verify_key).hex(), pool, bytes([number + 1]) * 20, 1)
            self._ask(wire.StatePayee(1, payee, wire.sign_payee(payee, key)))

    def work(self, rentals: Sequence[bytes], amount: int) -> None:
        """A job of each rental, of which a node earns its part."""
        entries: list[Any] = []
        for id in rentals:
            self._entry += 1
            ref = f"b/{self._entry}"
            node = bytes(self.nodes[self._entry % NODES].verify_key).hex()
            toll = amount * 300 // 10_000
            entries += [
                Hold(ref, TENANT, amount, id.hex()),
                Contribution(
                    ref, TENANT, node, self._entry, 0, 1, 1, 1, 0, 500, 400, 9_000, "cgroup",
                    False, amount, toll, 1_800_000_000_000,
                ),
                Release(ref),
            ]  # fmt: skip
        for at in range(0, len(entries), ENTRIES_MAX):
            page = entries[at : at + ENTRIES_MAX]
            acked = self.ledger.post(self.ledger.applied() + 1, *page)
            wrong = [verdict for verdict in acked.verdicts if verdict.code]
            assert not wrong, wrong[:3]

    def books(self, pool: str) -> wire.ChainBooks:
        """As the file has them: whoever asks for these over ipc is taken for the settlement."""
        db = open_for_reading(self.ledger.state / "ledger.db")
        try:
            return chain_rows.books(db, pool)
        finally:
            db.close()

    def payout(self, pool: str) -> wire.Payout:
        found: wire.Payout = self._ask(wire.AskPayout(1, pool), wire.Payout)
        return found


class Market:
    """Contracts on a chain, and clients who lock and sign.

    People: 0 deploys and is the settlement (coordinator), 1 client, 2 fee wallet, 3 arbiter,
    4 guardian.
    """

    def __init__(self, rig: ChainRig, folder: pathlib.Path) -> None:
        self.rig = rig
        self.chain = Chain([rig.url])
        self.grid, self.client = rig.people[0], rig.people[1]
        self.fees, self.arbiter, self.guardian = (person.address for person in rig.people[2:5])
        self.file = folder / "deployment.json"
        wanted = plan.Wanted(
            b"",
            self.fees,
            self.arbiter,
            self.guardian,
            self.grid.address,
            WINDOW_S,
            10**15,
            DAY_S,
            DAY_S,
        )
        made = plan.make(self.chain, wanted, self.grid.address, None)
        key = AccountKey(self.grid.secret)
        self.deployment = plan.execute(self.chain, made, key, self.file, None, lambda *_: None)
        self.rental = self.deployment.at("ComputeRental")
        self.pool = self.deployment.at("WorkPool")
        self.token = self.deployment.token_contract()
        self.said(self.client.address, self.token, "mint", self.client.address, 10**15)
        self.said(self.client.address, self.token, "approve", self.rental.address, 10**15)
        self.salts = 0

    def said(self, sender: bytes, contract: Any, function: str, *values: Any) -> str:
        """A transaction of one of anvil's own accounts, which anvil signs."""
        call = contract.interface.encode_call(function, values)
        told = {
            "from": show_address(sender),
            "to": show_address(contract.address),
            "data": f"0x{call.hex()}",
            "gas": hex(500_000),
        }
        return str(self.rig.ask("eth_sendTransaction", told))

    @property
    def pool_name(self) -> str:
        """What the pool is called in the books."""
        return wire.pool_of(self.chain.chain_id, self.pool.address)

    def lock(self, amounts: Sequence[int], grid: Grid | None) -> list[bytes]:
        """Rentals of the client, paid to the pool, that are agreed to in the ledger."""
        now_s = int(self.rig.ask("eth_getBlockByNumber", "latest", False)["timestamp"], 16)
        ids = []
        for amount in amounts:
            self.salts += 1
            salt = self.salts.to_bytes(32)
            spec = grid.agree(self) if grid is not None else keccak(salt)
            deadline_s = now_s + 30 * DAY_S
            values = (salt, self.grid.address, self.pool.address, amount, deadline_s, spec)
            self.said(self.client.address, self.rental, "lock", *values)
            ids.append(vouchers.rental_id(self.client.address, salt))
        return ids

    def voucher(self, id: bytes, cumulative: int, **other: Any) -> Voucher:
        """Signed by the client; ``secret``, ``contract``, ``chain_id``: of somebody else."""
        contract = other.get("contract", self.rental.address)
        chain_id = other.get("chain_id", self.chain.chain_id)
        root = other.get("root", keccak(id))
        asked = vouchers.Voucher(id, cumulative, root)
        secret = other.get("secret", self.client.secret)
        signature = vouchers.sign(asked, chain_id, contract, secret)
        return Voucher(chain_id, contract, id, cumulative, root, signature)

    def redeemed(self) -> dict[bytes, list[int]]:
        """Each rental's figures as ``Paid`` says them, by no code of the settlement."""
        found: dict[bytes, list[int]] = {}
        for event in self.chain.logs(0, self.chain.number(), [self.rental]):
            if event.name == "Paid":
                found.setdefault(event.arguments["id"], []).append(event.arguments["cumulative"])
        return found

    def balances(self) -> dict[str, int]:
        """Of the token, as of now."""
        call = self.chain.call
        return {
            "escrow": call(self.token, "balanceOf", self.rental.address),
            "pool": call(self.token, "balanceOf", self.pool.address),
            "liability": call(self.rental, "totalLiability"),
            "claimed": call(self.pool, "claimedTotal"),
        }

    def keystore(self, folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
        """The grid's key in a keystore that opens at once, and its password."""
        body = Account.encrypt(self.grid.secret, "a password", kdf="pbkdf2", iterations=1)
        path, password = folder / "grid.json", folder / "grid.password"
        path.write_text(json.dumps(body))
        password.write_text("a password\n")
        for secret in (path, password):
            secret.chmod(0o600)
        return path, password
