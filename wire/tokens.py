"""API tokens: a token is a key, with the name that it is known by and the key of its broker.

``gm_NAME_SEED_BROKER``: the seed of an Ed25519 key and the broker's public key, 64 hex characters
each. The seed never leaves its holder: it opens CURVE sockets, of which the broker knows the public
half only, so nothing that is kept or sent can be used again by whoever reads it.
"""

import re
import secrets
from typing import NamedTuple

from nacl.signing import SigningKey

from gristmill.wire.curve import curve_public
from gristmill.wire.errors import RemoteError

_FORM = re.compile(r"gm_([a-z0-9][a-z0-9.-]{0,39})_([0-9a-f]{64})_([0-9a-f]{64})")


class Token(NamedTuple):
    """A token that was read. ``broker``: its public key."""

    name: str
    key: SigningKey
    broker: str

    @property
    def public(self) -> str:
        """What is known of the token where it is good: 64 hex characters."""
        return self.key.verify_key.encode().hex()

    @property
    def text(self) -> str:
        """The token: a secret."""
        return f"gm_{self.name}_{self.key.encode().hex()}_{self.broker}"

    def __repr__(self) -> str:
        return f"Token({self.name!r}, ...)"


def new_token(name: str, broker: str) -> Token:
    """A token of a new key; the only time that its secret exists outside its holder's hands.

    Raises:
        RemoteError: ``INVALID_SPEC``: a name with other characters, or too long; no key.
    """
    token = Token(name, SigningKey(secrets.token_bytes(32)), broker)
    if not _FORM.fullmatch(token.text):
        raise RemoteError(
            "INVALID_SPEC",
            f"the token's name is {name!r:.60}: a-z, 0-9, '.' and '-' only, at most 40",
        )
    curve_public(broker)
    return token


def parse_token(text: str) -> Token:
    """A token from its text.

    Raises:
        RemoteError: ``UNAUTHORISED``; the secret is not in the message.
    """
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise RemoteError(
            "UNAUTHORISED",
            f"the token of {len(text)} characters does not read gm_NAME_SECRET_BROKER",
            "paste it whole, as '--new-token' printed it",
        )
    return Token(match[1], SigningKey(bytes.fromhex(match[2])), match[3])
