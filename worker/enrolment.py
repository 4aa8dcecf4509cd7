"""A node's side of its enrolment: what it measures of itself, and the way to the registry.

The key is made here and stays here; what leaves is its public part and signatures. The connection
is CURVE with the key that the token names: whoever else answers at that address never gets as far
as a handshake. What was told at the end is kept beside the key, in ``enrolment.json``.
"""

import importlib.metadata
import os
import pathlib
import platform
import socket as sockets
import struct
import time
from types import TracebackType
from typing import Any

import msgspec
import psutil  # type: ignore[import-untyped]
import zmq
from nacl.signing import SigningKey

from gristmill.sandbox.probe import probe
from gristmill.wire.curve import be_client
from gristmill.wire.enrolment import (
    SKEW_MS_MAX,
    BrokerAt,
    Challenge,
    Check,
    Enrol,
    Enrolled,
    EnrolRefused,
    NodeToken,
    Report,
    decode_from_enrolment,
    fingerprint,
    sign,
)
from gristmill.wire.errors import RemoteError
from gristmill.wire.frames import encode
from gristmill.wire.units import format_bytes, format_ms

ANSWER_MS = 10_000
FILE_NAME = "enrolment.json"
DISK_BYTES_MIN = 1 << 30
_EVENT = struct.Struct("=HI")
#: only what a new connection says, and it is read at each answer: a monitor that nobody reads stops
#: its socket in the end
_WATCHED = zmq.EVENT_CONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED


class Kept(msgspec.Struct, frozen=True):
    """What a node keeps of its enrolment. ``token``: the digest of the one that it used last."""

    name: str
    public: str
    token: str
    node_class: str
    slots_max: int
    enrolment: BrokerAt
    brokers: list[BrokerAt]


def read_kept(state: pathlib.Path) -> Kept | None:
    """What this state folder keeps; None for nothing.

    Raises:
        RemoteError: ``INVALID_SPEC``: it cannot be read.
    """
    path = state / FILE_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Kept)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RemoteError(
            "INVALID_SPEC",
            f"{path} cannot be read: {error}",
            f"delete {path} and enrol again with the same token",
        ) from None


