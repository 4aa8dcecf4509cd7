"""The ledger's tables: what the database itself enforces, whatever our code does.

The statements are SQLite's; ``ledger/postgres.py`` says what PostgreSQL calls the same. Transfers
and entries of outboxes are *chained*: each row has the sha-256 of the chain of the row before and
of its own other columns, so nobody changes, drops or inserts one without changing all that follow.
An entry has the digest of the content that came, which is how contributions are held to the chain.
Every other row of money ends in ``crc``: crc-32 of the MessagePack array of its other columns in
the order of the table, because a database does not notice a flipped bit. Transfers, contributions,
mints and entries are never changed or deleted; accounts and holds only by whoever writes their
transfers, and the audit compares the two.
"""

import hashlib
import zlib
from collections.abc import Sequence
from typing import Any

import msgspec

VERSION = 3  #: of the tables
NO_CHAIN = bytes(32)  #: before the first row

ACCOUNT = "id, name, may_overdraw, debits, credits, debits_pending, credits_pending"
TRANSFER = "number, id, kind, debit, credit, amount, pending, at_ms"
HOLD = "id, ref, tenant, amount, rental, spent, closed_ms, subtasks, failed, cpu_us, wall_us, toll"
CONTRIBUTION = (
    "hold, replica, attempt, first, count, broker, sequence, node, lease_id, subtasks, failed, "
    "wall_us, cpu_us, peak_kib, metering, is_estimated, amount, toll, ended_ms, signature, work, "
    "outcome_digest, signed_wall_us, signed_cpu_us, cpu_second, subtask, gib_second, memory_bytes, "
    "node_class, countersignature, node_transfer, toll_transfer"
)
TALLY = "tenant, node, day, subtasks, failed, cpu_us, wall_us, amount, toll"
MINT = "ref, tenant, amount, transfer"
ENTRY = "broker, sequence, kind, digest, code, message"
OUTBOX = "id, broker, applied, heard_ms"
PUBLIC_KEY = "kind, name, public, from_ms"
EPOCH = (
    "number, closed_ms, receipts, root, previous, transfers, transfer_chain, ranges, public, "
    "signature"
)
EPOCH_RANGE = "epoch, broker, first, last, chain"
CHAINED = ("transfer", "entry")
NEVER_CHANGED = (
    "transfer", "contribution", "mint", "entry", "public_key", "epoch", "epoch_range",
)  # fmt: skip
NEVER_DELETED = (*NEVER_CHANGED, "account", "hold", "outbox")

