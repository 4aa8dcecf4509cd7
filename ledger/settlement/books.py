"""The ledger's books, by its line, and the lists of payouts: the real parts of two protocols."""

import os
import pathlib
import secrets
import time
from typing import Any

import msgspec
from nacl.signing import SigningKey

from gristmill.contracts.merkle import digest_of
from gristmill.ledger.payments.line import Line
from gristmill.ledger.settlement.ports import BooksDownError, Stated, UnknownRentalError
from gristmill.store.client import StoreClient
from gristmill.wire import chain
from gristmill.wire.errors import RemoteError
from gristmill.wire.grants import PUBLISHED, Grant, sign_grant

PATIENCE_S = 5.0
GRANT_MS = 60_000
KEPT_MS = 9 * 366 * 86_400_000  #: a list is pinned so long; a store takes ten years at most
OWNER = "payouts"  #: of the pins


class LedgerBooks:
    """``Books`` of a ledger process.

    Args:
        line: to it.
        pool: what the pool is called in the books (wire.chain.pool_of).
        patience_s: for each answer.
    """

    def __init__(self, line: Line, pool: str, patience_s: float = PATIENCE_S) -> None:
        self._line, self._pool, self._patience_s = line, pool, patience_s

    def _ask(self, message: chain.Message, kind: Any) -> Any:
        try:
            return self._line.ask(message, kind, self._patience_s)
        except RemoteError as error:
            if error.code == "UNKNOWN_RENTAL":
                raise UnknownRentalError(error.message) from None
            raise BooksDownError(f"{error.code}: {error.message}") from None

    def state_rental(self, rental: Stated) -> None:
        """See ``Books``."""
        self._ask(chain.StateRental(0, *rental), msgspec.Raw)

    def commit_payouts(self, number: int, funds: int) -> chain.Payout:
        """See ``Books``."""
        payout: chain.Payout = self._ask(
            chain.CommitPayouts(0, self._pool, number, funds), chain.Payout
        )
        return payout

    def last_payout(self) -> chain.Payout:
        """See ``Books``."""
        payout: chain.Payout = self._ask(chain.AskPayout(0, self._pool), chain.Payout)
        return payout

    def leaves(self, number: int) -> list[chain.Leaf]:
        """See ``Books``."""
        found: list[chain.Leaf] = []
        while True:
            after = found[-1].address if found else b""
            page = self._ask(chain.AskLeaves(0, self._pool, number, after), list[chain.Leaf])
            if not page:
                return found
            found += page

    def state_root(
        self, number: int, root: bytes, list_digest: bytes, transaction: bytes, block: int
    ) -> None:
        """See ``Books``."""
        told = chain.StateRoot(0, self._pool, number, root, list_digest, transaction, block)
        self._ask(told, msgspec.Raw)

    def state_claims(self, claimed: int, block: int) -> None:
        """See ``Books``."""
        self._ask(chain.StateClaims(0, self._pool, claimed, block), msgspec.Raw)

    def sums(self) -> chain.ChainBooks:
        """See ``Books``."""
        books: chain.ChainBooks = self._ask(chain.AskChainBooks(0, self._pool), chain.ChainBooks)
        return books


class FolderLists:
    """``Lists`` in a folder: one file for each list, named by its digest, written whole.

    Args:
        folder: made if it is missing; whoever serves it needs to read it only.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder

    def publish(self, body: bytes) -> bytes:
        """See ``Lists``."""
        digest = digest_of(body)
        path = self._folder / f"{digest.hex()}.json"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            beside = path.with_suffix(".part")
            with open(beside, "wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except OSError as error:
            raise BooksDownError(f"{path} cannot be written: {error.strerror}") from None
        return digest


class StoreLists:
    """``Lists`` in a grid's store, for everybody to read by digest, and in a folder besides.

    Args:
        folder: as ``FolderLists``.
        address: of the store.
        key: what the store takes for its publisher's.
    """

    def __init__(self, folder: FolderLists, address: str, key: SigningKey) -> None:
        self._folder, self._key = folder, key
        self._store = StoreClient(address)

    def publish(self, body: bytes) -> bytes:
        """See ``Lists``."""
        digest = self._folder.publish(body)
        now_ms = time.time_ns() // 1_000_000
        nonce = secrets.token_bytes(8)
        asked = Grant(PUBLISHED, "put", digest.hex(), len(body), now_ms + GRANT_MS, nonce)
        grant = sign_grant(asked, self._key)
        try:
            self._store.put_parts(grant, [body], digest.hex())
            self._store.pin(grant, digest.hex(), OWNER, now_ms + KEPT_MS)
        except RemoteError as error:
            raise BooksDownError(f"{error.code}: {error.message}") from None
        return digest
