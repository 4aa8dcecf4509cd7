"""CURVE for sockets, by Ed25519 keys: one key signs a principal's receipts and opens its sockets.

The conversion is libsodium's (``crypto_sign_ed25519_*_to_curve25519``). What asks the handler of
ZAP (ZeroMQ RFC 27) who may connect is here, too; whoever has sockets runs it.
"""

from collections.abc import Callable
from typing import Any

from nacl.bindings import (
    crypto_sign_ed25519_pk_to_curve25519,
    crypto_sign_ed25519_sk_to_curve25519,
)
from nacl.signing import SigningKey

from gristmill.wire.errors import RemoteError


def curve_secret(key: SigningKey) -> bytes:
    """32 bytes: the ``CURVE_SECRETKEY`` of a socket of whoever has this key."""
    return crypto_sign_ed25519_sk_to_curve25519(key.encode() + key.verify_key.encode())


def curve_public(public: str) -> bytes:
    """32 bytes: the CURVE key of a public key of 64 hex characters.

    Raises:
        RemoteError: ``INVALID_SPEC``, that is no key.

    >>> from nacl.signing import SigningKey
    >>> from nacl.public import PrivateKey
    >>> key = SigningKey(bytes(32))
    >>> bytes(PrivateKey(curve_secret(key)).public_key) == curve_public(bytes(key.verify_key).hex())
    True
    """
    try:
        return crypto_sign_ed25519_pk_to_curve25519(bytes.fromhex(public))
    except (ValueError, TypeError, RuntimeError):
        pass
    except Exception as error:  # nacl's own: a point that is no key
        if not type(error).__module__.startswith("nacl."):
            raise
    raise RemoteError("INVALID_SPEC", f"{public!r:.80} is no public key of 64 hex characters")


def be_server(socket: Any, key: SigningKey, domain: str) -> None:
    """Have a ZeroMQ socket, before it binds, take connections of known keys only.

    ``domain``: what the ZAP handler hears, the name of the port.
    """
    socket.curve_server = 1
    socket.curve_secretkey = curve_secret(key)
    socket.zap_domain = domain.encode()


def be_client(socket: Any, key: SigningKey, server: str) -> None:
    """Have a ZeroMQ socket, before it connects, speak as ``key`` to this server only."""
    socket.curve_serverkey = curve_public(server)
    socket.curve_publickey = curve_public(key.verify_key.encode().hex())
    socket.curve_secretkey = curve_secret(key)


ZAP_ADDRESS = "inproc://zeromq.zap.01"
#: where processes come, which have nobody to tell: after 400 libzmq would never try again
_PATIENT = (b"back", b"ledger")
_ZAP_FRAMES = 7  #: version, request, domain, address, identity, mechanism, the client's key


def zap_answer(frames: list[bytes], who: Callable[[str, bytes], str]) -> list[bytes]:
    """The answer to a ZAP request.

    ``who`` of (domain, CURVE key): the User-Id of the connection, its public key; empty: refused
    for good, as is every other mechanism. Processes come again: their key may be known by then.

    >>> asked = [b"1.0", b"7", b"front", b"::1", b"", b"CURVE", bytes(32)]
    >>> zap_answer(asked, lambda domain, key: "abc")[1:5]
    [b'7', b'200', b'', b'abc']
    >>> zap_answer([*asked[:5], b"NULL"], lambda domain, key: "abc")[2]
    b'400'
    >>> asked[2] = b"back"
    >>> zap_answer(asked, lambda domain, key: "")[2]
    b'300'
    """
    request = frames[1] if len(frames) > 1 else b""
    user = ""
    if len(frames) == _ZAP_FRAMES and frames[0] == b"1.0" and frames[5] == b"CURVE":
        user = who(frames[2].decode("ascii", "replace"), frames[6])
        if not user and frames[2] in _PATIENT:
            return [b"1.0", request, b"300", b"this key is not known here yet", b"", b""]
    if not user:
        return [b"1.0", request, b"400", b"this key is not known here", b"", b""]
    return [b"1.0", request, b"200", b"", user.encode(), b""]
