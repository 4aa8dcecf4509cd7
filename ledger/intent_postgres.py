"""The triggers of ``ledger/intent_rows.py`` in PostgreSQL's words; see ``ledger/postgres.py``."""

_KEPT = "number, id, tenant, key, backend, unit, amount, price, fee, follows, created_ms"


def _row(which: str, columns: str = _KEPT) -> str:
    return "(" + ", ".join(f"{which}.{name}" for name in columns.split(", ")) + ")"


_CHANGE = f"""
  IF OLD.state <> 'created' THEN
    RAISE EXCEPTION 'an intent that ended never changes';
  END IF;
  IF {_row("NEW")} <> {_row("OLD")} THEN
    RAISE EXCEPTION 'an intent keeps its price';
  END IF;
  IF OLD.backend_id <> '' AND {_row("NEW", "backend_id, reference, expires_ms")}
      <> {_row("OLD", "backend_id, reference, expires_ms")} THEN
    RAISE EXCEPTION 'an intent keeps its reference';
  END IF;
  IF NEW.received <> (
      SELECT coalesce(sum(amount), 0) FROM payment WHERE intent = NEW.id) THEN
    RAISE EXCEPTION 'received is not what its payments are';
  END IF;
"""
_MINTED = """
  IF NOT EXISTS (SELECT 1 FROM transfer AS t JOIN account AS a ON a.id = t.credit
      JOIN account AS w ON w.id = t.debit
      WHERE t.number = NEW.transfer AND t.kind = 0 AND t.amount = NEW.credited
        AND a.name = NEW.account AND w.name = 'world') THEN
    RAISE EXCEPTION 'not what its transfer minted';
  END IF;
"""
#: name: (when, on which table, for which rows, what it does before it lets the row be)
TRIGGERS: dict[str, tuple[str, str, str, str]] = {
    "intent_begins": (
        "INSERT",
        "intent",
        "WHEN (NEW.state <> 'created')",
        "RAISE EXCEPTION 'an intent begins as created';",
    ),
    "intent_changes": ("UPDATE", "intent", "", _CHANGE),
    "payment_minted": ("INSERT", "payment", "WHEN (NEW.transfer > 0)", _MINTED),
    **{
        f"{table}_stays": ("DELETE", table, "", f"RAISE EXCEPTION 'no {table} is ever deleted';")
        for table in ("intent", "payment", "observation")
    },
    **{
        f"{table}_immutable": (
            "UPDATE",
            table,
            "",
            f"RAISE EXCEPTION 'no {table} is ever changed';",
        )
        for table in ("payment", "observation")
    },
}
