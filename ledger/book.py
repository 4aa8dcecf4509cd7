"""The ledger's one file: applies what the core decides, in one transaction for each group.

WAL with ``synchronous=FULL``, one connection in the whole machine (a lock file says so); answers
leave after COMMIT. The state in memory is a copy of the file: when a transaction fails, the copy is
thrown away and read again.
"""

import contextlib
import functools
import itertools
import os
import pathlib
import shutil
import time
from collections.abc import Container, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import apsw

from gristmill.ledger import audit, rows, schema
from gristmill.ledger.core import effects as fx
from gristmill.ledger.core.coverage import Coverage
from gristmill.ledger.core.events import Applied, CreditsFunded, OutboxReceived
from gristmill.ledger.core.state import ESCROW, Account, Hold, LedgerState
from gristmill.ledger.core.step import step
from gristmill.wire.errors import RemoteError
from gristmill.wire.ledger import Fund, Post
from gristmill.wire.process import own_folder
from gristmill.wire.units import format_bytes
from gristmill.wire.write_ahead import Mark

CHECKPOINT_PAGES = 1_000  #: of the log, between two checkpoints


class Book:
    """One ledger file, opened for writing.

    Args:
        folder: has ``ledger.db``; made with mode 0700 if it is missing.
        vfs: name of the SQLite VFS, None for the system's own; proofs of durability give theirs.

    Attributes:
        loss: what of its log is lost, or of its list of tables damaged, in words; then the books
            must not be written.

    Raises:
        RemoteError: ``ALREADY_RUNNING`` when another process has it open; ``INVALID_SPEC`` when a
            newer release made it, or it is empty and was not.
        apsw.Error: it cannot be read at all.
    """

    def __init__(self, folder: pathlib.Path, vfs: str | None = None) -> None:
        self.path = folder / "ledger.db"
        self._lock = own_folder(folder, "ledger")
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self.db = apsw.Connection(str(self.path), vfs=vfs)
        # A process that ends after a failure closes its files, too; a log that went by that,
        # without the mark that says so, would look like a loss at the next start.
        self.db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        self._mark = Mark(self._lock, folder / "ledger.db-wal")
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA synchronous=FULL")
        self.db.execute("PRAGMA foreign_keys=ON")
        self.db.execute("PRAGMA cache_size=-65536")
        self.db.set_busy_timeout(5_000)  # a person with a SQLite shell may be reading
        self.loss = self._find_loss()
        self.db.set_wal_hook(self._on_commit)
        try:
            self._make_tables()
        except RemoteError:
            self.db.close()
            os.close(self._lock)
            raise
        self.loss = self.loss or audit.list_fault(self.db)
        self._outbox_ids: dict[str, int] = {}
        self._accounts: dict[int, Account] = {}
        self.state = LedgerState()

    def _make_tables(self) -> None:
        version = self._one("PRAGMA user_version")
        if version == 0:
            # The lock file has a mark since the first commit: these books were not always empty.
            is_new = self._one("PRAGMA page_count") <= 1 and not os.fstat(self._lock).st_size
            if not self.loss and not (is_new and self._one("SELECT 1 FROM sqlite_schema") is None):
                raise RemoteError(
                    "INVALID_SPEC",
                    f"{self.path} is damaged: its first page says that it has no books",
                    f"restore {self.path} from a backup; to begin with empty books, move "
                    f"{self.path.parent} away",
                )
            self.db.execute(f"BEGIN IMMEDIATE; {schema.TABLES} COMMIT;")
        elif version != schema.VERSION:
            raise RemoteError(
                "INVALID_SPEC",
                f"{self.path} is of version {version}; this release reads {schema.VERSION}",
                "start the release that made it",
            )

    def _on_commit(self, connection: apsw.Connection, name: str, frames: int) -> int:
        """Notes how far the log has come; and what SQLite does where there is no hook."""
        self._mark.move(frames)
        if frames >= CHECKPOINT_PAGES:
            with contextlib.suppress(apsw.Error):  # tried again after the next commit
                connection.wal_checkpoint(name, apsw.SQLITE_CHECKPOINT_PASSIVE)
        return apsw.SQLITE_OK

    def _find_loss(self) -> str:
        """What SQLite leaves out of a damaged log without a word, in words; empty for nothing.

        What is found is kept beside the file and found again at each start, until somebody has
        looked at it and removed it: the books without it look like books in order.
        """
        log = self.path.with_name("ledger.db-wal")
        self._one("PRAGMA user_version")  # from here on the log is read
        frames, _ = self.db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
        loss = self._mark.find_loss(max(0, frames))
        if loss is not None and loss.is_certain:
            aside = log.with_name(f"{log.name}.lost-{time.time_ns()}")
            if log.exists():
                shutil.copyfile(log, aside)
            with open(aside.with_name(aside.name + ".txt"), "w") as file:
                file.write(loss.told(log) + "\n")
        for kept in sorted(self.path.parent.glob("ledger.db-wal.lost-*.txt")):
            return f"{kept.read_text().strip()} (remove {kept} to accept that)"
        return ""

    def close(self) -> None:
        """Close the file; what is committed is safe without it too."""
        self._mark.close()
        self.db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
        self.db.close()
        os.close(self._lock)

    def _one(self, query: str, values: Sequence[Any] = ()) -> Any:
        row = self.db.execute(query, values).fetchone()
        return row[0] if row else None

    # ------------------------------------------------------------ reading

    def load(self) -> None:
        """Read the state from the file: accounts, open holds and what they have billed."""
        state = LedgerState()
        for row in self.db.execute(f"SELECT {schema.ACCOUNT} FROM account ORDER BY id"):
            id_, name, may_overdraw, *sides = row
            state.accounts[name] = Account(id_, name, bool(may_overdraw), *sides)
        by_id: dict[int, Hold] = {}
        for row in self.db.execute(
            f"SELECT {schema.HOLD} FROM hold WHERE closed_ms = 0 ORDER BY id"
        ):
            hold = Hold(*row)
            state.holds[hold.ref] = by_id[hold.id] = hold
        for id_, replica, attempt, first, count in self.db.execute(
            "SELECT hold, replica, attempt, first, count FROM contribution WHERE hold IN "
            "(SELECT id FROM hold WHERE closed_ms = 0) ORDER BY hold, replica, attempt, first"
        ):
            billed = by_id[id_].billed.setdefault((replica, attempt), Coverage())
            billed.add(first, first + count)
        self._outbox_ids = {}
        for id_, broker, applied in self.db.execute(f"SELECT {schema.OUTBOX} FROM outbox"):
            self._outbox_ids[broker] = id_
            state.applied[broker] = applied
        state.transfers = self._one("SELECT max(id) FROM transfer") or 0
        self._accounts = {account.id: account for account in state.accounts.values()}
        self.state = state

    def _recall(self, post: Post, group: Sequence[list[fx.AnyEffect]]) -> OutboxReceived:
        """The event of a post, with what the file and this group know about its entries."""
        applied: dict[int, Applied] = {}
        cursor = self.state.applied.get(post.broker, 0)
        if post.first <= cursor:
            query = (
                "SELECT sequence, digest, code, message FROM entry "
                "WHERE broker = ? AND sequence BETWEEN ? AND ?"
            )
            last = min(cursor, post.first + len(post.entries) - 1)
            for sequence, *rest in self.db.execute(
                query, (self._outbox_ids.get(post.broker), post.first, last)
            ):
                applied[sequence] = Applied(*rest)
            for effect in (effect for effects in group for effect in effects):
                if isinstance(effect, fx.AddEntry) and effect.broker == post.broker:
                    applied[effect.sequence] = Applied(effect.digest, effect.code, effect.message)
        unknown = {entry.ref: None for entry in post.entries if entry.ref not in self.state.holds}
        recalled = []
        for ref in unknown:
            row = self.db.execute(
                f"SELECT {schema.HOLD} FROM hold WHERE ref = ?", (ref,)
            ).fetchone()
            if row:
                recalled.append(Hold(*row))
        return OutboxReceived(post.broker, post.first, post.entries, applied, recalled)

    def _earlier_mint(
        self, ref: str, group: Sequence[list[fx.AnyEffect]]
    ) -> tuple[str, int] | None:
        """(tenant, amount) of the funding that has this ref, in this group or in the file."""
        for effect in (effect for effects in group for effect in effects):
            if isinstance(effect, fx.AddMint) and effect.ref == ref:
                return effect.tenant, effect.amount
        row = self.db.execute("SELECT tenant, amount FROM mint WHERE ref = ?", (ref,)).fetchone()
        return (row[0], row[1]) if row else None

    # ------------------------------------------------------------ writing

    def apply(self, messages: Sequence[Post | Fund], now_ms: int) -> list[list[fx.AnyEffect]]:
        """Apply messages in order, in one transaction; their effects, once they are on disk.

        Raises:
            apsw.Error: nothing of it happened, on disk or in memory.
        """
        done: list[list[fx.AnyEffect]] = []
        closed: list[Hold] = []
        self.db.execute("BEGIN IMMEDIATE")
        try:
            for message in messages:
                event: OutboxReceived | CreditsFunded
                if isinstance(message, Post):
                    event = self._recall(message, done)
                    closed += event.recalled  # open ones are known
                else:
                    event = CreditsFunded(
                        message.tenant,
                        message.amount_ucredits,
                        message.ref,
                        self._earlier_mint(message.ref, done),
                    )
                done.append(step(self.state, event, now_ms))
            closed += self._write(itertools.chain.from_iterable(done), messages)
            self.db.execute("COMMIT")
        except BaseException:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
            self.load()
            raise
        if closed:
            self.state.forget_closed(hold.ref for hold in closed)
        return done

    def _write(
        self, effects: Iterable[fx.AnyEffect], messages: Sequence[Post | Fund]
    ) -> Iterable[Hold]:
        """Write what was decided, of which a small group has a few kinds only; the closed holds."""
        of: dict[type[fx.AnyEffect], list[Any]] = {}
        for effect in effects:
            of.setdefault(type(effect), []).append(effect)
        opened: list[Account] = []
        if fx.OpenAccount in of:
            opened = [effect.account for effect in of[fx.OpenAccount]]
            self._accounts.update({account.id: account for account in opened})
            self._add("account", schema.ACCOUNT, map(rows.account_row, opened))
        if fx.AddTransfer in of:
            self._write_transfers(of[fx.AddTransfer], opened)
        if fx.OpenHold in of:
            # It is inserted as it opened; contributions need an open one to refer to.
            holds = (rows.opened_row(effect.hold) for effect in of[fx.OpenHold])
            self._add("hold", schema.HOLD, holds)
        closed = {effect.hold.id: effect.hold for effect in of.get(fx.CloseHold, ())}
        if fx.AddContribution in of:
            self._write_contributions(of[fx.AddContribution], closed)
        if closed:
            values = [(*rows.hold_row(hold)[4:], id_) for id_, hold in closed.items()]
            self.db.executemany(_CLOSE_HOLD, values)
        if fx.AddMint in of:
            self._add("mint", schema.MINT, map(rows.mint_row, of[fx.AddMint]))
        for broker in {m.broker: None for m in messages if isinstance(m, Post)}:
            self._write_outbox(broker, of.get(fx.AddEntry, ()))
        return closed.values()

    def _add(self, table: str, columns: str, sealed: Iterable[rows.Row]) -> None:
        rows.insert_all(self.db, table, columns, list(itertools.chain.from_iterable(sealed)))

    def _write_transfers(
        self, effects: Sequence[fx.AddTransfer], opened: Sequence[Account]
    ) -> None:
        """Transfers, and the accounts of them that were not opened just now."""
        moved = rows.transfer_rows(effects)
        touched = rows.accounts_of(moved)
        if rows.is_any_pending(moved):  # it lowers what is pending
            touched[self.state.accounts[ESCROW].id] = None
        for account in opened:
            touched.pop(account.id, None)
        changed = map(self._accounts.__getitem__, touched)
        self.db.executemany(
            _SET_ACCOUNT, [(*row[3:], row[0]) for row in map(rows.account_row, changed)]
        )
        rows.insert_all(self.db, "transfer", schema.TRANSFER, moved)

    def _write_contributions(
        self, effects: Sequence[fx.AddContribution], closed: Container[int]
    ) -> None:
        """Contributions, what they drew from holds that stay open, and their sums."""
        tallies: rows.Tallies = {}
        lines = rows.contribution_rows(effects, tallies)
        rows.insert_all(self.db, "contribution", schema.CONTRIBUTION, lines)
        drawn = {effect.hold.id: effect.hold for effect in effects}
        left = [rows.hold_row(hold) for id_, hold in drawn.items() if id_ not in closed]
        if left:
            self.db.executemany(_SPEND_HOLD, [(row[4], *row[6:], row[0]) for row in left])
        sums = [(*_tally_key(key), *values) for key, values in tallies.items()]
        self.db.executemany(_ADD_TALLY, sums)

    def _write_outbox(self, broker: str, entries: Sequence[fx.AddEntry]) -> None:
        """What became of this broker's entries, and how far its outbox is applied."""
        if its := [effect for effect in entries if effect.broker == broker]:
            flat = rows.entry_rows(self._outbox_id(broker), its)
            rows.insert_all(self.db, "entry", schema.ENTRY, flat)
        if broker in self._outbox_ids:
            applied = self.state.applied[broker]
            row = schema.sealed((self._outbox_ids[broker], broker, applied))
            self.db.execute(_SET_OUTBOX, (applied, row[3], row[0], applied))

    def _outbox_id(self, broker: str) -> int:
        id_ = self._outbox_ids.get(broker)
        if id_ is None:
            id_ = self._outbox_ids[broker] = len(self._outbox_ids) + 1
            self.db.execute(schema.insert("outbox", schema.OUTBOX), schema.sealed((id_, broker, 0)))
        return id_

    # ------------------------------------------------------------ room

    def size(self) -> str:
        """Bytes of the file and its log, for a person."""
        sizes = 0
        for name in (self.path, self.path.with_name("ledger.db-wal")):
            with contextlib.suppress(FileNotFoundError):
                sizes += name.stat().st_size
        return format_bytes(sizes)


