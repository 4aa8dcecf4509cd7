"""The base of the documents of ``--json``; see ``documents.py``."""

import msgspec


class Document(msgspec.Struct, frozen=True, tag_field="schema"):
    """Base of the documents."""
