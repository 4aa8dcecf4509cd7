"""Bugs to plant in the core, one each: the simulator is worth what it finds of these."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gristmill.broker.core import endings, jobs, on_workers, placement, pricing, results
from gristmill.broker.core.effects import AddToOutbox, RecallLease
from gristmill.broker.core.ready import Ready
from gristmill.broker.core.state import State
from gristmill.broker.core.workers import Worker

Patch = pytest.MonkeyPatch
MUTANTS: dict[str, Callable[[Patch], None]] = {}


def mutant(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
    MUTANTS[plant.__name__] = plant
    return plant


@mutant
def rescued_runs_are_forgotten(patch: Patch) -> None:
    real = Ready.add_first

    def add_first(self: Ready, runs: list, attempt: int, items_max: int = 0) -> None:
        if not items_max:
            real(self, runs, attempt, items_max)

    patch.setattr(Ready, "add_first", add_first)


@mutant
def a_rescued_lease_stays_current(patch: Patch) -> None:
    def rescue(state, lease, is_spent, cause, now_ms, effects) -> None:
        job = lease.job
        for start, length in lease.open:
            job.columns.set_state(start, length, 1)
        job.ready.add_first(list(lease.open), lease.attempt)
        state.enlist(job)

    patch.setattr(on_workers, "rescue", rescue)


@mutant
def a_recalled_run_is_ready_at_once(patch: Patch) -> None:
    real = placement.recall

    def recall(state, now_ms, effects) -> None:
        before = len(effects)
        real(state, now_ms, effects)
        for effect in effects[before:]:
            if isinstance(effect, RecallLease):
                lease = state.leases[effect.lease_id]
                runs, lease.open = lease.open[-1:], lease.open[:-1]
                endings.give_back(state, lease, runs, now_ms, effects)
                if not lease.items:
                    endings.close_lease(state, lease, now_ms)

    patch.setattr(placement, "recall", recall)
    patch.setattr("gristmill.broker.core.on_time.recall", recall)


@mutant
def a_late_result_is_billed(patch: Patch) -> None:
    real = results._supersede

    def supersede(state, event, worker, cause, now_ms, effects) -> None:
        real(state, event, worker, cause, now_ms, effects)
        head = event.head
        entry = results.Contribution(
            f"{state.config.broker}/{head.job}",
            "t0",
            worker.node,
            head.lease_id,
            head.first,
            head.count,
            1,
            head.count,
            0,
            0,
            0,
            0,
            "cgroup",
            False,
            10,
            0,
            0,
        )
        effects.append(AddToOutbox(entry))

    patch.setattr(results, "_supersede", supersede)


@mutant
def the_fence_is_open(patch: Patch) -> None:
    """Results are accepted for whatever is open, under any lease of the job."""
    real = results.on_result

    def on_result(state: State, event, now_ms, effects) -> None:
        worker = state.workers.get(event.worker)
        if worker is not None and event.head.lease_id not in worker.leases:
            for lease in state.leases.values():
                if (
                    lease.job.number == event.head.job
                    and results.find(lease.open, event.head.first, event.head.count) >= 0
                ):
                    worker.leases[event.head.lease_id] = lease
                    break
        real(state, event, now_ms, effects)

    patch.setitem(
        __import__("gristmill.broker.core.step", fromlist=["_HANDLERS"])._HANDLERS,
        results.ResultArrived,
        on_result,
    )


@mutant
def budgets_are_not_counted(patch: Patch) -> None:
    patch.setattr(jobs.Job, "available_ucredits", property(lambda job: job.spec.cap_ucredits))


@mutant
def bills_ignore_the_budget(patch: Patch) -> None:
    def bill(lease, cpu_us, subtasks) -> int:
        return lease.job.tariff.price(cpu_us * 3, subtasks)

    patch.setattr(results, "bill", bill)
    patch.setattr(pricing, "bill", bill)


@mutant
def work_starts_without_a_hold(patch: Patch) -> None:
    real = State.is_dispatchable

    def is_dispatchable(self: State, job) -> bool:
        hold, job.hold = job.hold, "none"
        answer = real(self, job)
        job.hold = hold
        return answer

    patch.setattr(State, "is_dispatchable", is_dispatchable)


@mutant
def capacity_is_not_given_back(patch: Patch) -> None:
    real = endings.close_lease

    def close_lease(state, lease, now_ms) -> None:
        worker = lease.slot.worker
        real(state, lease, now_ms)
        worker.cpus_used += 100

    patch.setattr(endings, "close_lease", close_lease)


@mutant
def capacity_is_not_checked(patch: Patch) -> None:
    patch.setattr(Worker, "has_room_for", lambda *_: True)


@mutant
def a_retry_keeps_its_attempt_number(patch: Patch) -> None:
    real = results._after

    def after(state, worker, lease, not_final, is_cap_reached, now_ms, effects) -> None:
        if not_final:
            lease.job.ready.add_first(not_final, lease.attempt)
        real(state, worker, lease, [], is_cap_reached, now_ms, effects)

    patch.setattr(results, "_after", after)


@mutant
def a_cancel_forgets_what_is_leased(patch: Patch) -> None:
    def give_back(state, lease, runs, now_ms, effects, items_max=0) -> None:
        job, lease.items = lease.job, lease.items - sum(n for _, n in runs)
        job.leased -= sum(n for _, n in runs)
        for start, length in runs:
            job.columns.set_state(start, length, 1)
        job.ready.add_first(runs, lease.attempt, items_max)
        state.enlist(job)

    patch.setattr(endings, "give_back", give_back)


@mutant
def freed_room_is_not_offered(patch: Patch) -> None:
    real = endings.close_lease

    def close_lease(state, lease, now_ms) -> None:
        real(state, lease, now_ms)
        if lease.number % 7 == 0:
            state.dirty_workers.pop(lease.slot.worker.number, None)

    patch.setattr(endings, "close_lease", close_lease)


@mutant
def the_end_is_told_before_the_last_result(patch: Patch) -> None:
    real = results._accept

    def accept(state, event, worker, lease, position, now_ms, effects) -> None:
        before = len(effects)
        real(state, event, worker, lease, position, now_ms, effects)
        effects[before:] = reversed(effects[before:])

    patch.setattr(results, "_accept", accept)


@mutant
def a_restart_loses_retries(patch: Patch) -> None:
    from gristmill.broker.core import recovery

    real = recovery._replay_result

    def replay(state, job, fact, is_ended) -> None:
        if not fact.not_final:
            real(state, job, fact, is_ended)

    patch.setattr(recovery, "_replay_result", replay)
