"""The options of ``gristmill limits``."""

from gristmill.cli.parser import Verbs, add_verb


def add(verbs: Verbs) -> None:
    """``gristmill limits``."""
    add_verb(
        verbs,
        "limits",
        "limits",
        "Show what your key may ask for, and whether it waits; an operator sees every key",
        more="An operator changes them with 'python -m gristmill.broker --limit NAME LIMITS'.",
    )
