"""Payment intents in the books: their tables, what enforces them, how they are read and written.

``intent`` is a state machine that the tables hold to by themselves: it begins as ``created``, ends
once, and an ended one never changes. ``payment`` and ``observation`` are never changed at all. A
payment is there once (its id is the key), with the one transfer that minted it.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from gristmill.ledger import schema
from gristmill.ledger.core import intent_records as ir
from gristmill.ledger.core.intents import REVIEW, confirmed_id, mint_id
from gristmill.ledger.engine import Database
from gristmill.wire.payments import (
    Asked,
    AskIntents,
    CancelIntent,
    ConfirmIntent,
    CreateIntent,
    DecideIntent,
    IntentView,
    Observe,
    Offer,
    PaymentRow,
    ReportInvoice,
    credited_of,
)

ANSWER_BYTES_MAX = 48 << 10  #: of intents; the whole header may have 64 KiB
PAYMENTS_SHOWN_MAX = 20  #: of one intent

_KEPT = "number, id, tenant, key, backend, unit, amount, price, fee, follows, created_ms"
_CHANGED = (
    "backend_id, reference, expires_ms, state, is_cancelling, received, credited, review, "
    "decision, ended_ms, watched_ms"
)
INTENT = f"{_KEPT}, {_CHANGED}"
PAYMENT = "id, intent, backend_id, amount, credited, account, transfer, at_ms, proof"
OBSERVATION = "digest, backend, backend_id, intent, state, source, raw, at_ms, verdict"
MONEY = {"intent": INTENT, "payment": PAYMENT, "observation": OBSERVATION}

TABLES = """
CREATE TABLE intent(
  number INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  tenant TEXT NOT NULL,
  key TEXT NOT NULL,
  backend TEXT NOT NULL,
  unit TEXT NOT NULL,
  amount INTEGER NOT NULL CHECK(amount > 0),
  price INTEGER NOT NULL CHECK(price > 0),
  fee INTEGER NOT NULL CHECK(fee >= 0),
  follows TEXT NOT NULL,
  created_ms INTEGER NOT NULL,
  backend_id TEXT NOT NULL,
  reference TEXT NOT NULL,
  expires_ms INTEGER NOT NULL,
  state TEXT NOT NULL CHECK(state IN ('created', 'settled', 'expired', 'cancelled', 'refunded')),
  is_cancelling INTEGER NOT NULL CHECK(is_cancelling IN (0, 1)),
  received INTEGER NOT NULL CHECK(received >= 0),
  credited INTEGER NOT NULL CHECK(credited >= 0),
  review INTEGER NOT NULL CHECK(review >= 0),
  decision TEXT NOT NULL,
  ended_ms INTEGER NOT NULL,
  watched_ms INTEGER NOT NULL,
  crc INTEGER NOT NULL,
  UNIQUE(tenant, key),
  CHECK((state = 'created') = (ended_ms = 0)),
  CHECK((backend_id = '') = (reference = '')),
  CHECK(review = 0 OR state = 'created'),
  CHECK(credited = 0 OR state = 'settled'),
  CHECK(received = 0 OR state IN ('created', 'settled', 'refunded')),
  CHECK(received > 0 OR state IN ('created', 'expired', 'cancelled'))
) STRICT;
CREATE UNIQUE INDEX one_invoice ON intent(backend, backend_id) WHERE backend_id <> '';
CREATE INDEX intent_of_tenant ON intent(tenant, number);
CREATE INDEX open_intent ON intent(number) WHERE state = 'created';

CREATE TABLE payment(
  id TEXT PRIMARY KEY,
  intent TEXT NOT NULL REFERENCES intent(id),
  backend_id TEXT NOT NULL,
  amount INTEGER NOT NULL CHECK(amount > 0),
  credited INTEGER NOT NULL CHECK(credited >= 0),
  account TEXT NOT NULL,
  transfer INTEGER NOT NULL,
  at_ms INTEGER NOT NULL,
  proof BLOB NOT NULL,
  crc INTEGER NOT NULL,
  CHECK((transfer = 0) = (credited = 0))
) STRICT;
CREATE UNIQUE INDEX one_mint ON payment(transfer) WHERE transfer > 0;
CREATE INDEX payment_of_intent ON payment(intent);

