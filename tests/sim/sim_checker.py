"""What must hold, judged from what clients were told, what jails ran and what the files say.

``Truth`` knows what really ran; ``Promises`` what clients were promised and got; ``audit_books``
reads both files at the end. None of them looks into a process.
"""

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
from sim_disk import Disk
from sim_jobs import CAP, Work
from sim_world import World, need

from gristmill.wire.client import JobStatus, Results
from gristmill.wire.meter import unpack_meter
from gristmill.wire.outcome import Outcome

if TYPE_CHECKING:
    from sim_client import Reading
    from sim_worker import Jail, SimWorker

#: Ends that no jail makes; each needs its own reason.
_GRID_MADE = frozenset(
    {Outcome.CANCELLED, Outcome.LOST, Outcome.BUDGET, Outcome.SETUP, Outcome.STORE}
)
#: What an agent may take to find out that its time is up: a turn, a look, a stop of the process.
LAPSE_SLACK_MS = 100


class Truth:
    """What really ran, as it ran."""

    def __init__(self, world: World, works: list[Work], is_poor: bool) -> None:
        self.world, self.is_poor = world, is_poor
        self.works = {work.function: work for work in works}
        self.ended: dict[tuple[int, int, int], dict[Outcome, None]] = {}  # job, index, attempt
        self.bases: dict[int, int] = {}  # job to the index in its work that it begins at
        self.runs: Counter[tuple[int, int]] = Counter()
        self.deaths: Counter[int] = Counter()
        self.cpu_ms: Counter[str] = Counter()

    def work_of(self, function: bytes) -> Work:
        """The work whose function arrived in a jail."""
        need(function in self.works, f"a jail got a function that nobody sent: {function!r}")
        return self.works[function]

    def begins(self, worker: "SimWorker", jail: "Jail") -> None:
        """User code starts: is the worker still allowed to run it, and has it room?"""
        work, state = jail.work, worker.agent._state
        index = jail.page[1]
        given = jail.feeds[0].given
        wanted = work.input(index + self.bases.get(jail.job, 0))
        need(given.get(index) == wanted, f"work {work.number}/{index}: a wrong input")
        self.runs[work.number, index] += 1
        silent_ms = self.world.now - worker.answered_sent_ms()
        need(
            silent_ms <= state.ttl_ms + LAPSE_SLACK_MS,
            f"{worker.host} begins work {work.number}/{index} {silent_ms} ms after the last report"
            f" that was answered; its ttl is {state.ttl_ms} ms",
        )
        cpus = sum(
            other.work.spec.limits.cpus_milli
            for other in worker.yard.jails.values()
            if other.page[1] >= 0 and other.phase == "ready"
        )
        most = max(worker.cpus_milli, work.spec.limits.cpus_milli)
        if worker.net.was_harsh:
            return  # orders that come twice and late have an old lease run again
        need(cpus <= most, f"{worker.host} runs {cpus} milli-cpus of {worker.cpus_milli}")

    def ends(self, jail: "Jail", index: int, attempt: int, outcome: Outcome) -> None:
        """An attempt ended in its jail."""
        work = jail.work
        self.ended.setdefault((jail.job, index, attempt), {})[outcome] = None
        self.cpu_ms[work.tenant] += work.duration(index)

    def jail_ended(self, jail: "Jail", outcome: Outcome, was_ready: bool) -> None:
        """A jail ended; a subtask may have been in it."""
        if jail.page[1] >= 0:
            self.ends(jail, jail.page[1], jail.attempt, outcome)
        self.deaths[jail.work.number] += 1

    def check_outcome(
        self, work: Work, job: int, index: int, attempt: int, outcome: Outcome
    ) -> None:
        """What a client was told of an attempt is what happened in a jail."""
        name = f"work {work.number} j{job}/{index} attempt {attempt}"
        if outcome in self.ended.get((job, index, attempt), {}):
            return
        need(outcome is not Outcome.OK, f"{name}: ok, and it never ended so")
        if outcome in (Outcome.SIGNAL, Outcome.OOM):
            need(self.deaths[work.number], f"{name}: {outcome.word}, and no jail of it died")
        elif outcome is Outcome.CANCELLED:
            need(work.is_cancel_asked, f"{name}: cancelled, and nobody asked for it")
        elif outcome is Outcome.BUDGET:
            is_ample = work.spec.cap_ucredits >= CAP and not self.is_poor
            need(not is_ample, f"{name}: out of a budget that is ample")
        elif outcome is Outcome.DISPUTED:
            need(work.spec.quorum, f"{name}: disputed without a quorum")
        elif outcome is Outcome.STORE:
            need(work.is_unready, f"{name}: store, and its files are there")
        else:
            need(outcome in _GRID_MADE, f"{name}: {outcome.word}, and it never ended so")


