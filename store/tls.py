"""TLS between a store and who has its public key: no names, no authorities, no files.

The store's certificate is made from its Ed25519 key alone: each field but the key is fixed, so that
who has the public key knows every byte of it but the signature. A client compares it whole; that
the store has the secret half is shown by the handshake itself (RFC 8446, 4.4.3), which OpenSSL
checks whatever it is told of authorities.
"""

import os
import socket
import ssl

from nacl.signing import SigningKey

from gristmill.wire.errors import RemoteError

_ED25519 = bytes.fromhex("300506032b6570")  # RFC 8410: id-Ed25519, without parameters
_PUBLIC = bytes.fromhex("302a") + _ED25519 + bytes.fromhex("032100")
_SECRET = bytes.fromhex("302e020100") + _ED25519 + bytes.fromhex("04220420")
_NAME = bytes.fromhex("3014311230100603550403") + b"\x0c\x09gristmill"
_ALWAYS = b"\x30\x20\x17\x0d700101000000Z\x18\x0f99991231235959Z"
_SIGNATURE_BYTES = 64


def _sequence(body: bytes, tag: int = 0x30) -> bytes:
    """DER of what has fewer than 64 KiB."""
    size = len(body)
    if size < 128:
        return bytes((tag, size)) + body
    octets = size.to_bytes(1 if size < 256 else 2)
    return bytes((tag, 0x80 | len(octets))) + octets + body


def _to_be_signed(public: bytes) -> bytes:
    """RFC 5280's TBSCertificate: version 3, serial 1, our name, for ever, this key."""
    fields = (bytes.fromhex("a003020102020101"), _ED25519, _NAME, _ALWAYS, _NAME, _PUBLIC + public)
    return _sequence(b"".join(fields))


def _certificate(public: bytes, signature: bytes) -> bytes:
    return _sequence(_to_be_signed(public) + _ED25519 + _sequence(b"\0" + signature, 0x03))


def certificate_of(key: SigningKey) -> bytes:
    """The certificate of a store with this key, DER."""
    public = key.verify_key.encode()
    return _certificate(public, key.sign(_to_be_signed(public)).signature)


def is_certificate_of(der: bytes, public: bytes) -> bool:
    """Whether this is the certificate of that key; its signature is its own and says nothing."""
    head = _certificate(public, bytes(_SIGNATURE_BYTES))[:-_SIGNATURE_BYTES]
    return len(der) == len(head) + _SIGNATURE_BYTES and der.startswith(head)


def server_context(key: SigningKey) -> ssl.SSLContext:
    """For the store that has this key."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Bytes from the store before a body was sent are a refusal to the client: no tickets.
    context.num_tickets = 0
    secret = ssl.DER_cert_to_PEM_cert(_SECRET + key.encode()).replace("CERTIFICATE", "PRIVATE KEY")
    memory = os.memfd_create("certificate", os.MFD_CLOEXEC)  # OpenSSL reads files; none is on disk
    try:
        os.write(memory, (secret + ssl.DER_cert_to_PEM_cert(certificate_of(key))).encode())
        context.load_cert_chain(f"/proc/self/fd/{memory}")
    finally:
        os.close(memory)
    return context


def connect(connection: socket.socket, public: str) -> ssl.SSLSocket:
    """A connection to the store that has this key (hex).

    Raises:
        RemoteError: ``UNAUTHORISED``: it has another one. Nothing of ours was sent.
        OSError: the handshake failed.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # we look at the certificate ourselves, below
    context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF  # bodies have their length
    secured = context.wrap_socket(connection)
    found = secured.getpeercert(binary_form=True)
    if found is None or not is_certificate_of(found, bytes.fromhex(public)):
        secured.close()
        raise RemoteError(
            "UNAUTHORISED",
            f"who answers for the store does not have the key {public:.16}...",
            "compare GRISTMILL_BROKER_STORE_KEY with 'python -m gristmill.store --print-key'",
        )
    return secured