-- What backends and operators said, as it came: callbacks with their bodies, look-ups.
CREATE TABLE observation(
  digest BLOB PRIMARY KEY CHECK(length(digest) = 32),
  backend TEXT NOT NULL,
  backend_id TEXT NOT NULL,
  intent TEXT NOT NULL,
  state TEXT NOT NULL,
  source TEXT NOT NULL,
  raw BLOB NOT NULL,
  at_ms INTEGER NOT NULL,
  verdict TEXT NOT NULL,
  crc INTEGER NOT NULL
) STRICT;
CREATE INDEX observation_of_intent ON observation(intent);
"""

TRIGGERS = f"""
CREATE TRIGGER intent_begins BEFORE INSERT ON intent WHEN NEW.state <> 'created'
  BEGIN SELECT RAISE(ABORT, 'an intent begins as created'); END;
CREATE TRIGGER intent_ended BEFORE UPDATE ON intent WHEN OLD.state <> 'created'
  BEGIN SELECT RAISE(ABORT, 'an intent that ended never changes'); END;
CREATE TRIGGER intent_identity BEFORE UPDATE OF {_KEPT} ON intent
  BEGIN SELECT RAISE(ABORT, 'an intent keeps its price'); END;
CREATE TRIGGER intent_reference BEFORE UPDATE ON intent
  WHEN OLD.backend_id <> '' AND (OLD.backend_id <> NEW.backend_id
    OR OLD.reference <> NEW.reference OR OLD.expires_ms <> NEW.expires_ms)
  BEGIN SELECT RAISE(ABORT, 'an intent keeps its reference'); END;
CREATE TRIGGER intent_received BEFORE UPDATE ON intent BEGIN
  SELECT RAISE(ABORT, 'received is not what its payments are') WHERE NEW.received <> (
    SELECT coalesce(sum(amount), 0) FROM payment WHERE intent = NEW.id);
END;
CREATE TRIGGER payment_minted BEFORE INSERT ON payment WHEN NEW.transfer > 0 BEGIN
  SELECT RAISE(ABORT, 'not what its transfer minted') WHERE NOT EXISTS (
    SELECT 1 FROM transfer AS t JOIN account AS a ON a.id = t.credit
    JOIN account AS w ON w.id = t.debit
    WHERE t.number = NEW.transfer AND t.kind = 0 AND t.amount = NEW.credited
      AND a.name = NEW.account AND w.name = 'world');
END;
CREATE TRIGGER intent_stays BEFORE DELETE ON intent
  BEGIN SELECT RAISE(ABORT, 'no intent is ever deleted'); END;
CREATE TRIGGER payment_stays BEFORE DELETE ON payment
  BEGIN SELECT RAISE(ABORT, 'no payment is ever deleted'); END;
CREATE TRIGGER observation_stays BEFORE DELETE ON observation
  BEGIN SELECT RAISE(ABORT, 'no observation is ever deleted'); END;
CREATE TRIGGER payment_immutable BEFORE UPDATE ON payment
  BEGIN SELECT RAISE(ABORT, 'no payment is ever changed'); END;
CREATE TRIGGER observation_immutable BEFORE UPDATE ON observation
  BEGIN SELECT RAISE(ABORT, 'no observation is ever changed'); END;
