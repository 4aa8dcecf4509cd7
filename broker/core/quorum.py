"""What becomes of a result of a job with a quorum, and of the node that made it.

The rule is that of BOINC (https://github.com/BOINC/boinc/wiki/AdaptiveReplication): a node of which
``TRUSTED_AFTER`` results in a row were confirmed is checked with probability 1 / (confirmed in a
row), every other one always. Only what another owner's replica confirmed counts, not what was taken
unchecked: else the sample would shrink by trust alone; and it never shrinks below one in
``STREAK_MAX``, which is about how many lies a patient liar gets through in its life.

A node whose value an equal majority of distinct owners contradicts goes into *quarantine*: its
leases are taken away, what of it is undecided is discarded unpaid, and it gets nothing until an
operator releases it. One job can accuse a third of the owners that voted in it, at least one:
where more disagree it is the function that cannot be compared (a clock, a random number), and a
tenant must not be able to empty the grid with it. Beyond that a result is unpaid, and its node
checked anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gristmill.broker.core import endings
from gristmill.broker.core import journal_names as names
from gristmill.broker.core.checks import STREAK_MAX, Check, Standing, Vote, settle
from gristmill.broker.core.columns import ATTEMPT_MAX, DONE, FAILED
from gristmill.broker.core.effects import AnyEffect, KeepStanding, RecordEvent, StopLease
from gristmill.broker.core.events import NodeReleased, NodeShut
from gristmill.broker.core.on_workers import join_pool, leave_pool, rescue
from gristmill.broker.core.runs import intersect, normalise
from gristmill.wire.outcome import OWN_DOING, Outcome

if TYPE_CHECKING:
    from gristmill.broker.core.jobs import Job
    from gristmill.broker.core.leases import Lease
    from gristmill.broker.core.state import State
    from gristmill.broker.core.workers import Worker
    from gristmill.wire.worker import Run

Detail = dict[str, "str | int | list[Run]"]
_ACCUSED_SHARE = 3  #: one job accuses at most this fraction of its owners, and at least one
_OWN = frozenset(int(outcome) for outcome in OWN_DOING)

# what becomes of a result
TAKEN = "taken"  #: unchecked, from a trusted node
DECIDED = "decided"  #: with it as many are equal as must be
WRONG = "wrong"  #: the value of a canary is another
HELD = "held"  #: another replica is wanted
SPLIT = "split"  #: no value can get a quorum any more
UNWANTED = "unwanted"  #: it would be held, and its job or subtask is being cancelled


def is_vote(outcome: int) -> bool:
    """Whether a subtask that ended so says something about its function, not about the grid."""
    return outcome in _OWN


def standing_of(state: State, node: str) -> Standing:
    """What is known of a node; made at its first result."""
    return state.standings.setdefault(node, Standing())


def rule(state: State, lease: Lease, index: int, outcome: int, digest: bytes, dice: int) -> str:
    """What becomes of this result; changes nothing."""
    job, check = lease.job, lease.job.check
    assert check is not None
    if check.canary is not None:
        is_right = outcome == Outcome.OK and digest == check.canary.digest
        return DECIDED if is_right else WRONG
    votes = check.votes.get(index, ())
    if not votes and check.is_adaptive:
        node = lease.slot.worker.node
        standing = state.standings.get(node)
        is_trusted = standing is not None and standing.is_trusted and not check.is_doubted(node)
        if is_trusted and standing is not None and not standing.is_sampled(dice):
            return TAKEN
    equal = 1 + sum(vote.is_equal(outcome, digest) for vote in votes)
    if equal >= check.equal:
        return DECIDED
    others = [sum(vote.is_equal(o.outcome, o.digest) for vote in votes) for o in votes]
    left = min(check.most, ATTEMPT_MAX - lease.attempt + len(votes) + 1) - len(votes) - 1
    if max(equal, *others, 0) + left < check.equal:
        return SPLIT
    if job.ending is not None or intersect([(index, 1)], job.cancelling):
        return UNWANTED
    return HELD


def hold(job: Job, index: int, vote: Vote) -> None:
    """Another replica is wanted: the result waits for it."""
    check = job.check
    assert check is not None
    check.replicas += index in check.votes
    check.add(index, vote)


def decide(
    state: State,
    lease: Lease,
    index: int,
    outcome: int,
    digest: bytes,
    now_ms: int,
    effects: list[AnyEffect],
) -> list[tuple[str, str]]:
    """The subtask ends with this result: equal ones are paid, others are not.

    Returns (node, cause) of those that are to go into quarantine, once this step is done with the
    lease.
    """
    job, check, worker = lease.job, lease.job.check, lease.slot.worker
    assert check is not None
    votes = check.pop(index)
    check.owners[worker.owner] = None
    check.replicas += bool(votes)
    settle(job, [vote for vote in votes if vote.is_equal(outcome, digest)], True, effects)
    wrong = [vote for vote in votes if not vote.is_equal(outcome, digest)]
    settle(job, wrong, False, effects)
    if votes:
        _confirm(state, worker.node, effects)
    for vote in votes:
        if vote not in wrong:
            _confirm(state, vote.node, effects)
    accused = []
    for vote in wrong:
        _tell_unpaid(job, vote, [(index, 1)], vote.amount_ucredits, "outvoted", now_ms, effects)
        name = f"j{job.number}/{index}"
        if outcome == vote.outcome == Outcome.OK and _may_accuse(check, vote.owner):
            check.accused[vote.owner] = None
            cause = f"its result of {name} differs from {check.equal} equal ones of other owners"
            accused.append((vote.node, cause))
        else:
            standing = standing_of(state, vote.node)
            standing.streak = 0
            effects.append(KeepStanding(vote.node, 0, standing.cause))
    return accused


def _may_accuse(check: Check, owner: str) -> bool:
    most = max(1, len(check.owners) // _ACCUSED_SHARE)
    return owner in check.accused or len(check.accused) < most


def _confirm(state: State, node: str, effects: list[AnyEffect]) -> None:
    standing = standing_of(state, node)
    if standing.streak < STREAK_MAX and not standing.cause:
        standing.streak += 1
        effects.append(KeepStanding(node, standing.streak, standing.cause))


def _tell_unpaid(
    job: Job,
    vote: Vote,
    runs: list[Run],
    amount: int,
    cause: str,
    now_ms: int,
    effects: list[AnyEffect],
) -> None:
    detail: Detail = {
        "node": vote.node,
        "owner": vote.owner,
        "lease": vote.lease,
        "runs": runs,
        "amount_ucredits": amount,
        "cause": cause,
    }
    effects.append(RecordEvent(job.number, names.RESULT_UNPAID, detail, now_ms))


def end_canary(
    state: State, lease: Lease, index: int, is_right: bool, now_ms: int, effects: list[AnyEffect]
) -> list[tuple[str, str]]:
    """The node has answered: the job is over. Returns who goes into quarantine, as ``decide``."""
    job, node = lease.job, lease.slot.worker.node
    detail: Detail = {"node": node, "is_right": int(is_right)}
    effects.append(RecordEvent(job.number, names.CANARY_ENDED, detail, now_ms))
    if is_right:
        return []
    cause = f"its answer to j{job.number}, whose value is known, is wrong"
    run = [(index, 1)]
    endings.end_runs(
        state, job, run, Outcome.DISPUTED, lease.attempt, now_ms, effects, message=cause
    )
    return [(node, cause)]


def split(
    state: State,
    lease: Lease,
    index: int,
    outcome: int,
    digest: bytes,
    now_ms: int,
    effects: list[AnyEffect],
) -> None:
    """No value can get a quorum: the subtask ends as DISPUTED, and whoever worked is paid."""
    job, check = lease.job, lease.job.check
    assert check is not None
    votes = check.votes.get(index, [])
    check.disputed += 1
    check.replicas += bool(votes)
    kinds = {(outcome, digest), *((vote.outcome, vote.digest) for vote in votes)}
    told = f"{len(votes) + 1} replicas gave {len(kinds)} different results"
    message = (
        f"{told}; the quorum is {check.equal} equal of {check.most}: does the function give the"
        " same bytes wherever it runs?"
    )
    for vote in votes:
        standing = standing_of(state, vote.node)
        standing.streak = 0
        effects.append(KeepStanding(vote.node, 0, standing.cause))
    run = [(index, 1)]
    endings.end_runs(
        state, job, run, Outcome.DISPUTED, lease.attempt, now_ms, effects, message=message
    )


def finish(job: Job, index: int, outcome: int, attempt: int, message: str) -> None:
    """The subtask ends as its result says."""
    if outcome == Outcome.OK:
        job.columns.finish(index, 1, DONE, attempt, job.is_closed)
        job.done += 1
        return
    job.columns.finish(index, 1, FAILED, attempt, job.is_closed)
    job.failed += 1
    job.note_error(Outcome(outcome), message, index, 1)


# ---------------------------------------------------------------- quarantine


def quarantine(state: State, node: str, cause: str, now_ms: int, effects: list[AnyEffect]) -> None:
    """The node gets nothing until it is released, and nothing for what is not decided."""
    standing = standing_of(state, node)
    if standing.cause:
        return
    standing.streak, standing.cause = 0, cause
    effects.append(KeepStanding(node, 0, cause))
    workers = [worker for worker in state.workers.values() if worker.node == node]
    detail: Detail = {"node": node, "cause": cause}
    if workers:
        detail["name"] = workers[0].name
    name = names.NODE_ON_TRIAL if standing.is_on_trial else names.NODE_QUARANTINED
    effects.append(RecordEvent(0, name, detail, now_ms))
    for job in list(state.jobs.values()):
        if job.check is not None and job.check.votes:
            _discard(state, job, node, now_ms, effects)
    for worker in workers:
        _shut(state, worker, now_ms, effects)


def _discard(state: State, job: Job, node: str, now_ms: int, effects: list[AnyEffect]) -> None:
    """Votes of a node that are not decided: nobody is paid for them, and they decide nothing."""
    check = job.check
    assert check is not None
    found = [(index, vote) for index, vote in check.all_votes() if vote.node == node]
    if not found:
        return
    for index, vote in found:
        for other in check.pop(index):
            if other is not vote:
                check.add(index, other)
    gone = [vote for _, vote in found]
    settle(job, gone, False, effects)
    runs = normalise([(index, 1) for index, _ in found], job.uploaded)
    amount = sum(vote.amount_ucredits for vote in gone)
    _tell_unpaid(job, gone[0], runs, amount, "its node is in quarantine", now_ms, effects)
    state.changed[job.number] = None
    state.enlist(job)


def _shut(state: State, worker: Worker, now_ms: int, effects: list[AnyEffect]) -> None:
    worker.is_quarantined = True
    for slot in worker.slots:
        state.index_slot(slot)
    leave_pool(state, worker)
    for slot in worker.slots:
        for lease in reversed(list(slot.leases)):
            effects.append(StopLease(worker.number, lease.number, int(Outcome.LOST)))
            rescue(state, lease, False, "its node is in quarantine", now_ms, effects)


def on_node_shut(state: State, event: NodeShut, now_ms: int, effects: list[AnyEffect]) -> None:
    """The registry decided it; what the node was shut for before is no longer why."""
    standing = standing_of(state, event.node)
    if not standing.cause:
        quarantine(state, event.node, event.cause, now_ms, effects)
    elif standing.cause != event.cause:
        standing.cause = event.cause
        effects.append(KeepStanding(event.node, 0, event.cause))


def on_node_released(
    state: State, event: NodeReleased, now_ms: int, effects: list[AnyEffect]
) -> None:
    """The node is trusted with work, or is again: checked from the beginning."""
    standing = state.standings.get(event.node)
    if standing is None or not standing.cause:
        return
    standing.cause, standing.streak = "", 0
    effects.append(KeepStanding(event.node, 0, ""))
    detail: Detail = {"node": event.node}
    effects.append(RecordEvent(0, names.NODE_RELEASED, detail, now_ms))
    for worker in state.workers.values():
        if worker.node == event.node and worker.is_quarantined:
            worker.is_quarantined = False
            if not worker.is_draining:
                join_pool(state, worker)
            for slot in worker.slots:
                state.index_slot(slot)
            state.dirty_workers[worker.number] = None
