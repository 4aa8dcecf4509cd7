"""Grants: short-lived signed rights to blobs, checked by the store without asking anybody.

Text form: base64url of MessagePack [tenant, verb, digest, bytes_max, expires_ms, nonce] + "." +
base64url of the
Ed25519 signature. ``digest`` may be ``*`` (any blob of this tenant). An S3 presigned URL plays the
same part elsewhere.
"""

import base64
import binascii
import functools
from typing import Literal

import msgspec
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from gristmill.wire.errors import RemoteError
from gristmill.wire.frames import UNDECODABLE

ANY = "*"
#: whose blobs everybody may read without a grant; only a store's publisher signs to put them
PUBLISHED = "(published)"
_CONTEXT = b"gristmill-grant-1\0"


class Grant(msgspec.Struct, array_like=True, frozen=True):
    """A right to ``get`` or ``put`` one digest (or ``*``) of one tenant.

    Until ``expires_ms`` (UTC epoch).
    """

    tenant: str
    verb: Literal["get", "put"]
    digest: str
    bytes_max: int
    expires_ms: int
    nonce: bytes


_decode = msgspec.msgpack.Decoder(Grant).decode


def sign_grant(grant: Grant, key: SigningKey) -> str:
    """The text of a grant, as it stands in the query or the ``Authorization: Grant`` header."""
    body = msgspec.msgpack.encode(grant)
    signature = key.sign(_CONTEXT + body).signature
    return f"{_b64(body)}.{_b64(signature)}"


def check_grant(
    text: str, key: VerifyKey, verb: str, digest: str, size_bytes: int, now_ms: int
) -> Grant:
    """The grant, if it gives this right now.

    Raises:
        RemoteError: ``UNAUTHORISED`` when it is not ours or expired, ``FORBIDDEN`` when it
        is for something else.
    """
    grant = _read(text, key)
    if now_ms >= grant.expires_ms:
        raise RemoteError(
            "UNAUTHORISED", f"the grant expired at {grant.expires_ms} ms; it is {now_ms} ms"
        )
    if grant.verb != verb or grant.digest not in (ANY, digest):
        raise RemoteError(
            "FORBIDDEN",
            f"the grant is to {grant.verb} {grant.digest:.12}, not to {verb} {digest:.12}",
        )
    if size_bytes > grant.bytes_max:
        raise RemoteError("FORBIDDEN", f"{size_bytes} bytes; the grant allows {grant.bytes_max}")
    return grant


@functools.lru_cache(1_024)
def _read(text: str, key: VerifyKey) -> Grant:
    """What was signed; a grant is shown with each blob, and verified once."""
    body_text, _, signature_text = text.partition(".")
    try:
        body = _unb64(body_text)
        key.verify(_CONTEXT + body, _unb64(signature_text))
        return _decode(body)
    except (BadSignatureError, binascii.Error, ValueError, TypeError, *UNDECODABLE):
        raise RemoteError("UNAUTHORISED", "the grant is not signed by this grid's broker") from None


def tenant_of(text: str) -> str:
    """Whose grant the broker gave us; nothing is checked: the store does that.

    A text that is no grant stands for itself.
    """
    try:
        return _decode(_unb64(text.partition(".")[0])).tenant
    except (binascii.Error, ValueError, *UNDECODABLE):
        return text


def _b64(body: bytes) -> str:
    return base64.urlsafe_b64encode(body).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
