"""Rentals and payouts in the books: tables, what enforces them, how they are read and written.

What mirrors the chain is moved by transfers that a row of ``chain_move`` explains, and those rows,
agreements and payees are never changed. A rental only grows; a payout gets its root once.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from gristmill.ledger import schema
from gristmill.ledger.core import chain_records as cr
from gristmill.ledger.core.chain import pool_account, rental_account
from gristmill.ledger.engine import Database
from gristmill.wire import chain as wire
from gristmill.wire.receipts import is_by

AGREEMENT = "spec, tenant, grid, chain_id, contract, provider, number, at_ms"
RENTAL = "id, spec, tenant, locked, paid, returned, short, is_ending, is_closed, block"
MOVE = "transfer, move, subject, pool, number, amount"
PAYEE = "node, pool, address, from_ms, signature"
EARNING = "pool, address, cumulative"
PAYOUT = "pool, number, leaves, total, root, list_digest, transaction_hash, block, at_ms"
MONEY = {
    "agreement": AGREEMENT,
    "rental": RENTAL,
    "chain_move": MOVE,
    "payee": PAYEE,
    "earning": EARNING,
    "payout": PAYOUT,
}
NEVER_CHANGED = ("agreement", "chain_move", "payee")

TABLES = """
CREATE TABLE agreement(
  spec BLOB PRIMARY KEY CHECK(length(spec) = 32),
  tenant TEXT NOT NULL,
  grid TEXT NOT NULL,
  chain_id INTEGER NOT NULL,
  contract BLOB NOT NULL CHECK(length(contract) = 20),
  provider BLOB NOT NULL CHECK(length(provider) = 20),
  number INTEGER NOT NULL,
  at_ms INTEGER NOT NULL,
  crc INTEGER NOT NULL
) STRICT;

-- Escrows as they were stated last; their credits are in the account rental:ID.
CREATE TABLE rental(
  id BLOB PRIMARY KEY CHECK(length(id) = 32),
  spec BLOB NOT NULL REFERENCES agreement,
  tenant TEXT NOT NULL,
  locked INTEGER NOT NULL,
  paid INTEGER NOT NULL CHECK(paid >= 0),
  returned INTEGER NOT NULL CHECK(returned >= 0),
  short INTEGER NOT NULL CHECK(short BETWEEN 0 AND returned),
  is_ending INTEGER NOT NULL CHECK(is_ending IN (0, 1)),
  is_closed INTEGER NOT NULL CHECK(is_closed IN (0, 1)),
  block INTEGER NOT NULL,
  crc INTEGER NOT NULL,
  CHECK(paid + returned <= locked),
  CHECK(is_closed = 0 OR paid + returned = locked)
) STRICT;

-- move: 1 locked, 2 returned, 3 earned, 4 claimed; number: of a block, for 3 of a payout
CREATE TABLE chain_move(
  transfer INTEGER PRIMARY KEY REFERENCES transfer,
  move INTEGER NOT NULL CHECK(move BETWEEN 1 AND 4),
  subject TEXT NOT NULL,
  pool TEXT NOT NULL,
  number INTEGER NOT NULL,
  amount INTEGER NOT NULL CHECK(amount > 0),
  crc INTEGER NOT NULL
) STRICT;
CREATE INDEX move_of_subject ON chain_move(subject, move);
CREATE INDEX move_of_pool ON chain_move(pool, move);

CREATE TABLE payee(
  node TEXT NOT NULL,
  pool TEXT NOT NULL,
  address BLOB NOT NULL CHECK(length(address) = 20),
  from_ms INTEGER NOT NULL,
  signature BLOB NOT NULL CHECK(length(signature) = 64),
  crc INTEGER NOT NULL,
  PRIMARY KEY(pool, node, from_ms)
) STRICT, WITHOUT ROWID;

CREATE TABLE earning(
  pool TEXT NOT NULL,
  address BLOB NOT NULL CHECK(length(address) = 20),
  cumulative INTEGER NOT NULL CHECK(cumulative > 0),
  crc INTEGER NOT NULL,
  PRIMARY KEY(pool, address)
) STRICT, WITHOUT ROWID;

