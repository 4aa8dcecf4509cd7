"""Which public key speaks for whom, since when: the broker's own word about itself and its nodes.

A key is never changed or withdrawn: another one for the same name is a new row, from later on.
"""

from gristmill.ledger.core.effects import AddKey, AnyEffect
from gristmill.ledger.core.state import LedgerState
from gristmill.wire.ids import is_digest
from gristmill.wire.ledger import Key
from gristmill.wire.limits import NAME_CHARS_MAX

FROM_MS_MAX = 253_402_300_799_999


def on_key(
    state: LedgerState, broker: str, entry: Key, effects: list[AnyEffect]
) -> tuple[str, str]:
    """State a key, once; the verdict's code and message, empty for yes."""
    if not is_digest(entry.public) or not 0 <= entry.from_ms <= FROM_MS_MAX:
        told = f"{entry.public!r:.80} from {entry.from_ms} on is no public key of 64 hex digits"
        return "MALFORMED", told
    if not 0 < len(entry.name) <= 2 * NAME_CHARS_MAX + 1 or "\0" in entry.name:
        return "MALFORMED", f"{entry.name!r:.80} of {len(entry.name)} characters is no key's name"
    whose = broker if entry.kind == "broker" else f"{broker}/"
    is_its_own = entry.name == whose if entry.kind == "broker" else entry.name.startswith(whose)
    if not is_its_own:
        return "FORBIDDEN", f"the {entry.kind} {entry.name!r:.80} is not one of this broker's"
    before = state.keys.get((entry.kind, entry.name))
    if before is not None:
        if before[0] == entry.public:
            return "", ""  # a journal that was restored tells it again
        if entry.from_ms <= before[1]:
            return "LEDGER_CONFLICT", (
                f"the {entry.kind} {entry.name} has the key {before[0]:.12}... from {before[1]} on;"
                f" another one must begin later than that, not at {entry.from_ms}"
            )
    state.keys[entry.kind, entry.name] = entry.public, entry.from_ms
    effects.append(AddKey(entry.kind, entry.name, entry.public, entry.from_ms))
    return "", ""