"""

_SET_INTENT = (
    "UPDATE intent SET "
    + ", ".join(f"{name} = ?" for name in _CHANGED.split(", "))
    + ", crc = ? WHERE id = ?"
)
_encode = msgspec.msgpack.Encoder().encode
_COLUMNS = INTENT.removeprefix("number, ")


# ---------------------------------------------------------------- reading


def _intent(db: Database, where: str, values: Sequence[Any]) -> ir.Intent | None:
    row = db.execute(f"SELECT {_COLUMNS} FROM intent WHERE {where}", values).fetchone()
    return _of_row(row) if row else None


def _of_invoice(db: Database, backend: str, backend_id: str) -> ir.Intent | None:
    if not backend_id:  # as those have that wait for an invoice
        return None
    return _intent(db, "backend = ? AND backend_id = ?", (backend, backend_id))


def _of_row(row: Sequence[Any]) -> ir.Intent:
    intent = ir.Intent(*row)
    intent.is_cancelling = bool(intent.is_cancelling)
    return intent


def _known(db: Database, ids: set[str]) -> dict[str, ir.Known]:
    found = {}
    for id_ in ids:
        query = "SELECT backend_id, amount FROM payment WHERE id = ?"
        if row := db.execute(query, (id_,)).fetchone():
            found[id_] = ir.Known(*row)
    return found


def _is_kept(db: Database, digest: bytes) -> bool:
    query = "SELECT 1 FROM observation WHERE digest = ?"
    return db.execute(query, (digest,)).fetchone() is not None


def event_of(db: Database, asked: Asked, offers: Mapping[str, Offer]) -> ir.IntentEvent:
    """What a message means to the core, with what the books know of it."""
    match asked:
        case CreateIntent():
            return ir.IntentAsked(
                asked.tenant,
                asked.key,
                asked.backend,
                asked.amount_ucredits,
                asked.price,
                asked.fee,
                offers.get(asked.backend),
                _intent(db, "tenant = ? AND key = ?", (asked.tenant, asked.key)),
            )
        case ReportInvoice():
            intent = _intent(db, "id = ?", (asked.intent,))
            holder = _of_invoice(db, intent.backend, asked.backend_id) if intent else None
            return ir.InvoiceReported(
                asked.intent,
                asked.backend_id,
                asked.reference,
                asked.expires_ms,
                intent,
                holder.id if holder else "",
            )
        case Observe():
            digest = _digest(asked.backend, asked.backend_id, asked.state, asked.paid, asked.raw)
            return ir.PaymentObserved(
                asked.backend,
                asked.backend_id,
                asked.state,
                asked.paid,
                asked.source,
                asked.raw,
                _of_invoice(db, asked.backend, asked.backend_id),
                _known(db, {paid.id for paid in asked.paid}),
                digest,
                _is_kept(db, digest),
            )
        case ConfirmIntent():
            digest = _digest("operator", asked.intent, "", asked.received, asked.ref.encode())
            return ir.PaymentConfirmed(
                asked.intent,
                asked.received,
                asked.ref,
                _intent(db, "id = ?", (asked.intent,)),
                _known(db, {confirmed_id(asked.intent, asked.ref)}),
                digest,
                _is_kept(db, digest),
            )
        case CancelIntent():
            where = "id = ? AND tenant = ?"
            return ir.CancelAsked(asked.intent, _intent(db, where, (asked.intent, asked.tenant)))
        case DecideIntent():
            intent = _intent(db, "id = ?", (asked.intent,))
            return ir.DecisionMade(asked.intent, asked.verb, asked.ref, intent)


def _digest(*content: Any) -> bytes:
    return hashlib.sha256(_encode(content)).digest()


def views(db: Database, asked: AskIntents, now_ms: int) -> list[IntentView]:
    """The intents that are asked for, newest first, as many as fit an answer; unsigned."""
    wheres, values = ["number < ?"], [asked.before]
    for column, value in (
        ("tenant", asked.tenant),
        ("id", asked.intent),
        ("backend", asked.backend),
    ):
        if value:
            wheres.append(f"{column} = ?")
            values.append(value)  # type: ignore[arg-type]
    if asked.which == "open":
        wheres.append("state = 'created'")
    elif asked.which == "watched":
        wheres.append("(state = 'created' OR watched_ms > ?)")
        values.append(now_ms)
    query = f"SELECT {INTENT} FROM intent WHERE {' AND '.join(wheres)} ORDER BY number DESC LIMIT ?"
    rows = list(db.execute(query, (*values, max(1, min(asked.limit, 1_000)))))
    found: list[IntentView] = []
    size = 0
    for number, *row in rows:
        view = view_of(db, number, _of_row(row))
        size += len(_encode(view))
        if found and size > ANSWER_BYTES_MAX:
            break
        found.append(view)
    return found


def view_by_id(db: Database, id_: str) -> IntentView:
    """The intent of this id, which is there."""
    row = db.execute(f"SELECT {INTENT} FROM intent WHERE id = ?", (id_,)).fetchone()
    assert row is not None, id_
    return view_of(db, row[0], _of_row(row[1:]))


def view_of(db: Database, number: int, intent: ir.Intent) -> IntentView:
    """An intent with its payments; the signature is the process's to add."""
    query = (
        "SELECT id, amount, credited, account, at_ms FROM payment WHERE intent = ?"
        " ORDER BY at_ms, id LIMIT ?"
    )
    payments = [PaymentRow(*row) for row in db.execute(query, (intent.id, PAYMENTS_SHOWN_MAX))]
    return IntentView(
        number,
        intent.id,
        intent.tenant,
        intent.key,
        intent.backend,
        intent.unit,
        intent.amount,
        intent.price,
        intent.fee,
        intent.state,
        intent.created_ms,
        intent.expires_ms,
        intent.ended_ms,
        intent.backend_id,
        intent.reference,
        b"",
        "",
        intent.is_cancelling,
        intent.received,
        intent.credited,
        intent.review,
        intent.follows,
        intent.decision,
        payments,
    )


