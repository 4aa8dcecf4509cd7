"""The books: applies what the core decides, in one transaction for each group.

In which database they are is a matter of the classes that derive from this one
(``ledger/sqlite.py``, ``ledger/postgres.py``): there is one writer, and answers leave after COMMIT.
The state in memory is a copy of what is there: when a transaction fails, the copy is thrown away
and read again.
"""

import contextlib
import functools
import itertools
from collections.abc import Container, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from gristmill.ledger import audit, chain_rows, intent_rows, rows, schema
from gristmill.ledger.core import effects as fx
from gristmill.ledger.core.coverage import Coverage
from gristmill.ledger.core.events import (
    Applied,
    CreditsFunded,
    Event,
    OutboxReceived,
    SilenceEnded,
    TransfersAsked,
)
from gristmill.ledger.core.state import ESCROW, Account, Hold, LedgerState
from gristmill.ledger.core.step import step
from gristmill.ledger.engine import Database, GoneError
from gristmill.wire import chain, payments
from gristmill.wire.ledger import Fund, Key, Post, Transfer

Asked = Post | Fund | Transfer | payments.Asked | chain.Said  #: what changes the books


class Book:
    """Books in a database that is open, and nobody else's.

    Attributes:
        state: what the core decides by; empty before ``load``.
        offers: what the treasury sells, by backend; not in the books.
        public: the ledger's key (hex), which agreements are with.
        loss: what is lost or damaged of them, in words; then they must not be written.
        place: where they are, for a person.
    """

    begin = "BEGIN"  #: of a transaction that will write

    def __init__(self, db: Database, place: str) -> None:
        self.db = db
        self.place = place
        self.loss = ""
        self.offers: dict[str, payments.Offer] = {}
        self.public = ""
        self.state = LedgerState()
        self._outbox_ids: dict[str, int] = {}
        self._accounts: dict[int, Account] = {}
        self._transfer_chain = schema.NO_CHAIN
        self._entry_chains: dict[int, bytes] = {}  # of each broker's outbox

    def close(self) -> None:
        """Close them; what is committed is safe without it, too."""
        raise NotImplementedError

    def size(self) -> str:
        """How large they are, for a person."""
        raise NotImplementedError

    def faults(self) -> list[str]:
        """What is not in order in them, in words: the audit, and what was lost."""
        found = audit.audit(self.db, self.check())
        return [self.loss, *found] if self.loss else found

    def check(self) -> Iterable[str]:
        """What the database itself finds wrong with its files, in words."""
        raise NotImplementedError

    def explain(self, error: Exception) -> Exception:
        """An error of the database as one of ``ledger/engine.py``, or as it is."""
        raise NotImplementedError

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
        self._outbox_ids, self._entry_chains = {}, {}
        for id_, broker, applied, heard_ms in list(
            self.db.execute(f"SELECT {schema.OUTBOX} FROM outbox")
        ):
            self._outbox_ids[broker] = id_
            state.applied[broker], state.heard[broker] = applied, heard_ms
            last = "SELECT chain FROM entry WHERE broker = ? AND sequence = ?"
            self._entry_chains[id_] = self._one(last, (id_, applied)) or schema.NO_CHAIN
        state.transfers = self._one("SELECT max(number) FROM transfer") or 0
        last = "SELECT chain FROM transfer WHERE number = ?"
        self._transfer_chain = self._one(last, (state.transfers,)) or schema.NO_CHAIN
        self._accounts = {account.id: account for account in state.accounts.values()}
        for kind, name, public, from_ms in self.db.execute(
            f"SELECT {schema.PUBLIC_KEY} FROM public_key ORDER BY from_ms"
        ):
            state.keys[kind, name] = public, from_ms
        for id_, tenant in self.db.execute(
            "SELECT id, tenant FROM rental WHERE is_closed = 0 AND is_ending = 0"
        ):
            state.rentals.setdefault(tenant, {})[id_.hex()] = None
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
        named = (entry.ref for entry in post.entries if not isinstance(entry, Key))
        refs = dict.fromkeys(named)
        unknown = [ref for ref in refs if ref not in self.state.holds and "\0" not in ref]
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
        if "\0" in ref:
            return None  # not every database can be asked; the core refuses it
        row = self.db.execute("SELECT tenant, amount FROM mint WHERE ref = ?", (ref,)).fetchone()
        return (row[0], row[1]) if row else None

    # ------------------------------------------------------------ writing

    def apply(self, messages: Sequence[Asked], now_ms: int) -> list[list[fx.AnyEffect]]:
        """Apply messages in order, in one transaction; their effects, once they are on disk.

        A message about payments or the chain comes alone: what the books know of it is read
        before it.

        Raises:
            PostponedError, RefusedError, GoneError, or what the database raises: nothing of it
                happened, on disk or in memory.
        """
        brokers = {message.broker: None for message in messages if isinstance(message, Post)}
        return self._commit(messages, brokers, now_ms)

    def expire(self, silence_ms: int, since_ms: int, now_ms: int) -> list[fx.AnyEffect]:
        """Give back what brokers hold that were silent for so long; nobody is before ``since_ms``.

        Raises:
            As ``apply``.
        """
        open_ = {ref.rpartition("/")[0] for ref in self.state.holds}
        heard = self.state.heard
        silent = [b for b in open_ if now_ms - max(heard.get(b, 0), since_ms) > silence_ms]
        if not silent:
            return []
        return self._commit([SilenceEnded(sorted(silent))], (), now_ms)[0]

    def _commit(
        self, asked: Sequence[Asked | Event], brokers: Iterable[str], now_ms: int
    ) -> list[list[fx.AnyEffect]]:
        done: list[list[fx.AnyEffect]] = []
        closed: list[Hold] = []
        with self._transaction():
            for one in asked:
                event = self._event(one, done)
                if isinstance(event, OutboxReceived):
                    closed += event.recalled  # open ones are known
                done.append(step(self.state, event, now_ms))
            closed += self._write(itertools.chain.from_iterable(done), brokers)
        if closed:
            self.state.forget_closed(hold.ref for hold in closed)
        return done

    def insert(self, added: Iterable[tuple[str, str, rows.Row]]) -> None:
        """Insert (table, columns, row), sealed: all or nothing; of what no entry decides.

        Raises:
            As ``apply``.
        """
        with self._transaction():
            for table, columns, row in added:
                self._add(table, columns, [schema.sealed(row)])

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All that is written in it, or nothing, on disk and in memory."""
        is_begun = False
        try:
            self.db.execute(self.begin)
            is_begun = True
            yield
            self.db.execute("COMMIT")
        except BaseException as error:
            told = self.explain(error) if isinstance(error, Exception) else error
            if is_begun and not isinstance(told, GoneError):
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                self.load()
            if told is error:
                raise
            raise told from error

    def _event(self, asked: Asked | Event, group: Sequence[list[fx.AnyEffect]]) -> Event:
        """What a message means to the core, with what the books and this group know of it."""
        match asked:
            case Post():
                return self._recall(asked, group)
            case Fund():
                earlier = self._earlier_mint(asked.ref, group)
                return CreditsFunded(asked.tenant, asked.amount_ucredits, asked.ref, earlier)
            case Transfer():
                return TransfersAsked(asked.legs, self._earlier_transfers(asked, group))
            case chain.Message():
                return chain_rows.event_of(self.db, asked, self.public)
            case payments.Message():
                return intent_rows.event_of(self.db, asked, self.offers)
            case _:
                return asked

    def _earlier_transfers(
        self, asked: Transfer, group: Sequence[list[fx.AnyEffect]]
    ) -> dict[bytes, tuple[str, str, int]]:
        """(debit, credit, amount) of the transfers that have these ids."""
        found: dict[bytes, tuple[str, str, int]] = {}
        names = {account.id: account.name for account in self.state.accounts.values()}
        ids = {leg.id for leg in asked.legs}
        for effect in (effect for effects in group for effect in effects):
            if isinstance(effect, fx.AddTransfer) and effect.id in ids:
                found[effect.id] = names[effect.debit], names[effect.credit], effect.amount
        query = "SELECT debit, credit, amount FROM transfer WHERE id = ?"
        for id_ in ids:
            row = self.db.execute(query, (id_,)).fetchone()
            if row:
                found[id_] = names[row[0]], names[row[1]], row[2]
        return found

    def _write(self, effects: Iterable[fx.AnyEffect], brokers: Iterable[str]) -> Iterable[Hold]:
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
            values = [(*rows.hold_row(hold)[5:], id_) for id_, hold in closed.items()]
            self.db.executemany(_CLOSE_HOLD, values)
        if fx.AddMint in of:
            self._add("mint", schema.MINT, map(rows.mint_row, of[fx.AddMint]))
        if fx.AddKey in of:
            keys = map(schema.sealed, map(msgspec.structs.astuple, of[fx.AddKey]))
            self._add("public_key", schema.PUBLIC_KEY, keys)
        intent_rows.write(self.db, of)
        chain_rows.write(self.db, of)
        for broker in brokers:
            self._write_outbox(broker, of.get(fx.AddEntry, ()))
        return closed.values()

    def _add(self, table: str, columns: str, sealed: Iterable[rows.Row]) -> None:
        rows.insert_all(self.db, table, columns, list(itertools.chain.from_iterable(sealed)))

    def _write_transfers(
        self, effects: Sequence[fx.AddTransfer], opened: Sequence[Account]
    ) -> None:
        """Transfers, and the accounts of them that were not opened just now."""
        moved = rows.transfer_rows(effects, self._transfer_chain)
        self._transfer_chain = moved[-1]
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
        lines = rows.contribution_rows(effects, self._outbox_of, tallies)
        rows.insert_all(self.db, "contribution", schema.CONTRIBUTION, lines)
        drawn = {effect.hold.id: effect.hold for effect in effects}
        left = [rows.hold_row(hold) for id_, hold in drawn.items() if id_ not in closed]
        if left:
            self.db.executemany(_SPEND_HOLD, [(row[5], *row[7:], row[0]) for row in left])
        sums = [(*_tally_key(key), *values) for key, values in tallies.items()]
        self.db.executemany(_ADD_TALLY, sums)

    def _write_outbox(self, broker: str, entries: Sequence[fx.AddEntry]) -> None:
        """What became of this broker's entries, and how far its outbox is applied."""
        if its := [effect for effect in entries if effect.broker == broker]:
            id_ = self._outbox_id(broker)
            flat = rows.entry_rows(id_, its, self._entry_chains.get(id_, schema.NO_CHAIN))
            self._entry_chains[id_] = flat[-1]
            rows.insert_all(self.db, "entry", schema.ENTRY, flat)
        if broker in self._outbox_ids:
            applied, heard_ms = self.state.applied[broker], self.state.heard[broker]
            row = schema.sealed((self._outbox_ids[broker], broker, applied, heard_ms))
            self.db.execute(_SET_OUTBOX, (applied, heard_ms, row[4], row[0], applied))

    def _outbox_of(self, hold: Hold) -> int:
        return self._outbox_id(hold.ref.rpartition("/")[0])

    def _outbox_id(self, broker: str) -> int:
        id_ = self._outbox_ids.get(broker)
        if id_ is None:
            id_ = self._outbox_ids[broker] = len(self._outbox_ids) + 1
            row = schema.sealed((id_, broker, 0, 0))
            self.db.execute(schema.insert("outbox", schema.OUTBOX), row)
        return id_


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
_SET_OUTBOX = "UPDATE outbox SET applied = ?, heard_ms = ?, crc = ? WHERE id = ? AND applied <> ?"
_ADD_TALLY = (
    f"INSERT INTO tally({schema.TALLY}) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT(tenant, day, node) DO UPDATE SET subtasks = tally.subtasks + excluded.subtasks,"
    " failed = tally.failed + excluded.failed, cpu_us = tally.cpu_us + excluded.cpu_us,"
    " wall_us = tally.wall_us + excluded.wall_us, amount = tally.amount + excluded.amount,"
    " toll = tally.toll + excluded.toll"
)


def _tally_key(key: tuple[str, str, int]) -> tuple[str, str, str]:
    return key[0], key[1], _day(key[2])


@functools.lru_cache(maxsize=64)
def _day(day: int) -> str:
    return format_day(day * rows.DAY_MS)


def format_day(ms: int) -> str:
    """The UTC day of a time, ``2026-11-22``."""
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%d")
