"""The ledger's tables: what SQLite itself enforces, whatever our code does.

Every row of money ends in ``crc``: crc-32 of the MessagePack array of its other columns in the
order of the table, because SQLite does not notice a flipped bit. Transfers, contributions, mints
and entries are never changed or deleted; accounts and holds only by whoever writes their
transfers, and the audit compares the two.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import msgspec

VERSION = 1  #: PRAGMA user_version

ACCOUNT = "id, name, may_overdraw, debits, credits, debits_pending, credits_pending"
TRANSFER = "id, kind, debit, credit, amount, pending, at_ms"
HOLD = "id, ref, tenant, amount, spent, closed_ms, subtasks, failed, cpu_us, wall_us, toll"
CONTRIBUTION = (
    "hold, replica, attempt, first, count, sequence, node, lease_id, subtasks, failed, wall_us, "
    "cpu_us, peak_kib, metering, is_estimated, amount, toll, ended_ms, signature, node_transfer, "
    "toll_transfer"
)
TALLY = "tenant, node, day, subtasks, failed, cpu_us, wall_us, amount, toll"
MINT = "ref, tenant, amount, transfer"
ENTRY = "broker, sequence, digest, code, message"
OUTBOX = "id, broker, applied"

TABLES = f"""
CREATE TABLE account(
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  may_overdraw INTEGER NOT NULL CHECK(may_overdraw = (name = 'world')),
  debits INTEGER NOT NULL CHECK(debits >= 0),
  credits INTEGER NOT NULL CHECK(credits >= 0),
  debits_pending INTEGER NOT NULL CHECK(debits_pending >= 0),
  credits_pending INTEGER NOT NULL CHECK(credits_pending >= 0),
  crc INTEGER NOT NULL,
  CONSTRAINT no_overdraft CHECK(may_overdraw OR debits + debits_pending <= credits)
) STRICT;

-- kind: 0 posted, 1 pending, 2 post (of part of a pending one), 3 void (of its rest, once)
CREATE TABLE transfer(
  id INTEGER PRIMARY KEY,
  kind INTEGER NOT NULL CHECK(kind BETWEEN 0 AND 3),
  debit INTEGER NOT NULL REFERENCES account,
  credit INTEGER NOT NULL REFERENCES account,
  amount INTEGER NOT NULL CHECK(amount > 0 OR amount = 0 AND kind IN (1, 3)),
  pending INTEGER NOT NULL,
  at_ms INTEGER NOT NULL,
  crc INTEGER NOT NULL,
  CHECK(debit <> credit),
  CHECK((kind IN (2, 3)) = (pending > 0))
) STRICT;
CREATE UNIQUE INDEX one_void ON transfer(pending) WHERE kind = 3;

CREATE TABLE hold(
  id INTEGER PRIMARY KEY REFERENCES transfer,
  ref TEXT NOT NULL UNIQUE,
  tenant TEXT NOT NULL,
  amount INTEGER NOT NULL CHECK(amount >= 0),
  spent INTEGER NOT NULL CHECK(spent BETWEEN 0 AND amount),
  closed_ms INTEGER NOT NULL CHECK(closed_ms >= 0),
  subtasks INTEGER NOT NULL,
  failed INTEGER NOT NULL,
  cpu_us INTEGER NOT NULL,
  wall_us INTEGER NOT NULL,
  toll INTEGER NOT NULL CHECK(toll BETWEEN 0 AND spent),
  crc INTEGER NOT NULL
) STRICT;
CREATE INDEX hold_of_tenant ON hold(tenant, id);
CREATE INDEX open_hold ON hold(id) WHERE closed_ms = 0;

CREATE TABLE contribution(
  hold INTEGER NOT NULL REFERENCES hold,
  replica INTEGER NOT NULL CHECK(replica >= 0),
  attempt INTEGER NOT NULL CHECK(attempt >= 0),
  first INTEGER NOT NULL CHECK(first >= 0),
  count INTEGER NOT NULL CHECK(count > 0),
  sequence INTEGER NOT NULL,
  node TEXT NOT NULL,
  lease_id INTEGER NOT NULL,
  subtasks INTEGER NOT NULL,
  failed INTEGER NOT NULL,
  wall_us INTEGER NOT NULL,
  cpu_us INTEGER NOT NULL,
  peak_kib INTEGER NOT NULL,
  metering TEXT NOT NULL,
  is_estimated INTEGER NOT NULL,
  amount INTEGER NOT NULL CHECK(amount >= 0),
  toll INTEGER NOT NULL CHECK(toll BETWEEN 0 AND amount),
  ended_ms INTEGER NOT NULL,
  signature BLOB NOT NULL,
  node_transfer INTEGER NOT NULL,
  toll_transfer INTEGER NOT NULL,
  crc INTEGER NOT NULL,
  PRIMARY KEY(hold, replica, attempt, first)
) STRICT, WITHOUT ROWID;