# ---------------------------------------------------------------- statements

_SET_ACCOUNT = (
    "UPDATE account SET debits = ?, credits = ?, debits_pending = ?, credits_pending = ?,"
    " crc = ? WHERE id = ?"
)
_SPEND_HOLD = (  # without closed_ms, which has an index
    "UPDATE hold SET spent = ?, subtasks = ?, failed = ?, cpu_us = ?, wall_us = ?, toll = ?,"
    " crc = ? WHERE id = ?"
)
_CLOSE_HOLD = (
    "UPDATE hold SET spent = ?, closed_ms = ?, subtasks = ?, failed = ?, cpu_us = ?,"
    " wall_us = ?, toll = ?, crc = ? WHERE id = ?"
)
_SET_OUTBOX = "UPDATE outbox SET applied = ?, crc = ? WHERE id = ? AND applied <> ?"
_ADD_TALLY = (
    f"INSERT INTO tally({schema.TALLY}) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT DO UPDATE SET subtasks = subtasks + excluded.subtasks,"
    " failed = failed + excluded.failed, cpu_us = cpu_us + excluded.cpu_us,"
    " wall_us = wall_us + excluded.wall_us, amount = amount + excluded.amount,"
    " toll = toll + excluded.toll"
)


def _tally_key(key: tuple[str, str, int]) -> tuple[str, str, str]:
    return key[0], key[1], _day(key[2])


@functools.lru_cache(maxsize=64)
def _day(day: int) -> str:
    return format_day(day * rows.DAY_MS)


def format_day(ms: int) -> str:
    """The UTC day of a time, ``2026-11-22``."""
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%d")
