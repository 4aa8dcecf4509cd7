"""Bugs to plant, one each, in the real cores and shells: the simulator is worth what it finds.

Each function plants its bug with pytest's ``monkeypatch``. The first sentence of a docstring says
what somebody forgot.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import apsw
import msgspec
import pytest

from gristmill.broker import app as broker_app
from gristmill.broker import journal as broker_journal
from gristmill.broker.core import (
    endings,
    jobs,
    on_clients,
    pricing,
    recovery,
    results,
)
from gristmill.broker.core import step as broker_step
from gristmill.broker.core.effects import AddToOutbox
from gristmill.broker.core.parcels import Parcels
from gristmill.broker.core.ready import Ready
from gristmill.broker.core.state import State
from gristmill.broker.core.tenants import Tenant
from gristmill.broker.core.workers import Worker
from gristmill.broker.delivery import Delivery
from gristmill.broker.execution import Execution
from gristmill.broker.outbox import Outbox
from gristmill.client.core import results as client_results
from gristmill.client.core import step as client_step
from gristmill.client.core import uploads
from gristmill.ledger import app as ledger_app
from gristmill.ledger.core import step as ledger_step
from gristmill.wire.ledger import Acked, Contribution, Post, Release
from gristmill.worker.core import session, slots

Patch = pytest.MonkeyPatch
MUTANTS: dict[str, Callable[[Patch], None]] = {}


def mutant(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
    """Lists a bug under its name."""
    MUTANTS[plant.__name__] = plant
    return plant


# ---------------------------------------------------------------- what may leave before a commit


@mutant
def acks_leave_before_their_commit(patch: Patch) -> None:
    """Nothing waits for the group that it rests on."""
    patch.setattr(Execution, "when_durable", lambda self, action, can_wait=False: action())


@mutant
def results_leave_before_their_commit(patch: Patch) -> None:
    """A result goes to its reader as soon as it is recorded."""
    real = Delivery.add

    def add(self: Any, flow: Any, sequence: int, frames: list[bytes]) -> None:
        real(self, flow, sequence, frames)
        self.settle(flow, sequence)

    patch.setattr(Delivery, "add", add)


@mutant
def bills_leave_before_their_commit(patch: Patch) -> None:
    """The outbox does not wait for its group."""
    real = Outbox.add

    def add(self: Any, entry: Any) -> None:
        real(self, entry)
        self._on_disk = self.last

    patch.setattr(Outbox, "add", add)


@mutant
def a_group_counts_when_it_is_handed_over(patch: Patch) -> None:
    """The torn tail is taken as good."""
    real = broker_journal.Journal.pump

    def pump(self: Any) -> bool:
        is_done = real(self)
        if self._in_flight is not None:
            is_done = is_done or self.committed < self._in_flight.number
            self.committed = self._in_flight.number
        return is_done

    patch.setattr(broker_journal.Journal, "pump", pump)


@mutant
def a_full_disk_loses_its_group(patch: Patch) -> None:
    """A group that met a full disk is not tried again."""
    real = broker_journal.Journal._write

    def write(self: Any, group: Any) -> bool:
        real(self, group)
        return True

    patch.setattr(broker_journal.Journal, "_write", write)


@mutant
def an_error_of_the_disk_is_ignored(patch: Patch) -> None:
    """A write that failed for good counts as written."""
    real = broker_journal.Journal._write

    def write(self: Any, group: Any) -> bool:
        try:
            return real(self, group)
        except apsw.IOError:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            return True

    patch.setattr(broker_journal.Journal, "_write", write)


# ---------------------------------------------------------------- restarts


@mutant
def a_restart_forgets_the_outbox(patch: Patch) -> None:
    """What was not acked when the broker died is never sent."""
    real = broker_app.recover

    def recover(*arguments: Any) -> Any:
        found = real(*arguments)
        return dataclasses.replace(found, outbox_acked=found.outbox_last)

    patch.setattr(broker_app, "recover", recover)


@mutant
def a_restart_forgets_to_queue(patch: Patch) -> None:
    """What was open when the broker died is not handed out again."""
    patch.setattr(recovery, "_restore_ready", lambda *_: None)


@mutant
def a_restart_loses_retries(patch: Patch) -> None:
    """Results that are to be tried again are not replayed."""
    real = recovery._replay_result

    def replay(state: Any, job: Any, fact: Any, is_ended: bool) -> None:
        if not fact.not_final:
            real(state, job, fact, is_ended)

    patch.setattr(recovery, "_replay_result", replay)


@mutant
def a_restart_uses_its_old_number(patch: Patch) -> None:
    """Lease ids of two lives are alike."""
    real = broker_journal._begin_incarnation
    patch.setattr(broker_journal, "_begin_incarnation", lambda db: (real(db)[0], 1))


@mutant
def a_cancel_is_not_recorded(patch: Patch) -> None:
    """After a restart the job goes on."""
    real = Execution._record_event

    def record(self: Any, effect: Any) -> None:
        if effect.name != "cancel.asked":
            real(self, effect)

    patch.setattr(Execution, "_record_event", record)


# ---------------------------------------------------------------- leases and results


@mutant
def rescued_runs_are_forgotten(patch: Patch) -> None:
    """The work of a lost worker is not queued again."""
    real = Ready.add_first

    def add_first(self: Ready, runs: Any, attempt: int, items_max: int = 0) -> None:
        if not items_max:
            real(self, runs, attempt, items_max)

    patch.setattr(Ready, "add_first", add_first)


@mutant
def silence_expires_nothing(patch: Patch) -> None:
    """A worker that is gone keeps its leases."""
    patch.setattr("gristmill.broker.core.on_time.expire", lambda *_: None)


@mutant
def the_fence_is_open(patch: Patch) -> None:
    """Results count for whatever is open, under any lease of the job."""
    real = results.on_result

    def on_result(state: State, event: Any, now_ms: int, effects: Any) -> None:
        worker, head = state.workers.get(event.worker), event.head
        if worker is not None and head.lease_id not in worker.leases:
            for lease in state.leases.values():
                is_open = results.find(lease.open, head.first, head.count) >= 0
                if lease.job.number == head.job and is_open:
                    worker.leases[head.lease_id] = lease
                    break
        real(state, event, now_ms, effects)

    patch.setitem(broker_step._HANDLERS, results.ResultArrived, on_result)


@mutant
def a_late_result_is_billed(patch: Patch) -> None:
    """A superseded result costs money."""
    real = results._supersede

    def supersede(
        state: Any, event: Any, worker: Any, cause: str, now_ms: int, effects: Any
    ) -> None:
        real(state, event, worker, cause, now_ms, effects)
        head = event.head
        entry = Contribution(
            f"{state.config.broker}/{head.job}", "t0", worker.node, head.lease_id, head.first,
            head.count, 1, head.count, 0, 0, 0, 0, "cgroup", False, 10, 0, 0,
        )  # fmt: skip
        effects.append(AddToOutbox(entry))

    patch.setattr(results, "_supersede", supersede)


@mutant
def a_retry_keeps_its_attempt_number(patch: Patch) -> None:
    """Two attempts of a subtask are told apart by nothing."""
    real = results._after

    def after(
        state: Any, worker: Any, lease: Any, not_final: Any, is_cap: bool, now_ms: int, effects: Any
    ) -> None:
        if not_final:
            lease.job.ready.add_first(not_final, lease.attempt)
        real(state, worker, lease, [], is_cap, now_ms, effects)

    patch.setattr(results, "_after", after)


@mutant
def the_end_is_told_before_the_last_result(patch: Patch) -> None:
    """A final card overtakes a result."""
    real = results._accept

    def accept(
        state: Any, event: Any, worker: Any, lease: Any, at: int, now_ms: int, effects: Any
    ) -> None:
        before = len(effects)
        real(state, event, worker, lease, at, now_ms, effects)
        effects[before:] = reversed(effects[before:])

    patch.setattr(results, "_accept", accept)


@mutant
def a_parcel_behind_a_gap_is_taken(patch: Patch) -> None:
    """Inputs that were lost on the way are not missed."""
    real = on_clients._parcel_fault

    def fault(state: Any, job: Any, event: Any) -> Any:
        found = real(state, job, event)
        return None if found and found[0] == "PARCEL_ORDER" else found

    patch.setattr(on_clients, "_parcel_fault", fault)


@mutant
def a_second_submission_is_a_second_job(patch: Patch) -> None:
    """Idempotency keys are forgotten."""
    real = on_clients.on_job_submitted

    def submitted(state: State, event: Any, now_ms: int, effects: Any) -> None:
        state.submissions.clear()
        event = msgspec.structs.replace(event, known=None)
        real(state, event, now_ms, effects)

    patch.setitem(broker_step._HANDLERS, on_clients.JobSubmitted, submitted)


@mutant
def a_cancel_forgets_what_is_leased(patch: Patch) -> None:
    """What comes back to a cancelled job is queued again."""

    def give_back(
        state: Any, lease: Any, runs: Any, now_ms: int, effects: Any, items_max: int = 0
    ) -> None:
        job, count = lease.job, sum(length for _, length in runs)
        lease.items -= count
        job.leased -= count
        for start, length in runs:
            job.columns.set_state(start, length, 1)
        job.ready.add_first(runs, lease.attempt, items_max)
        state.enlist(job)

    patch.setattr(endings, "give_back", give_back)


# ---------------------------------------------------------------- capacity and money


@mutant
def capacity_is_not_given_back(patch: Patch) -> None:
    """Each lease that ends leaves a little less room."""
    real = endings.close_lease

    def close_lease(state: Any, lease: Any, now_ms: int) -> None:
        worker = lease.slot.worker
        real(state, lease, now_ms)
        worker.cpus_used += 100

    patch.setattr(endings, "close_lease", close_lease)


@mutant
def capacity_is_not_checked(patch: Patch) -> None:
    """A worker gets more than it has room for."""
    patch.setattr(Worker, "has_room_for", lambda *_: True)


@mutant
def freed_room_is_not_offered(patch: Patch) -> None:
    """Waiting work and an idle slot stay side by side."""
    real = endings.close_lease

    def close_lease(state: Any, lease: Any, now_ms: int) -> None:
        real(state, lease, now_ms)
        if lease.number % 7 == 0:
            state.dirty_workers.pop(lease.slot.worker.number, None)

    patch.setattr(endings, "close_lease", close_lease)


@mutant
def inputs_leave_too_early(patch: Patch) -> None:
    """A parcel leaves when the first of its subtasks has ended."""
    real = Parcels.whole_before

    def whole_before(parcels: Any, upto: int) -> tuple[int, int]:
        later = next((end for end in parcels.ends if end > upto), upto) if upto else 0
        return real(parcels, later)

    patch.setattr(Parcels, "whole_before", whole_before)


@mutant
def budgets_are_not_counted(patch: Patch) -> None:
    """Each lease may spend the whole cap."""
    patch.setattr(jobs.Job, "available_ucredits", property(lambda job: job.spec.cap_ucredits))


@mutant
def bills_ignore_the_budget(patch: Patch) -> None:
    """A bill is what was used, whatever was held."""

    def bill(lease: Any, cpu_us: int, wall_us: int, subtasks: int) -> int:
        return int(lease.tariff.price(cpu_us * 3, subtasks))

    patch.setattr(results, "bill", bill)
    patch.setattr(pricing, "bill", bill)


@mutant
def work_starts_without_a_hold(patch: Patch) -> None:
    """Nobody waits for the ledger."""
    real = State.is_dispatchable

    def is_dispatchable(self: State, job: Any) -> bool:
        hold, job.hold = job.hold, "none"
        answer = real(self, job)
        job.hold = hold
        return answer

    patch.setattr(State, "is_dispatchable", is_dispatchable)


@mutant
def a_hold_is_never_released(patch: Patch) -> None:
    """The rest of a cap stays held when its job has ended."""
    real = Outbox.add

    def add(self: Any, entry: Any) -> None:
        if not isinstance(entry, Release):
            real(self, entry)

    patch.setattr(Outbox, "add", add)


@mutant
def the_outbox_is_sent_once(patch: Patch) -> None:
    """What the ledger did not ack is not sent again."""
    patch.setattr(Outbox, "rewind", lambda self: None)


@mutant
def a_verdict_is_not_waited_for(patch: Patch) -> None:
    """An ack without a hold's verdict counts for the hold."""
    real = Outbox.acknowledge

    def acknowledge(self: Any, upto: int, answered: Any) -> None:
        self._holds.clear()
        real(self, upto, answered)

    patch.setattr(Outbox, "acknowledge", acknowledge)