-- Sums for bills by node and by day; made from contributions, compared with them by the audit.
CREATE TABLE tally(
  tenant TEXT NOT NULL,
  node TEXT NOT NULL,
  day TEXT NOT NULL,
  subtasks INTEGER NOT NULL,
  failed INTEGER NOT NULL,
  cpu_us INTEGER NOT NULL,
  wall_us INTEGER NOT NULL,
  amount INTEGER NOT NULL,
  toll INTEGER NOT NULL,
  PRIMARY KEY(tenant, day, node)
) STRICT, WITHOUT ROWID;

CREATE TABLE mint(
  ref TEXT PRIMARY KEY,
  tenant TEXT NOT NULL,
  amount INTEGER NOT NULL CHECK(amount > 0),
  transfer INTEGER NOT NULL REFERENCES transfer,
  crc INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- How far each broker's outbox is applied, and what became of each entry.
CREATE TABLE outbox(
  id INTEGER PRIMARY KEY,
  broker TEXT NOT NULL UNIQUE,
  applied INTEGER NOT NULL,
  crc INTEGER NOT NULL
) STRICT;
CREATE TABLE entry(
  broker INTEGER NOT NULL REFERENCES outbox,
  sequence INTEGER NOT NULL,
  digest BLOB NOT NULL CHECK(length(digest) = 16),
  code TEXT NOT NULL,
  message TEXT NOT NULL,
  crc INTEGER NOT NULL,
  PRIMARY KEY(broker, sequence)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER transfer_of_hold BEFORE INSERT ON transfer WHEN NEW.kind IN (2, 3) BEGIN
  SELECT RAISE(ABORT, 'not out of a pending transfer of this account') WHERE NOT EXISTS (
    SELECT 1 FROM transfer AS held
    WHERE held.id = NEW.pending AND held.kind = 1 AND held.debit = NEW.debit);
  SELECT RAISE(ABORT, 'the pending transfer is void') WHERE EXISTS (
    SELECT 1 FROM transfer AS ended WHERE ended.pending = NEW.pending AND ended.kind = 3);
END;
CREATE TRIGGER contribution_overlap BEFORE INSERT ON contribution BEGIN
  SELECT RAISE(ABORT, 'overlaps what is billed') WHERE NEW.first < (
    SELECT before.first + before.count FROM contribution AS before
    WHERE before.hold = NEW.hold AND before.replica = NEW.replica
      AND before.attempt = NEW.attempt AND before.first < NEW.first + NEW.count
    ORDER BY before.first DESC LIMIT 1);
  SELECT RAISE(ABORT, 'the hold is released') WHERE EXISTS (
    SELECT 1 FROM hold WHERE id = NEW.hold AND closed_ms > 0);
END;
CREATE TRIGGER account_identity BEFORE UPDATE OF id, name, may_overdraw ON account
  BEGIN SELECT RAISE(ABORT, 'an account keeps its name'); END;
CREATE TRIGGER hold_identity BEFORE UPDATE OF id, ref, tenant, amount ON hold
  BEGIN SELECT RAISE(ABORT, 'a hold keeps its amount'); END;
CREATE TRIGGER hold_closed BEFORE UPDATE ON hold WHEN OLD.closed_ms > 0
  BEGIN SELECT RAISE(ABORT, 'the hold is released'); END;
{
    "".join(
        f'''CREATE TRIGGER {table}_stays BEFORE DELETE ON {table}
  BEGIN SELECT RAISE(ABORT, 'no {table} is ever deleted'); END;
'''
        for table in ("account", "transfer", "hold", "contribution", "mint", "entry", "outbox")
    )
}
{
    "".join(
        f'''CREATE TRIGGER {table}_immutable BEFORE UPDATE ON {table}
  BEGIN SELECT RAISE(ABORT, 'no {table} is ever changed'); END;
'''
        for table in ("transfer", "contribution", "mint", "entry")
    )
}
PRAGMA user_version = {VERSION};
"""

_encode = msgspec.msgpack.Encoder().encode


def checksum(values: Sequence[Any]) -> int:
    """The ``crc`` of a row: of its other columns, in the order of the table."""
    return zlib.crc32(_encode(values))


def sealed(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """A row with its checksum at the end."""
    return (*values, zlib.crc32(_encode(values)))


def insert(table: str, columns: str) -> str:
    """The statement that inserts a sealed row."""
    marks = ", ".join("?" * (columns.count(",") + 2))
    return f"INSERT INTO {table}({columns}, crc) VALUES({marks})"