TABLES = """
CREATE TABLE account(
  id INTEGER PRIMARY KEY,
  name TEXT NOT NULL UNIQUE,
  may_overdraw INTEGER NOT NULL CHECK((may_overdraw = 1) = (name = 'world')),
  debits INTEGER NOT NULL CHECK(debits >= 0),
  credits INTEGER NOT NULL CHECK(credits >= 0),
  debits_pending INTEGER NOT NULL CHECK(debits_pending >= 0),
  credits_pending INTEGER NOT NULL CHECK(credits_pending >= 0),
  crc INTEGER NOT NULL,
  CONSTRAINT no_overdraft CHECK(may_overdraw = 1 OR debits + debits_pending <= credits)
) STRICT;

-- kind: 0 posted, 1 pending, 2 post (of part of a pending one), 3 void or 4 expire (its rest, once)
CREATE TABLE transfer(
  number INTEGER PRIMARY KEY,
  id BLOB NOT NULL UNIQUE CHECK(length(id) = 16),
  kind INTEGER NOT NULL CHECK(kind BETWEEN 0 AND 4),
  debit INTEGER NOT NULL REFERENCES account,
  credit INTEGER NOT NULL REFERENCES account,
  amount INTEGER NOT NULL CHECK(amount > 0 OR amount = 0 AND kind IN (1, 3, 4)),
  pending INTEGER NOT NULL,
  at_ms INTEGER NOT NULL,
  chain BLOB NOT NULL CHECK(length(chain) = 32),
  CHECK(debit <> credit),
  CHECK((kind IN (2, 3, 4)) = (pending > 0))
) STRICT;
CREATE UNIQUE INDEX one_void ON transfer(pending) WHERE kind IN (3, 4);

CREATE TABLE hold(
  id INTEGER PRIMARY KEY REFERENCES transfer,
  ref TEXT NOT NULL UNIQUE,
  tenant TEXT NOT NULL,
  amount INTEGER NOT NULL CHECK(amount >= 0),
  rental TEXT NOT NULL,
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
CREATE INDEX hold_of_rental ON hold(rental) WHERE rental <> '';
CREATE INDEX open_hold ON hold(id) WHERE closed_ms = 0;

-- How far each broker's outbox is applied, when it was heard, and what became of each entry.
CREATE TABLE outbox(
  id INTEGER PRIMARY KEY,
  broker TEXT NOT NULL UNIQUE,
  applied INTEGER NOT NULL,
  heard_ms INTEGER NOT NULL,
  crc INTEGER NOT NULL
) STRICT;

CREATE TABLE contribution(
  hold INTEGER NOT NULL REFERENCES hold,
  replica INTEGER NOT NULL CHECK(replica >= 0),
  attempt INTEGER NOT NULL CHECK(attempt >= 0),
  first INTEGER NOT NULL CHECK(first >= 0),
  count INTEGER NOT NULL CHECK(count > 0),
  broker INTEGER NOT NULL REFERENCES outbox,
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
  work BLOB NOT NULL,
  outcome_digest BLOB NOT NULL,
  signed_wall_us INTEGER NOT NULL,
  signed_cpu_us INTEGER NOT NULL,
  cpu_second INTEGER NOT NULL,
  subtask INTEGER NOT NULL,
  gib_second INTEGER NOT NULL,
  memory_bytes INTEGER NOT NULL,
  node_class TEXT NOT NULL,
  countersignature BLOB NOT NULL,
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

-- kind: 1 hold, 2 release, 3 contribution, 4 key; chain: over the entries of its broker
CREATE TABLE entry(
  broker INTEGER NOT NULL REFERENCES outbox,
  sequence INTEGER NOT NULL,
  kind INTEGER NOT NULL,
  digest BLOB NOT NULL CHECK(length(digest) = 32),
  code TEXT NOT NULL,
  message TEXT NOT NULL,
  chain BLOB NOT NULL CHECK(length(chain) = 32),
  PRIMARY KEY(broker, sequence)
) STRICT, WITHOUT ROWID;

-- Which key speaks for whom; another one for the same name is another row, from later on.
CREATE TABLE public_key(
  kind TEXT NOT NULL CHECK(kind IN ('ledger', 'broker', 'node')),
  name TEXT NOT NULL,
  public TEXT NOT NULL CHECK(length(public) = 64),
  from_ms INTEGER NOT NULL,
  crc INTEGER NOT NULL,
  PRIMARY KEY(kind, name, from_ms)
) STRICT, WITHOUT ROWID;
CREATE INDEX name_of_key ON public_key(public);

-- Closed epochs, and the entries of each outbox that they are about. public: of who signed.
CREATE TABLE epoch(
  number INTEGER PRIMARY KEY,
  closed_ms INTEGER NOT NULL,
  receipts INTEGER NOT NULL CHECK(receipts > 0),
  root BLOB NOT NULL CHECK(length(root) = 32),
  previous BLOB NOT NULL CHECK(length(previous) = 32),
  transfers INTEGER NOT NULL,
  transfer_chain BLOB NOT NULL CHECK(length(transfer_chain) = 32),
  ranges BLOB NOT NULL CHECK(length(ranges) = 32),
  public TEXT NOT NULL,
  signature BLOB NOT NULL CHECK(length(signature) = 64),
  crc INTEGER NOT NULL
) STRICT;
CREATE TABLE epoch_range(
  epoch INTEGER NOT NULL REFERENCES epoch,
  broker INTEGER NOT NULL REFERENCES outbox,
  first INTEGER NOT NULL,
  last INTEGER NOT NULL CHECK(last >= first),
  chain BLOB NOT NULL CHECK(length(chain) = 32),
  crc INTEGER NOT NULL,
  PRIMARY KEY(broker, first)
) STRICT, WITHOUT ROWID;
CREATE INDEX range_of_epoch ON epoch_range(epoch);
"""

TRIGGERS = f"""
CREATE TRIGGER transfer_of_hold BEFORE INSERT ON transfer WHEN NEW.kind IN (2, 3, 4) BEGIN
  SELECT RAISE(ABORT, 'not out of a pending transfer of this account') WHERE NOT EXISTS (
    SELECT 1 FROM transfer AS held
    WHERE held.number = NEW.pending AND held.kind = 1 AND held.debit = NEW.debit);
  SELECT RAISE(ABORT, 'the pending transfer is void') WHERE EXISTS (
    SELECT 1 FROM transfer AS ended WHERE ended.pending = NEW.pending AND ended.kind IN (3, 4));
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
CREATE TRIGGER hold_identity BEFORE UPDATE OF id, ref, tenant, amount, rental ON hold
  BEGIN SELECT RAISE(ABORT, 'a hold keeps its amount'); END;
CREATE TRIGGER hold_closed BEFORE UPDATE ON hold WHEN OLD.closed_ms > 0
  BEGIN SELECT RAISE(ABORT, 'the hold is released'); END;
{
    "".join(
        f'''CREATE TRIGGER {table}_stays BEFORE DELETE ON {table}
  BEGIN SELECT RAISE(ABORT, 'no {table} is ever deleted'); END;
'''
        for table in NEVER_DELETED
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

_encode = msgspec.msgpack.Encoder().encode


def checksum(values: Sequence[Any]) -> int:
    """The ``crc`` of a row: of its other columns, in the order of the table."""
    return zlib.crc32(_encode(values))


def sealed(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """A row with its checksum at the end."""
    return (*values, zlib.crc32(_encode(values)))


def chained(chain: bytes, values: Sequence[Any]) -> bytes:
    """The ``chain`` of a row whose other columns are ``values``, after the row with ``chain``."""
    return hashlib.sha256(chain + _encode(values)).digest()


def insert(table: str, columns: str) -> str:
    """The statement that inserts a sealed or chained row."""
    marks = ", ".join("?" * (columns.count(",") + 2))
    return f"INSERT INTO {table}({columns}, {seal_of(table)}) VALUES({marks})"


def seal_of(table: str) -> str:
    """The last column of a table's rows, by which a changed one is found."""
    return "chain" if table in CHAINED else "crc"