@mutant
def the_ledger_applies_twice(patch: Patch) -> None:
    """An entry that comes again is posted again."""
    real = ledger_step.on_outbox_received

    def received(state: Any, event: Any, now_ms: int, effects: Any) -> None:
        before = state.applied.get(event.broker, 0)
        state.applied[event.broker] = min(before, event.first - 1)
        real(state, event, now_ms, effects)

    patch.setattr(ledger_step, "on_outbox_received", received)


@mutant
def the_ledger_posts_one_side_more(patch: Patch) -> None:
    """A posting is not balanced."""
    real = ledger_step._share_out

    def share_out(state: Any, hold: Any, node: str, amount: int, *rest: Any) -> Any:
        transfers = real(state, hold, node, amount, *rest)
        if amount % 7 == 0 and (account := state.accounts.get(node)):
            account.credits += 1
        return transfers

    patch.setattr(ledger_step, "_share_out", share_out)


@mutant
def the_ledger_acks_before_its_commit(patch: Patch) -> None:
    """An ack says what may never be on disk."""
    real = ledger_app.Ledger._apply

    def apply(self: Any, posts: Any) -> None:
        for peer, post in posts:
            applied = self.book.state.applied.get(post.broker, 0) if isinstance(post, Post) else 0
            if isinstance(post, Post) and post.first <= applied + 1:
                self._send(peer, Acked(post.broker, post.first + len(post.entries) - 1))
        real(self, posts)

    patch.setattr(ledger_app.Ledger, "_apply", apply)