class Promises:
    """What clients were told, for ever: it must stay true whatever crashes."""

    def __init__(self, truth: Truth, told: Callable[[int, bool], bool]) -> None:
        self.truth, self.told = truth, told
        self.jobs: dict[tuple[int, int], int] = {}  # (work, which of its jobs) to job
        self.works: dict[int, Work] = {}  # job to work
        self.results: dict[tuple[int, int], bytes] = {}  # (job, sequence) to its bytes
        self.finals: dict[int, dict[int, tuple[Outcome, int]]] = {}  # job to index
        self.cards: dict[int, JobStatus] = {}
        self.refusals: dict[int, str] = {}
        self.cancelled: dict[int, None] = {}

    def accepted(self, work: Work, part: int, base: int, job: int) -> None:
        """One idempotency key, one job."""
        known = self.jobs.setdefault((work.number, part), job)
        need(known == job, f"work {work.number} was accepted as j{known} and then as j{job}")
        owner = self.works.setdefault(job, work)
        need(owner is work, f"j{job} was accepted for works {owner.number} and {work.number}")
        self.truth.bases[job] = base
        self.told(job, False)

    def refused(self, work: Work, code: str) -> None:
        """A submission was refused for good."""
        known = (work.number, 0) in self.jobs
        need(not known, f"work {work.number}: accepted, then refused: {code}")
        self.refusals[work.number] = code

    def cancel_confirmed(self, job: int) -> None:
        """A cancel of the whole job is on disk: unless it had ended, it cannot end well now."""
        if self.told(job, True):
            self.cancelled[job] = None

    def got(self, work: Work, reading: "Reading", result: Results, frames: list[bytes]) -> None:
        """A result was delivered: the same bytes each time, each index final once, true values."""
        job, name = result.job, f"work {work.number} j{result.job}"
        need(self.works.get(job) is work, f"{name}: a result of another job")
        body = b"".join([msgspec.msgpack.encode(result), *frames])
        known = self.results.setdefault((job, result.sequence), body)
        need(known == body, f"{name}: result {result.sequence} came with other bytes")
        seen = reading.seen.setdefault(job, {})
        finals = self.finals.setdefault(job, {})
        head, base = result.head, self.truth.bases[job]
        meter = unpack_meter(frames[1], head.count)
        values = iter(msgspec.msgpack.decode(frames[0]) if frames[0] else ())
        again: dict[int, None] = {}
        for start, length in result.not_final:
            again.update(dict.fromkeys(range(start, start + length)))
        for offset in range(head.count):
            index, outcome = head.first + offset, Outcome(meter.outcome_at(offset))
            value = next(values) if outcome is Outcome.OK else 0
            need(0 <= index < work.size - base, f"{name}: index {index} of {work.size - base}")
            if offset in again:
                continue
            need(index not in seen, f"{name}: index {index} is final twice")
            seen[index] = None
            self.truth.check_outcome(work, job, index, result.attempt, outcome)
            if outcome is Outcome.OK:
                need(value == work.value(index + base), f"{name}: index {index}: a wrong value")
            before = finals.setdefault(index, (outcome, value))
            need(before == (outcome, value), f"{name}: index {index} ended twice, differently")

    def ended(self, work: Work, reading: "Reading", card: JobStatus) -> None:
        """The final card: every result came before, and its counts are those of the results."""
        job = card.job
        name, finals = f"work {work.number} j{job}", self.finals.get(job, {})
        before = self.cards.setdefault(job, card)
        need(before.state == card.state, f"{name}: {before.state}, then {card.state}")
        need(
            card.state == "cancelled" or job not in self.cancelled,
            f"{name}: cancelled, then {card.state}",
        )
        if not work.spec.keep and reading.sequences[job] < card.results:
            return  # what was acknowledged is freed
        need(len(finals) == card.count, f"{name}: {len(finals)} results of {card.count} subtasks")
        ok = sum(outcome is Outcome.OK for outcome, _ in finals.values())
        need(ok == card.done, f"{name}: {ok} values, the card says {card.done}")

    def finish(self, works: list[Work]) -> None:
        """Everything ended: each work was answered to its end, and none of it is missing."""
        for work in works:
            if work.number in self.refusals:
                continue
            jobs = [job for job, owner in self.works.items() if owner is work]
            need(jobs, f"work {work.number} was never accepted")
            missing = [job for job in jobs if job not in self.cards]
            need(not missing, f"jobs {missing} of work {work.number} never ended for their client")
            states = {self.cards[job].state for job in jobs}
            if states == {"done"} and not work.is_cancel_asked:
                count = sum(self.cards[job].count for job in jobs)
                need(count == work.size, f"work {work.number}: done with {count} of {work.size}")


