"""Why a slot's process ended, in the core's words."""

import sys

from gristmill.sandbox.verdict import Deed
from gristmill.wire.failure import Failure, LogEntry, pack_logs
from gristmill.wire.outcome import Outcome
from gristmill.wire.spec import JobSpec
from gristmill.wire.units import format_bytes
from gristmill.worker.core import effects as do
from gristmill.worker.core import events as on
from gristmill.worker.port import Port, Taken
from gristmill.worker.process import Facts
from gristmill.worker.starter import subtask_limits

LOG_TAIL_BYTES = 4_096  #: of each stream, kept of a process that was ended
#: That an interpreter maps at its start, with room: a limit below may be why one does not start.
ADDRESSES_MIN = 64 << 20
_DEEDS: dict[do.KillCause, Deed] = {
    "time": Deed.TIMED_OUT,
    "cpu": Deed.CPU_SPENT,
    "output": Deed.OUTPUT_CUT,
    "cancel": Deed.CANCELLED,
}


def ending_of(
    port: Port, spec: JobSpec, wall_ms: int, cpu_before_us: int
) -> on.JailEnded | on.JobUnready:
    """The event of a process that is over.

    Args:
        port: of the process; its last frames were taken.
        spec: of its job.
        wall_ms: that the subtask ran which the page names; 0 for none.
        cpu_before_us: cpu time of the process when that subtask began.
    """
    output = port.take_output()
    lease_id, index = port.page.started()
    fresh_us = port.take_cpu_us()
    deed = Deed.NOTHING if port.cause is None else _DEEDS.get(port.cause, Deed.LOST_HOLD)
    facts = Facts(
        deed=deed,
        limits=subtask_limits(spec),
        wall_ms=wall_ms,
        cpu_us=max(0, port.accounted_us - cpu_before_us),
        output_bytes=output.written,
    )
    outcome, failure = _verdict(port, facts, output.stderr)
    is_own = spec.environment in ("", sys.executable)  # a client of this host names our own
    if outcome is Outcome.SETUP and not port.is_ready and not is_own:
        # a Python that somebody named does not work here: the host is not to blame
        return on.JobUnready(port.slot, port.jail, int(outcome), failure.message)
    if outcome is Outcome.SETUP and port.cause is None and _is_cramped(port, spec):
        limit = spec.limits.memory_bytes
        message = (
            f"{failure.message}; its memory limit of {format_bytes(limit)} counts addresses here "
            f"(no cgroup); try a memory limit of {format_bytes(ADDRESSES_MIN)}"
        )
        return on.JobUnready(port.slot, port.jail, int(Outcome.OOM), message)
    return on.JailEnded(
        port.slot,
        port.jail,
        int(outcome),
        failure,
        lease_id=lease_id,
        index=index,
        wall_us=wall_ms * 1000,
        cpu_us=fresh_us,
        peak_kib=port.process.reading().memory_peak_bytes >> 10,
        metering=port.process.metering,
        logs=_tail(output),
    )


def _is_cramped(port: Port, spec: JobSpec) -> bool:
    """The job, not the host, left the interpreter too little to start in."""
    is_by_rlimit = port.process.is_jailed and port.process.metering != "cgroup"
    return is_by_rlimit and not port.is_ready and spec.limits.memory_bytes < ADDRESSES_MIN


def never_started(effect: do.KillJail) -> on.JailEnded:
    """The end of a start that waited for its job."""
    outcome = Outcome.SETUP if effect.cause == "start" else Outcome.RETURNED
    failure = Failure("its job was not ready in time")
    return on.JailEnded(effect.slot, effect.jail, int(outcome), failure)


def _tail(output: Taken) -> bytes:
    if not output.written:
        return b""
    ends = output.stdout[-LOG_TAIL_BYTES:], output.stderr[-LOG_TAIL_BYTES:]
    entry = LogEntry(
        0,
        *ends,
        is_cut=output.written > sum(map(len, ends)),
        stdout_bytes=output.stdout_bytes,
        stderr_bytes=output.stderr_bytes,
        stdout_at=len(output.stdout) - len(ends[0]),
        stderr_at=len(output.stderr) - len(ends[1]),
    )
    return pack_logs([entry])


def _verdict(port: Port, facts: Facts, stderr: bytes) -> tuple[Outcome, Failure]:
    if port.cause == "budget":
        return Outcome.BUDGET, Failure("the lease's budget is spent; submit with a higher --cap")
    if port.cause == "lied":
        return Outcome.ERROR, Failure(
            "the subtask wrote to a descriptor that is not its own and broke its slot's protocol"
        )
    if port.cause == "start":
        return Outcome.SETUP, Failure("its jail was not up in time")
    if port.cause == "hung":
        return Outcome.LOST, Failure("its slot no longer answered; its jail was ended")
    if port.cause is None and port.process.is_lapsed():
        return Outcome.LOST, Failure("its worker stood still past its right to run; jail ended")
    verdict = port.process.judge(facts)
    outcome, detail = verdict.outcome, verdict.detail
    if not port.is_ready and outcome is Outcome.EXIT:
        # our own code could not start in that interpreter: nobody's subtask ran
        last = stderr.decode(errors="replace").strip().splitlines()[-1:] or [detail]
        outcome, detail = Outcome.SETUP, f"the slot's Python did not start: {last[0]}"
    elif outcome is Outcome.OK:
        outcome, detail = Outcome.EXIT, "the subtask ended its whole process with exit code 0"
    elif outcome is Outcome.EXIT:
        detail = f"the subtask ended its whole process with exit code {verdict.exit_code}"
    failure = Failure(
        detail,
        exit_code=verdict.exit_code,
        signal=verdict.signal_number,
        limit=verdict.limit,
        peak=verdict.peak,
        suggested=verdict.suggested,
    )
    return outcome, failure
