"""The triggers of ``ledger/chain_rows.py`` in PostgreSQL's words; see ``ledger/postgres.py``."""

from gristmill.ledger.chain_rows import MONEY, NEVER_CHANGED

_RENTAL = """
  IF (NEW.id, NEW.spec, NEW.tenant) <> (OLD.id, OLD.spec, OLD.tenant)
      OR NEW.locked < OLD.locked OR NEW.paid < OLD.paid OR NEW.returned < OLD.returned
      OR NEW.is_ending < OLD.is_ending OR NEW.is_closed < OLD.is_closed
      OR NEW.block < OLD.block THEN
    RAISE EXCEPTION 'a rental only grows';
  END IF;
"""
_EARNING = """
  IF (NEW.pool, NEW.address) <> (OLD.pool, OLD.address) OR NEW.cumulative <= OLD.cumulative THEN
    RAISE EXCEPTION 'what was earned only grows';
  END IF;
"""
_PAYOUT = """
  IF OLD.block > 0 OR (NEW.pool, NEW.number, NEW.leaves, NEW.total)
      <> (OLD.pool, OLD.number, OLD.leaves, OLD.total) THEN
    RAISE EXCEPTION 'a payout gets its root once';
  END IF;
"""
_MOVED = """
  IF NOT EXISTS (SELECT 1 FROM transfer AS t WHERE t.number = NEW.transfer AND t.kind = 0
      AND t.amount = NEW.amount) THEN
    RAISE EXCEPTION 'not what its transfer moved';
  END IF;
"""
#: name: (when, on which table, for which rows, what it does before it lets the row be)
TRIGGERS: dict[str, tuple[str, str, str, str]] = {
    "rental_grows": ("UPDATE", "rental", "", _RENTAL),
    "earning_grows": ("UPDATE", "earning", "", _EARNING),
    "payout_root": ("UPDATE", "payout", "", _PAYOUT),
    "chain_moved": ("INSERT", "chain_move", "", _MOVED),
    **{
        f"{table}_stays": ("DELETE", table, "", f"RAISE EXCEPTION 'no {table} is ever deleted';")
        for table in MONEY
    },
    **{
        f"{table}_immutable": (
            "UPDATE",
            table,
            "",
            f"RAISE EXCEPTION 'no {table} is ever changed';",
        )
        for table in NEVER_CHANGED
    },
}