# ---------------------------------------------------------------- workers


@mutant
def a_worker_does_not_lapse(patch: Patch) -> None:
    """Cut off, it runs on."""
    patch.setattr(session, "_lapse", lambda state, now_ms: [])
    patch.setattr("sim_worker.SimYard.run_until", lambda self, until_ms: None)


@mutant
def a_slot_that_stands_still_is_renewed(patch: Patch) -> None:
    """Whatever has leases counts as alive, and nothing is ended for standing still."""
    patch.setattr(slots, "is_alive", lambda state, slot, now_ms: bool(slot.leases))
    patch.setattr(slots, "_hung", lambda slot, how, now_ms: [])


# ---------------------------------------------------------------- clients


@mutant
def a_client_says_nothing_again(patch: Patch) -> None:
    """A request whose answer was lost waits for ever."""
    patch.setattr(client_step, "_resend", lambda state, now_ms, todo: 1 << 62)


@mutant
def a_client_takes_a_result_twice(patch: Patch) -> None:
    """What comes again is handed on again."""
    real = client_results.on_results

    def on_results(state: Any, result: Any, frames: Any, now_ms: int, todo: Any) -> None:
        subscription = state.subscriptions.get(result.job)
        if subscription is not None and result.sequence == subscription.after:
            subscription.after -= 1
        real(state, result, frames, now_ms, todo)

    patch.setattr(client_results, "on_results", on_results)


@mutant
def a_close_behind_a_gap_is_lost(patch: Patch) -> None:
    """A CloseUpload that overtook a parcel is not said again."""
    patch.setattr(uploads, "on_close_refused", uploads.on_parcel_refused)


@mutant
def the_upload_of_an_ended_job_waits(patch: Patch) -> None:
    """A script that says the key of a job that has ended never ends its upload."""
    patch.setattr(uploads, "_ask_count", lambda *_: None)


# ---------------------------------------------------------------- found by the hog, see test_hog.py


def fair_share_is_ignored(patch: Patch) -> None:
    """What a tenant has used does not count."""
    patch.setattr(Tenant, "charge", lambda self, us: None)


__all__ = ["MUTANTS", "fair_share_is_ignored"]
