"""The ledger's books, by its line, and the lists of payouts: the real parts of two protocols."""

import os
import pathlib
from typing import Any

import msgspec

from gristmill.contracts.merkle import digest_of
from gristmill.ledger.payments.line import Line
from gristmill.ledger.settlement.ports import BooksDownError, Stated, UnknownRentalError
from gristmill.wire import chain
from gristmill.wire.errors import RemoteError

PATIENCE_S = 5.0


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