# ---------------------------------------------------------------- writing


def write(db: Database, of: Mapping[type[Any], Sequence[Any]]) -> None:
    """Rows of what was decided, after its transfers: intents, payments, what changed of intents."""
    opened = {effect.intent.id for effect in of.get(ir.OpenIntent, ())}
    for effect in of.get(ir.OpenIntent, ()):
        row = db.execute("SELECT coalesce(max(number), 0) + 1 FROM intent").fetchone()
        assert row is not None
        db.execute(schema.insert("intent", INTENT), _sealed(row[0], _as_created(effect.intent)))
    for effect in of.get(ir.AddPayment, ()):
        values = tuple(getattr(effect, name) for name in PAYMENT.split(", "))
        db.execute(schema.insert("payment", PAYMENT), schema.sealed(values))
    changed = {effect.intent.id: effect.intent for effect in of.get(ir.SetIntent, ())}
    for intent in changed.values():
        number = db.execute("SELECT number FROM intent WHERE id = ?", (intent.id,)).fetchone()
        assert number is not None or intent.id in opened, intent.id
        row = _sealed(number[0] if number else 0, intent)
        db.execute(_SET_INTENT, (*row[_KEPT.count(",") + 1 :], intent.id))
    for effect in of.get(ir.AddObservation, ()):
        values = tuple(getattr(effect, name) for name in OBSERVATION.split(", "))
        db.execute(schema.insert("observation", OBSERVATION), schema.sealed(values))


def _as_created(intent: ir.Intent) -> ir.Intent:
    """As it begins: a late payment's has ended already when it is written."""
    return msgspec.structs.replace(
        intent, state="created", received=0, credited=0, review=0, ended_ms=0
    )


def _sealed(number: int, intent: ir.Intent) -> tuple[Any, ...]:
    values = msgspec.structs.astuple(intent)
    row = [int(value) if isinstance(value, bool) else value for value in values]
    return schema.sealed((number, *row))


# ---------------------------------------------------------------- the audit


def faults(db: Database) -> Iterator[str]:
    """What is wrong with intents and payments, in words; checksums are the audit's own matter."""
    worth: dict[str, int] = {}
    received: dict[str, int] = {}
    query = (
        "SELECT p.id, p.intent, p.amount, p.credited, p.account, p.transfer, t.id, t.amount,"
        " debit.name, credit.name FROM payment AS p"
        " LEFT JOIN transfer AS t ON t.number = p.transfer"
        " LEFT JOIN account AS debit ON debit.id = t.debit"
        " LEFT JOIN account AS credit ON credit.id = t.credit"
    )
    for id_, intent, amount, credited, account, transfer, *moved in db.execute(query):
        received[intent] = received.get(intent, 0) + amount
        worth[intent] = worth.get(intent, 0) + credited
        if transfer and moved != [mint_id(id_), credited, "world", account]:
            yield f"payment {id_} is not what its transfer minted"
    review = last = 0
    for number, *row in db.execute(f"SELECT {INTENT} FROM intent ORDER BY number"):
        intent = _of_row(row)
        last += 1
        if number != last:
            yield f"intent {last} is missing; the next is {number}"
            last = number
        has = received.get(intent.id, 0), worth.get(intent.id, 0)
        whole = intent.credited + intent.review if intent.state != "refunded" else has[1]
        wanted = intent.received, credited_of(intent.received, intent.amount, intent.due)
        if has != wanted or whole != wanted[1]:
            yield f"intent {intent.id} received {wanted[0]}, worth {whole}; its payments make {has}"
        review += intent.review
    query = "SELECT credits - debits FROM account WHERE name = ?"
    found = db.execute(query, (REVIEW,)).fetchone()
    if (found[0] if found else 0) != review:
        yield f"account {REVIEW} does not have what its intents have there, {review}"
