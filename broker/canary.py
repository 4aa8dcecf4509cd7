"""A question whose answer is known: what a new node is asked before it gets work.

A command, because the broker packs no functions: a shell in the jail that the tenants' subtasks
would have steps a congruence from a number that nobody can foresee. It shows that the node starts
jails, runs what it is given, does its arithmetic and brings results back; not that it is honest.
"""

import hashlib
import os

from gristmill.wire.errors import RemoteError
from gristmill.wire.spec import TIERS, Command, JobSpec, Limits
from gristmill.wire.values import unpack
from gristmill.wire.worker import Hello

TENANT = "gristmill/canary"  #: no principal can have it: a tenant's name has no slash
ROUNDS = 2_000
_MODULUS = 1 << 31
_FACTOR, _TERM = 1_103_515_245, 12_345
_SCRIPT = (
    f"x=$1 i=0; while [ $i -lt {ROUNDS} ]; do x=$(((x * {_FACTOR} + {_TERM}) % {_MODULUS}));"
    " i=$((i + 1)); done; echo $x"
)
_WALL_MS = 60_000
_TOLD_CHARS = 200


def question_for(hello: Hello) -> JobSpec:
    """A job of one subtask without input, for a node."""
    number = int.from_bytes(os.urandom(4)) % _MODULUS
    asked = Limits(
        cpus_milli=min(1_000, hello.cpus_milli),
        memory_bytes=min(256 << 20, hello.memory_bytes),
        wall_ms=_WALL_MS,
        scratch_bytes=1 << 20,
    )
    tier = "job" if "job" in hello.tiers else next(one for one in TIERS if one in hello.tiers)
    return JobSpec(
        kind="command",
        name=f"canary of {hello.name:.60}",
        command=Command(["/bin/sh", "-c", _SCRIPT, "canary", str(number)]),
        count=1,
        tier=tier,
        limits=asked,
        tariff="zero",
        retention_s=86_400,
    )


def answer_to(spec: JobSpec) -> bytes:
    """What a node must answer; from the question alone, as a restart finds it."""
    assert spec.command is not None
    x = int(spec.command.argv[-1])
    for _ in range(ROUNDS):
        x = (x * _FACTOR + _TERM) % _MODULUS
    return b"%d\n" % x


def said(codec: str, payload: bytes) -> bytes:
    """The output of whatever a node sent as the value; what cannot be read, as it came."""
    try:
        (value,) = unpack(codec, payload, 1)
        answer = value["stdout"]
    except (RemoteError, TypeError, ValueError, KeyError, IndexError):
        return payload
    return answer if isinstance(answer, bytes) else payload


def digest_of(answer: bytes) -> bytes:
    """By which the core compares it."""
    return hashlib.blake2b(b"canary\0" + answer, digest_size=16).digest()


def difference(spec: JobSpec, answer: bytes) -> str:
    """A wrong answer beside the right one, for people."""
    expected = answer_to(spec)
    return (
        f"the canary {expected.decode().strip()!r} was expected;"
        f" it said {answer[:_TOLD_CHARS].decode(errors='replace').strip()!r}"
    )