def audit_books(broker: Disk, ledger: Disk, promises: Promises) -> dict[str, int]:
    """The two files agree with each other and with what clients were told; figures."""
    bills: dict[str, int] = {}
    units: Counter[tuple[str, int, int]] = Counter()
    for ref, attempt, first, count, amount in ledger.rows(
        "SELECT h.ref, c.attempt, c.first, c.count, c.amount"
        " FROM contribution c JOIN hold h ON h.id = c.hold"
    ):
        bills[ref] = bills.get(ref, 0) + amount
        units.update((ref, index, attempt) for index in range(first, first + count))
    twice = [unit for unit, times in units.items() if times > 1]
    need(not twice, f"billed twice: {twice[:3]}")
    ((identity,),) = broker.rows("SELECT value FROM meta WHERE key = 'broker'")
    accepted = 0
    for job, amount in broker.rows(
        "SELECT j.job, ifnull(sum(r.amount_ucredits), 0) FROM jobs j LEFT JOIN results r USING(job)"
        " GROUP BY j.job"
    ):
        ref = f"{identity}/{job}"
        work = promises.works.get(job)
        for (detail,) in broker.rows(
            "SELECT detail FROM events WHERE job = ? AND name = 'result.unpaid'", job
        ):
            amount -= msgspec.json.decode(detail)["amount_ucredits"]
        if work is None or work.spec.keep:  # results of others may be freed
            need(
                bills.get(ref, 0) == amount,
                f"j{job}: results accepted for {amount}, contributions of {bills.get(ref, 0)}",
            )
        accepted += 1
    for job in promises.works:
        need(broker.rows("SELECT 1 FROM jobs WHERE job = ?", job), f"j{job} was acked and is gone")
    for job, sequence in promises.results:
        if promises.works[job].spec.keep:
            found = broker.rows(
                "SELECT 1 FROM results WHERE job = ? AND sequence = ?", job, sequence
            )
            need(found, f"j{job}: result {sequence} was delivered and is gone")
    for job, work in promises.works.items():
        ref = f"{identity}/{job}"
        need(
            bills.get(ref, 0) <= work.spec.cap_ucredits,
            f"j{job}: {bills.get(ref, 0)} billed over its cap {work.spec.cap_ucredits}",
        )
        for index, (outcome, _) in promises.finals.get(job, {}).items():
            if outcome is Outcome.OK:
                is_billed = any(units[ref, index, attempt] for attempt in range(1, 120))
                need(is_billed, f"j{job}/{index}: done and not billed")
    check_sums(ledger)
    (open_holds,) = ledger.rows("SELECT count(*) FROM hold WHERE closed_ms = 0")[0]
    need(not open_holds, f"{open_holds} holds were never released")
    ((left,),) = broker.rows("SELECT count(*) FROM outbox")
    need(not left, f"{left} entries of the outbox never reached the ledger")
    return {"jobs": accepted, "units": len(units)}


def check_sums(ledger: Disk) -> None:
    """Double entry: all accounts together are zero, in what is posted and in what is pending."""
    ((posted, debits, credits),) = ledger.rows(
        "SELECT ifnull(sum(credits - debits), 0), ifnull(sum(debits_pending), 0),"
        " ifnull(sum(credits_pending), 0) FROM account"
    )
    need(posted == 0, f"the sum of all accounts is {posted}")
    need(debits == credits, f"pending: {debits} debits, {credits} credits")
    ((left,),) = ledger.rows("SELECT ifnull(sum(amount - spent), 0) FROM hold WHERE closed_ms = 0")
    need(left == debits, f"open holds have {left} left, accounts hold {debits}")