CREATE TABLE payout(
  pool TEXT NOT NULL,
  number INTEGER NOT NULL CHECK(number > 0),
  leaves INTEGER NOT NULL CHECK(leaves > 0),
  total INTEGER NOT NULL CHECK(total > 0),
  root BLOB NOT NULL,
  list_digest BLOB NOT NULL,
  transaction_hash BLOB NOT NULL,
  block INTEGER NOT NULL,
  at_ms INTEGER NOT NULL,
  crc INTEGER NOT NULL,
  PRIMARY KEY(pool, number),
  CHECK((block > 0) = (length(root) = 32)),
  CHECK(length(root) = length(list_digest) AND length(root) = length(transaction_hash))
) STRICT, WITHOUT ROWID;
"""

TRIGGERS = f"""
CREATE TRIGGER rental_grows BEFORE UPDATE ON rental WHEN NEW.id <> OLD.id OR NEW.spec <> OLD.spec
  OR NEW.tenant <> OLD.tenant OR NEW.locked < OLD.locked OR NEW.paid < OLD.paid
  OR NEW.returned < OLD.returned OR NEW.is_ending < OLD.is_ending
  OR NEW.is_closed < OLD.is_closed OR NEW.block < OLD.block
  BEGIN SELECT RAISE(ABORT, 'a rental only grows'); END;
CREATE TRIGGER earning_grows BEFORE UPDATE ON earning WHEN NEW.pool <> OLD.pool
  OR NEW.address <> OLD.address OR NEW.cumulative <= OLD.cumulative
  BEGIN SELECT RAISE(ABORT, 'what was earned only grows'); END;
CREATE TRIGGER payout_root BEFORE UPDATE ON payout WHEN OLD.block > 0 OR NEW.pool <> OLD.pool
  OR NEW.number <> OLD.number OR NEW.leaves <> OLD.leaves OR NEW.total <> OLD.total
  BEGIN SELECT RAISE(ABORT, 'a payout gets its root once'); END;
CREATE TRIGGER chain_moved BEFORE INSERT ON chain_move BEGIN
  SELECT RAISE(ABORT, 'not what its transfer moved') WHERE NOT EXISTS (
    SELECT 1 FROM transfer AS t WHERE t.number = NEW.transfer AND t.kind = 0
      AND t.amount = NEW.amount);