def keep(state: pathlib.Path, kept: Kept) -> None:
    """Write it, whole or not at all."""
    path = state / FILE_NAME
    temporary = path.with_name(f"{FILE_NAME}.{os.getpid()}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(msgspec.json.encode(kept) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def measure(state: pathlib.Path) -> Report:
    """Sizes, versions and checks of this host; the trial jails take about half a second."""
    report = probe(state / "enrolment-trial")
    checks = [_of_jails(report.checks, report.reasons, report.remedies)]
    metering = "cgroup" if report.cgroup_version else "proc"
    held = f"version {report.cgroup_version}" if report.cgroup_version else report.cgroup_reason
    checks.append(Check("cgroup", True, f"{held:.500}"))  # rlimits stand in; operators see it
    free = psutil.disk_usage(str(state)).free
    checks.append(
        Check(
            "disk",
            free >= DISK_BYTES_MIN,
            f"{format_bytes(free)} free in {state}; at least {format_bytes(DISK_BYTES_MIN)} needed",
            f"free some room, or choose another folder: --state (df -h {state})",
        )
    )
    return Report(
        host=sockets.gethostname()[:200],
        kernel=f"{platform.release()} {platform.machine()}"[:200],
        cpus_milli=len(os.sched_getaffinity(0)) * 1_000,
        memory_bytes=psutil.virtual_memory().total,
        disk_bytes=free,
        metering=metering,
        tiers=["strict", "job", "batch"] if report.is_able else [],
        versions={
            "gristmill": _version("gristmill"),
            "python": platform.python_version(),
            "pyzmq": zmq.__version__,
            "libzmq": zmq.zmq_version(),
        },
        checks=checks,
    )


def _of_jails(trials: Any, reasons: Any, remedies: Any) -> Check:
    if not reasons:
        return Check("jail", True, f"{len(trials)} trials passed in real jails")
    remedy = next((one for one in remedies if one), "gristmill doctor")
    return Check("jail", False, f"{reasons[0]:.900}", f"{remedy:.900}")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unpackaged"


def check_self(report: Report) -> None:
    """Nothing, or the first thing that is wrong.

    Raises:
        RemoteError: ``SELF_TEST_FAILED``, in one line with its remedy.
    """
    for check in report.checks:
        if not check.is_ok:
            told = f"{check.name}: {check.detail.splitlines()[0]}"
            raise RemoteError("SELF_TEST_FAILED", told, check.remedy)


def check_clock(registry_ms: int, own_ms: int) -> None:
    """Nothing, or that the two clocks differ by more than ``SKEW_MS_MAX``.

    Raises:
        RemoteError: ``SELF_TEST_FAILED``.
    """
    skew_ms = own_ms - registry_ms
    if abs(skew_ms) > SKEW_MS_MAX:
        told = "ahead of" if skew_ms > 0 else "behind"
        raise RemoteError(
            "SELF_TEST_FAILED",
            f"clock: {format_ms(abs(skew_ms))} {told} the registry's; at most"
            f" {format_ms(SKEW_MS_MAX)} may be",
            "timedatectl set-ntp true",
        )


class Door:
    """The registry's enrolment port, for one node with one token.

    Args:
        token: whose key must answer.
        key: of the node; its CURVE form is that of the connection, too.
        old: the key that this one replaces, for a rotation.
    """

    def __init__(self, token: NodeToken, key: SigningKey, old: SigningKey | None = None) -> None:
        self._token, self._key, self._old = token, key, old
        self._address = f"tcp://{token.place}"
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.RCVTIMEO, ANSWER_MS),
            (zmq.SNDTIMEO, ANSWER_MS),
            (zmq.IMMEDIATE, 1),
            (zmq.RECONNECT_IVL, 200),
            (zmq.RECONNECT_IVL_MAX, 2_000),
            (zmq.IPV6, int("[" in token.place)),
        ):
            self._socket.setsockopt(option, value)
        be_client(self._socket, key, token.public)
        self._events = self._context.socket(zmq.PAIR)
        self._socket.monitor(f"inproc://events-{id(self)}", _WATCHED)
        self._events.connect(f"inproc://events-{id(self)}")
        self._socket.connect(self._address)

    def __enter__(self) -> "Door":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.disable_monitor()
        self._events.close(0)
        self._socket.close(0)
        self._context.term()

    def enrol(self, report: Report) -> Enrolled:
        """Say both messages of the verb; what the node is now.

        Raises:
            RemoteError: what the registry refused with; ``UNREACHABLE``, ``UNAUTHORISED`` when
                whoever answers there does not have the token's key, or ``SELF_TEST_FAILED``.
        """
        asked = Enrol(
            str(self._token),
            bytes(self._key.verify_key).hex(),
            self._token.name,
            report,
            replaces=bytes(self._old.verify_key).hex() if self._old else "",
        )
        answer = self._ask(asked)
        if isinstance(answer, Challenge):
            check_clock(answer.now_ms, time.time_ns() // 1_000_000)
            asked = msgspec.structs.replace(asked, challenge=answer.challenge)
            answer = self._ask(sign(asked, self._key, self._token.public, self._old))
        if not isinstance(answer, Enrolled):
            raise RemoteError("MALFORMED", f"the registry answered with {type(answer).__name__}")
        return answer

    def _ask(self, message: Enrol) -> Any:
        try:
            self._socket.send(encode(message))
            answer = decode_from_enrolment.decode(self._socket.recv())
        except zmq.Again:
            raise self._silence(self._seen()) from None
        self._seen()
        if isinstance(answer, EnrolRefused):
            raise RemoteError(answer.code, answer.message, answer.hint)
        return answer

    def _seen(self) -> int:
        """What libzmq saw of the connection since the last look."""
        seen = 0
        while self._events.poll(0):
            event, _ = _EVENT.unpack(self._events.recv_multipart()[0])
            seen |= event
        return seen

    def _silence(self, seen: int) -> RemoteError:
        """Why nobody answered."""
        if seen & zmq.EVENT_CONNECTED and not seen & zmq.EVENT_HANDSHAKE_SUCCEEDED:
            told = fingerprint(self._token.public)
            return RemoteError(
                "UNAUTHORISED",
                f"whoever answers at {self._token.place} does not have the key of the token"
                f" ({told}): nothing was told to it",
                "compare the fingerprint with the operator's, and ask for a new token",
            )
        return RemoteError(
            "UNREACHABLE",
            f"no registry answers at {self._token.place} within {ANSWER_MS // 1000} s",
            f"see whether this host may connect there: nc -vz"
            f" {self._token.place.rpartition(':')[0]} {self._token.place.rpartition(':')[2]}",
        )
