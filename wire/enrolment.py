"""The enrolment dialogue (docs/rfc/0005): how a stranger with a token becomes a pending node.

One verb, said twice: ``Enrol`` with the token is answered by a ``Challenge``, the same ``Enrol``
signed over that challenge by the node's own key is answered by ``Enrolled``. Saying it again is how
a node learns what was decided. The enrolment port is CURVE, with the key that the token names.

A token reads ``gme_NAME_SECRET_KEY@HOST:PORT``: 32 hex characters that the registry keeps the
sha-256 of, 64 of the enrolment port's public key, and where that port is.
"""

import hashlib
import re
from typing import Annotated, Any, NamedTuple

import msgspec
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from gristmill.wire.errors import RemoteError
from gristmill.wire.frames import HeaderDecoder, Integer, encode

ENROLMENT_FRAME_BYTES_MAX = 16 << 10  #: ZMQ_MAXMSGSIZE of the enrolment port
CHALLENGE_MS = 60_000  #: a challenge is good for at least this long
SKEW_MS_MAX = 30_000  #: of a node's clock, beside the registry's
NODE_NAME = r"[A-Za-z0-9][A-Za-z0-9.-]{0,62}"
_TOKEN = re.compile(
    rf"gme_({NODE_NAME})_([0-9a-f]{{32}})_([0-9a-f]{{64}})"
    r"@((?:\[[0-9a-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5})"
)
_CONTEXT = b"gristmill enrolment 1\0"

Text = Annotated[str, msgspec.Meta(max_length=200)]
Public = Annotated[str, msgspec.Meta(pattern="^([0-9a-f]{64})?$")]
Signature = Annotated[bytes, msgspec.Meta(max_length=64)]


class Message(msgspec.Struct, array_like=True, frozen=True, tag_field="type", gc=False):
    """Base of the dialogue's messages."""


class BrokerAt(msgspec.Struct, array_like=True, frozen=True):
    """An address and the public key (Ed25519, 64 hex characters) of whoever must answer there."""

    address: str
    public: str


class Check(msgspec.Struct, array_like=True, frozen=True):
    """One thing that the node tried on itself; ``remedy``: what to type where it failed."""

    name: Text
    is_ok: bool
    detail: Annotated[str, msgspec.Meta(max_length=1_000)]
    remedy: Annotated[str, msgspec.Meta(max_length=1_000)] = ""


class Report(msgspec.Struct, array_like=True, frozen=True):
    """What a node measured of itself: sizes, versions (``gristmill``, ``python``) and its checks.

    ``metering``: who holds its limits, ``cgroup`` or ``proc``.
    """

    host: Text
    kernel: Text
    cpus_milli: Integer
    memory_bytes: Integer
    disk_bytes: Integer
    metering: Text
    tiers: Annotated[list[Text], msgspec.Meta(max_length=8)]
    versions: Annotated[dict[Text, Text], msgspec.Meta(max_length=16)]
    checks: Annotated[list[Check], msgspec.Meta(max_length=32)]


class Enrol(Message, frozen=True, tag=1):
    """A node: I am ``name``, with this key, and may I join.

    Without a signature it asks for the challenge. ``replaces`` and ``old_signature``: its key until
    now, where the token is for a rotation.
    """

    token: Annotated[str, msgspec.Meta(max_length=300)]
    public: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    name: Text
    report: Report
    challenge: Annotated[bytes, msgspec.Meta(max_length=32)] = b""
    signature: Signature = b""
    replaces: Public = ""
    old_signature: Signature = b""


class Challenge(Message, frozen=True, tag=1):
    """The token is good: sign this. ``now_ms``: the registry's clock."""

    challenge: bytes
    now_ms: int


class Enrolled(Message, frozen=True, tag=2):
    """What the node is now. ``until_ms``: while it is pending, when that expires.

    ``again_ms``: when to ask again, while it is not decided. ``brokers``: whom to serve then.
    """

    name: str
    public: str
    state: str
    version: int
    reason: str
    node_class: str
    slots_max: int
    until_ms: int
    again_ms: int
    brokers: list[BrokerAt]


class EnrolRefused(Message, frozen=True, tag=3):
    """Nothing was changed, and why."""

    code: str
    message: str
    hint: str = ""


ToEnrolment = Enrol
FromEnrolment = Challenge | Enrolled | EnrolRefused
decode_to_enrolment: HeaderDecoder[Any] = HeaderDecoder(ToEnrolment)
decode_from_enrolment: HeaderDecoder[Any] = HeaderDecoder(FromEnrolment)


class NodeToken(NamedTuple):
    """What a token says. ``public``: of the enrolment port, which is at ``tcp://host:port``."""

    name: str
    secret: str
    public: str
    place: str

    def __str__(self) -> str:
        """As it is typed."""
        return f"gme_{self.name}_{self.secret}_{self.public}@{self.place}"


def parse_token(text: str) -> NodeToken:
    """A node's token as typed.

    Raises:
        RemoteError: ``UNAUTHORISED``; the message never has the token.

    >>> parse_token("gme_mill-1_" + "5" * 32 + "_" + "a" * 64 + "@10.0.0.1:7034").place
    '10.0.0.1:7034'
    """
    found = _TOKEN.fullmatch(text.strip())
    if found is None:
        raise RemoteError(
            "UNAUTHORISED",
            "this is no token of a node: it reads gme_NAME_SECRET_KEY@HOST:PORT, in one piece",
            "paste the whole of what 'gristmill node token NAME' printed",
        )
    return NodeToken(*found.groups())


def token_digest(secret: str) -> str:
    """What is kept of a token's secret: its sha-256, 64 hex characters."""
    return hashlib.sha256(b"gristmill node token\0" + secret.encode()).hexdigest()


def fingerprint(public: str) -> str:
    """A public key for people to compare: the first 16 bytes of its sha-256, in groups.

    >>> fingerprint("00" * 32)
    '6668 7aad f862 bd77 6c8f c18b 8e9f 8e20'
    """
    digest = hashlib.sha256(bytes.fromhex(public)).hexdigest()[:32]
    return " ".join(digest[at : at + 4] for at in range(0, 32, 4))


def _words(enrol: Enrol, server: str) -> bytes:
    bare = msgspec.structs.replace(enrol, signature=b"", old_signature=b"")
    return _CONTEXT + bytes.fromhex(server) + encode(bare)


def sign(enrol: Enrol, key: SigningKey, server: str, old: SigningKey | None = None) -> Enrol:
    """The message with the node's signature over all of it and the server's key; and the old one's.

    Args:
        enrol: with its challenge in it.
        key: whose public key the message names.
        server: public key of the enrolment port: what was signed for one grid is not for another.
        old: the key that this one replaces.
    """
    words = _words(enrol, server)
    return msgspec.structs.replace(
        enrol,
        signature=bytes(key.sign(words).signature),
        old_signature=bytes(old.sign(words).signature) if old else b"",
    )


def is_signed(enrol: Enrol, server: str) -> bool:
    """Whether the node's key signed it, and the key that it replaces, where it names one."""
    words = _words(enrol, server)
    try:
        VerifyKey(bytes.fromhex(enrol.public)).verify(words, enrol.signature)
        if enrol.replaces:
            VerifyKey(bytes.fromhex(enrol.replaces)).verify(words, enrol.old_signature)
    except (BadSignatureError, ValueError, TypeError):
        return False
    return True