END;
{
    "".join(
        f'''CREATE TRIGGER {table}_stays BEFORE DELETE ON {table}
  BEGIN SELECT RAISE(ABORT, 'no {table} is ever deleted'); END;
'''
        for table in MONEY
    )
}
{
    "".join(
        f'''CREATE TRIGGER {table}_immutable BEFORE UPDATE ON {table}
  BEGIN SELECT RAISE(ABORT, 'no {table} is ever changed'); END;
'''
        for table in NEVER_CHANGED
    )
}
"""

_RENTAL_CHANGES = RENTAL.split(", ")[3:]
_SET_RENTAL = (
    f"UPDATE rental SET {', '.join(f'{name} = ?' for name in _RENTAL_CHANGES)}, crc = ?"
    " WHERE id = ?"
)
_SET_EARNING = "UPDATE earning SET cumulative = ?, crc = ? WHERE pool = ? AND address = ?"
_SET_PAYOUT = (
    "UPDATE payout SET root = ?, list_digest = ?, transaction_hash = ?, block = ?, crc = ?"
    " WHERE pool = ? AND number = ?"
)
_LAST_PAYOUT = (
    "SELECT pool, number, leaves, total, root, list_digest, transaction_hash, block FROM payout"
    " WHERE pool = ? ORDER BY number DESC LIMIT 1"
)
_LATEST_PAYEES = (
    "SELECT node, address FROM payee WHERE pool = ? AND from_ms = (SELECT max(later.from_ms)"
    " FROM payee AS later WHERE later.pool = payee.pool AND later.node = payee.node) ORDER BY node"
)

# ---------------------------------------------------------------- reading


def event_of(db: Database, asked: wire.Said, public: str) -> cr.ChainEvent:
    """What a message means to the core, with what the books know of it.

    ``public``: the key of this ledger (hex), which agreements are with.
    """
    match asked:
        case wire.Agree():
            agreed = msgspec.structs.replace(asked.agreement, grid=asked.agreement.grid or public)
            spec = wire.spec_of(agreed)
            known = _row(db, "SELECT 1 FROM agreement WHERE spec = ?", (spec,))
            return cr.RentalAgreed(agreed, spec, agreed.grid == public, known is not None)
        case wire.StatePayee():
            one = asked.payee
            is_signed = is_by(one.node, wire.payee_bytes(one), asked.signature)
            query = (
                "SELECT node, pool, address, from_ms FROM payee WHERE pool = ? AND node = ?"
                " ORDER BY from_ms DESC LIMIT 1"
            )
            row = _row(db, query, (one.pool, one.node)) if is_signed else None
            before = wire.Payee(*row) if row else None
            return cr.PayeeStated(one, asked.signature, is_signed, before)
        case wire.StateRental():
            row = _row(db, "SELECT tenant FROM agreement WHERE spec = ?", (asked.spec,))
            return cr.RentalStated(
                asked.id,
                asked.spec,
                asked.locked,
                asked.paid,
                asked.returned,
                asked.is_closed,
                asked.block,
                row[0] if row else "",
                _rental(db, asked.id),
            )
        case wire.EndRental():
            spent = spent_of(db, asked.rental)
            return cr.RentalEnded(asked.rental, asked.tenant, _rental(db, asked.rental), spent)
        case wire.CommitPayouts():
            payees = [
                (node, address) for node, address in db.execute(_LATEST_PAYEES, (asked.pool,))
            ]
            query = "SELECT address, cumulative FROM earning WHERE pool = ?"
            sums = {address: sum_ for address, sum_ in db.execute(query, (asked.pool,))}
            last = last_payout(db, asked.pool)
            return cr.PayoutsAsked(asked.pool, asked.number, asked.funds, last, payees, sums)
        case wire.StateRoot():
            query = (
                "SELECT pool, number, leaves, total, root, list_digest, transaction_hash, block"
                " FROM payout WHERE pool = ? AND number = ?"
            )
            row = _row(db, query, (asked.pool, asked.number))
            return cr.RootStated(
                asked.pool,
                asked.number,
                asked.root,
                asked.list_digest,
                asked.transaction,
                asked.block,
                cr.PayoutRow(*row) if row else None,
            )
        case wire.StateClaims():
            known_claims = _claimed(db, asked.pool)
            return cr.ClaimsStated(asked.pool, asked.claimed, asked.block, known_claims)


def _row(db: Database, query: str, values: Sequence[Any] = ()) -> Any:
    return db.execute(query, values).fetchone()


def _sum(db: Database, query: str, values: Sequence[Any] = ()) -> int:
    return int(_row(db, f"SELECT coalesce(sum({query}", values)[0])


def _rental(db: Database, id_: bytes) -> cr.Rental | None:
    row = _row(db, f"SELECT {RENTAL} FROM rental WHERE id = ?", (id_,))
    if row is None:
        return None
    rental = cr.Rental(*row)
    rental.is_ending, rental.is_closed = bool(rental.is_ending), bool(rental.is_closed)
    return rental


def ending_of(db: Database, rental: bytes) -> tuple[str, bool]:
    """(tenant, whether it is ending) of a rental; no tenant where the books have none of it."""
    row = _row(db, "SELECT tenant, is_ending FROM rental WHERE id = ?", (rental,))
    return (row[0], bool(row[1])) if row else ("", False)


def spent_of(db: Database, rental: bytes) -> int:
    """What the jobs of a rental have cost so far."""
    return _sum(db, "spent), 0) FROM hold WHERE rental = ? AND rental <> ''", (rental.hex(),))


def last_payout(db: Database, pool: str) -> cr.PayoutRow | None:
    """The newest payout of a pool."""
    row = _row(db, _LAST_PAYOUT, (pool,))
    return cr.PayoutRow(*row) if row else None


def _claimed(db: Database, pool: str) -> int:
    query = "amount), 0) FROM chain_move WHERE pool = ? AND move = 4"
    return _sum(db, query, (pool,))


def payout_view(row: cr.PayoutRow | None) -> wire.Payout:
    """A payout as it is told; number 0 for none."""
    if row is None:
        return wire.Payout(0, 0, 0)
    return wire.Payout(*msgspec.structs.astuple(row)[1:])


def answer(db: Database, question: wire.Question) -> Any:
    """The body of an answer: ``Payout``, ``ChainBooks``, a list of ``Leaf``, or of bools."""
    if isinstance(question, wire.AskAgreed):
        known = "SELECT 1 FROM agreement WHERE spec = ?"
        specs = question.specs[: wire.SPECS_MAX]
        return [_row(db, known, (spec,)) is not None for spec in specs]
    if "\0" in question.pool:  # not every database can be asked
        return [] if isinstance(question, wire.AskLeaves) else payout_view(None)
    match question:
        case wire.AskPayout():
            return payout_view(last_payout(db, question.pool))
        case wire.AskLeaves():
            return _leaves(db, question)
        case wire.AskChainBooks():
            return books(db, question.pool)


def _leaves(db: Database, question: wire.AskLeaves) -> list[wire.Leaf]:
    """Of the last payout they stand in a table; those of an older one are added up again."""
    address = b""
    if question.node:
        latest = "SELECT address FROM payee WHERE pool = ? AND node = ? ORDER BY from_ms DESC"
        row = _row(db, f"{latest} LIMIT 1", (question.pool, question.node.replace("\0", "")))
        if row is None:
            return []
        address = row[0]
    last = last_payout(db, question.pool)
    if last is not None and question.number not in (0, last.number):
        query = (
            "SELECT subject, sum(amount) FROM chain_move WHERE pool = ? AND move = 3"
            " AND number <= ? AND subject > ?"
        )
        values: list[Any] = [question.pool, question.number, question.after.hex()]
        query += " AND subject = ?" if address else ""
        values += [address.hex()] if address else []
        query += f" GROUP BY subject ORDER BY subject LIMIT {wire.LEAVES_MAX}"
        return [wire.Leaf(bytes.fromhex(row[0]), int(row[1])) for row in db.execute(query, values)]
    query = "SELECT address, cumulative FROM earning WHERE pool = ? AND address > ?"
    values = [question.pool, question.after]
    query += " AND address = ?" if address else ""
    values += [address] if address else []
    query += f" ORDER BY address LIMIT {wire.LEAVES_MAX}"
    return [wire.Leaf(*row) for row in db.execute(query, values)]


def books(db: Database, pool: str) -> wire.ChainBooks:
    """The sums that are held against a chain."""
    rentals, locked, paid, returned, short = _row(
        db,
        "SELECT count(*), coalesce(sum(locked), 0), coalesce(sum(paid), 0),"
        " coalesce(sum(returned), 0), coalesce(sum(short), 0) FROM rental",
    )
    last = last_payout(db, pool)
    return wire.ChainBooks(
        rentals=rentals,
        locked=locked,
        paid=paid,
        returned=returned,
        short=short,
        spent=_sum(db, "spent), 0) FROM hold WHERE rental <> ''"),
        held=_sum(db, "credits - debits), 0) FROM account WHERE name LIKE 'rental:%'"),
        payouts=last.number if last else 0,
        committed=last.total if last else 0,
        claimed=_claimed(db, pool),
    )


# ---------------------------------------------------------------- writing


def write(db: Database, of: Mapping[type[Any], Sequence[Any]]) -> None:
    """Rows of what was decided, after its transfers."""
    for effect in of.get(cr.AddAgreement, ()):
        one = effect.agreement
        _add(db, "agreement", AGREEMENT, effect.spec, one.tenant, one.grid, one.chain_id,
             one.contract, one.provider, one.number, effect.at_ms)  # fmt: skip
    for effect in of.get(cr.AddPayee, ()):
        payee = effect.payee
        _add(db, "payee", PAYEE, *msgspec.structs.astuple(payee), effect.signature)
    for effect in of.get(cr.SetRental, ()):
        rental = msgspec.structs.astuple(effect.rental)
        whole = tuple(int(value) if isinstance(value, bool) else value for value in rental)
        if effect.is_new:
            _add(db, "rental", RENTAL, *whole)
        else:
            db.execute(_SET_RENTAL, (*schema.sealed(whole)[3:], effect.rental.id))
    for effect in of.get(cr.AddMove, ()):
        _add(db, "chain_move", MOVE, effect.transfer, int(effect.move), effect.subject,
             effect.pool, effect.number, effect.amount)  # fmt: skip
    for effect in of.get(cr.SetEarning, ()):
        leaf = effect.pool, effect.address, effect.cumulative
        if effect.is_new:
            _add(db, "earning", EARNING, *leaf)
        else:
            db.execute(_SET_EARNING, (*schema.sealed(leaf)[2:], *leaf[:2]))
    for effect in of.get(cr.AddPayout, ()):
        _add(db, "payout", PAYOUT, *msgspec.structs.astuple(effect.payout), effect.at_ms)
    for effect in of.get(cr.SetPayout, ()):
        payout = effect.payout
        key = (payout.pool, payout.number)
        query = "SELECT at_ms FROM payout WHERE pool = ? AND number = ?"
        (at_ms,) = _row(db, query, key)
        rooted = schema.sealed((*msgspec.structs.astuple(payout), at_ms))
        db.execute(_SET_PAYOUT, (*rooted[4:8], rooted[-1], *key))


def _add(db: Database, table: str, columns: str, *values: Any) -> None:
    db.execute(schema.insert(table, columns), schema.sealed(values))


# ---------------------------------------------------------------- the audit


def faults(db: Database) -> Iterator[str]:
    """What is wrong with rentals and payouts, in words; checksums are the audit's own matter."""
    sums: dict[tuple[int, str, str], int] = {}
    query = (
        "SELECT move, subject, chain_move.pool, chain_move.number, chain_move.amount, t.kind,"
        " t.amount, debit.name, credit.name, chain_move.transfer FROM chain_move"
        " LEFT JOIN transfer AS t ON t.number = chain_move.transfer"
        " LEFT JOIN account AS debit ON debit.id = t.debit"
        " LEFT JOIN account AS credit ON credit.id = t.credit"
    )
    for move, subject, pool, number, amount, kind, moved, debit, credit, transfer in db.execute(
        query
    ):
        wanted = _accounts_of(move, subject, pool)
        is_node = move == cr.Move.EARNED and str(debit).startswith("node:")
        found = ("node:" if is_node else debit, credit)
        if (kind, moved) != (0, amount) or found != wanted:
            yield f"transfer {transfer} is not what the chain is said to have moved"
        key = (move, subject, pool)
        sums[key] = sums.get(key, 0) + amount
        if move == cr.Move.EARNED:
            at = (0, str(number), pool)
            sums[at] = sums.get(at, 0) + amount
    yield from _rental_faults(db, sums)
    yield from _payout_faults(db, sums)


