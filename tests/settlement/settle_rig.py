"""A settlement on a real chain: contracts deployed on anvil, clients with vouchers, a ledger.

``Ledger`` keeps books in memory with the semantics of wire/chain.py: it is told states, moves the
difference, and refuses what goes back. It is asked directly or, as a process is, by its socket.
"""

import json
import pathlib
import threading
from collections.abc import Sequence
from typing import Any

import msgspec
import zmq
from chain_rig import ChainRig

from gristmill.contracts import deployment, plan, vouchers
from gristmill.contracts.abi import interface_of, show_address
from gristmill.contracts.ethereum import Account, keccak
from gristmill.contracts.keys import AccountKey
from gristmill.contracts.rpc import Chain
from gristmill.ledger.settlement.core.vouchers import Voucher
from gristmill.ledger.settlement.ports import Stated, UnknownRentalError
from gristmill.wire import chain as wire
from gristmill.wire.ledger import LedgerAnswer, LedgerRefused

CREDIT = 1_000_000
DAY_S = 86_400
WINDOW_S = 60
WORKERS = 7


class Ledger:
    """See the module's text. ``agreed``: specs of agreements; everything is refused for others."""

    def __init__(self) -> None:
        self.agreed: dict[bytes, None] = {}
        self.rentals: dict[bytes, Stated] = {}
        self.payouts: dict[int, wire.Payout] = {}
        self.claimed = 0
        self.moved = 0  # transfers: each a difference
        self.lock = threading.Lock()

    def state_rental(self, rental: Stated) -> None:
        with self.lock:
            if rental.spec not in self.agreed:
                raise UnknownRentalError(rental.spec.hex())
            before = self.rentals.get(rental.id, Stated(rental.id, rental.spec, 0, 0, 0, False, 0))
            for name in ("locked", "paid", "returned"):
                was, now = getattr(before, name), getattr(rental, name)
                assert now >= was, f"{name} of 0x{rental.id.hex()} fell from {was} to {now}"
                self.moved += now > was
            self.rentals[rental.id] = rental

    def commit_payouts(self, number: int, funds: int) -> wire.Payout:
        """Workers have earned all of the pool's funds, in parts that differ."""
        with self.lock:
            if number not in self.payouts:
                assert number == len(self.payouts) + 1, number
                parts = [funds * (one + 1) // 28 for one in range(WORKERS)]
                parts[-1] += funds - sum(parts)
                leaves = [
                    wire.Leaf(bytes([one + 1]) * 20, part) for one, part in enumerate(parts) if part
                ]
                self.payouts[number] = wire.Payout(number, funds, leaves)
            return self.payouts[number]

    def state_root(
        self, number: int, root: bytes, list_digest: bytes, transaction: bytes, block: int
    ) -> None:
        with self.lock:
            payout = self.payouts[number]
            told = {"root": root, "list_digest": list_digest, "transaction": transaction}
            self.payouts[number] = msgspec.structs.replace(payout, block=block, **told)

    def state_claims(self, claimed: int, block: int) -> None:
        with self.lock:
            assert claimed >= self.claimed
            self.claimed = claimed

    def sums(self) -> wire.ChainBooks:
        with self.lock:
            rentals = self.rentals.values()
            locked, paid = sum(one.locked for one in rentals), sum(one.paid for one in rentals)
            returned = sum(one.returned for one in rentals)
            done = [payout for payout in self.payouts.values() if payout.root]
            return wire.ChainBooks(
                locked,
                paid,
                returned,
                locked - paid - returned,
                max((payout.total for payout in done), default=0),
                self.claimed,
                len(done),
            )

    def answer(self, asked: Any) -> Any:
        """What a ledger's process answers."""
        match asked:
            case wire.StateRental():
                fields = [getattr(asked, name) for name in Stated._fields]
                return self.state_rental(Stated(*fields))
            case wire.CommitPayouts():
                return self.commit_payouts(asked.number, asked.funds)
            case wire.StateRoot():
                return self.state_root(
                    asked.number, asked.root, asked.list_digest, asked.transaction, asked.block
                )
            case wire.StateClaims():
                return self.state_claims(asked.claimed, asked.block)
            case wire.AskChainBooks():
                return self.sums()
        raise AssertionError(asked)


class LedgerServer:
    """The same over the ledger's own dialogue, for a settlement that is a process."""

    def __init__(self, ledger: Ledger, address: str) -> None:
        self._ledger, self.address = ledger, address
        self._context = zmq.Context()
        self._stop = threading.Event()
        self.failed = ""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        router: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, 0)
        router.bind(self.address)
        decode = msgspec.msgpack.Decoder(wire.Asked).decode
        encode = msgspec.msgpack.Encoder().encode
        while not self._stop.is_set():
            if not router.poll(100):
                continue
            who, frame = router.recv_multipart()
            asked = decode(frame)
            try:
                body = msgspec.Raw(encode(self._ledger.answer(asked)))
                answer: Any = LedgerAnswer(asked.request, body)
            except UnknownRentalError as error:
                answer = LedgerRefused(asked.request, "UNKNOWN_RENTAL", str(error))
            except AssertionError as error:
                self.failed = self.failed or str(error)
                answer = LedgerRefused(asked.request, "INTERNAL", str(error))
            router.send_multipart([who, encode(answer)])
        router.close(0)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._context.term()


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
        self._said(self.client.address, self.token, "mint", self.client.address, 10**15)
        self._said(self.client.address, self.token, "approve", self.rental.address, 10**15)
        self.salts = 0

    def _said(self, sender: bytes, contract: Any, function: str, *values: Any) -> str:
        """A transaction of one of anvil's own accounts, which anvil signs."""
        call = contract.interface.encode_call(function, values)
        told = {
            "from": show_address(sender),
            "to": show_address(contract.address),
            "data": f"0x{call.hex()}",
            "gas": hex(500_000),
        }
        return str(self.rig.ask("eth_sendTransaction", told))

    def lock(self, amounts: Sequence[int], ledger: Ledger, deadline_s: int = 30 * DAY_S) -> list[bytes]:
        """Rentals of the client, paid to the pool, that are agreed to in the ledger."""
        now_s = int(self.rig.ask("eth_getBlockByNumber", "latest", False)["timestamp"], 16)
        ids = []
        for amount in amounts:
            self.salts += 1
            salt = self.salts.to_bytes(32)
            spec = keccak(salt)
            ledger.agreed[spec] = None
            values = (salt, self.grid.address, self.pool.address, amount, now_s + deadline_s, spec)
            self._said(self.client.address, self.rental, "lock", *values)
            ids.append(vouchers.rental_id(self.client.address, salt))
        return ids

    def voucher(self, id: bytes, cumulative: int, **other: Any) -> Voucher:
        """Signed by the client; ``secret``, ``contract``, ``chain_id``: of somebody else."""
        contract = other.get("contract", self.rental.address)
        chain_id = other.get("chain_id", self.chain.chain_id)
        root = keccak(id)
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


def events_known() -> list[str]:
    """Events of the two contracts, of which the mirror must know those that move money."""
    return sorted(
        entry["name"]
        for name in ("ComputeRental", "WorkPool")
        for entry in interface_of(name)._events.values()
    )