def _accounts_of(move: int, subject: str, pool: str) -> tuple[str, str]:
    """(debit, credit) of a move; of a node ``node:`` alone."""
    return {
        cr.Move.LOCKED: ("world", rental_account(subject)),
        cr.Move.RETURNED: (rental_account(subject), "world"),
        cr.Move.EARNED: ("node:", pool_account(pool)),
        cr.Move.CLAIMED: (pool_account(pool), "world"),
    }[cr.Move(move)]


def _rental_faults(db: Database, sums: Mapping[tuple[int, str, str], int]) -> Iterator[str]:
    query = (
        "SELECT rental.id, locked, returned, short, agreement.tenant, rental.tenant FROM rental"
        " LEFT JOIN agreement ON agreement.spec = rental.spec"
    )
    for id_, locked, returned, short, agreed, tenant in db.execute(query):
        name = id_.hex()
        made = sums.get((1, name, ""), 0), sums.get((2, name, ""), 0)
        if made != (locked, returned - short):
            yield (
                f"rental {name} has {locked} locked and {returned - short} taken back; its "
                f"transfers make {made}"
            )
        if agreed != tenant:
            yield f"rental {name} is of {tenant}, its agreement of {agreed}"


def _payout_faults(db: Database, sums: Mapping[tuple[int, str, str], int]) -> Iterator[str]:
    for pool, address, cumulative in db.execute(f"SELECT {EARNING} FROM earning"):
        made = sums.get((3, address.hex(), pool), 0)
        if made != cumulative:
            yield f"{address.hex()} earned {cumulative} in {pool}; its transfers make {made}"
    last, total = "", 0
    query = "SELECT pool, number, total FROM payout ORDER BY pool, number"
    for pool, number, stated in db.execute(query):
        total = total if pool == last else 0
        last = pool
        total += sums.get((0, str(number), pool), 0)
        if total != stated:
            yield f"payout {number} of {pool} has {stated}; its transfers make {total}"
