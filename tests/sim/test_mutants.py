"""Bugs that somebody plants must be found: what the simulator has to show for itself."""

import itertools
import logging
import time
from collections.abc import Iterator

import pytest
import sim_mutants
from sim_grid import FAULTS, Grid, draw_settings
from sim_world import World

SEEDS_MAX = 1_000

#: Where a search found each bug, so that CI need not search. ``make release-check`` begins at 0,
#: and so does CI when a change of the product or of the simulator has moved it.
FOUND_AT: dict[str, int] = {
    "a_cancel_forgets_what_is_leased": 25,
    "a_cancel_is_not_recorded": 234,
    "a_client_says_nothing_again": 80,
    "a_client_takes_a_result_twice": 8,
    "a_close_behind_a_gap_is_lost": 12,
    "a_full_disk_loses_its_group": 22,
    "a_group_counts_when_it_is_handed_over": 16,
    "a_hold_is_never_released": 0,
    "a_late_result_is_billed": 2,
    "a_parcel_behind_a_gap_is_taken": 6,
    "a_restart_forgets_the_outbox": 5,
    "a_restart_forgets_to_queue": 2,
    "a_restart_loses_retries": 47,
    "a_restart_uses_its_old_number": 2,
    "a_retry_keeps_its_attempt_number": 6,
    "a_second_submission_is_a_second_job": 2,
    "a_slot_that_stands_still_is_renewed": 59,
    "a_verdict_is_not_waited_for": 3,
    "a_worker_does_not_lapse": 23,
    "acks_leave_before_their_commit": 6,
    "an_error_of_the_disk_is_ignored": 7,
    "bills_ignore_the_budget": 2,
    "bills_leave_before_their_commit": 35,
    "budgets_are_not_counted": 2,
    "capacity_is_not_checked": 2,
    "capacity_is_not_given_back": 0,
    "freed_room_is_not_offered": 3,
    "inputs_leave_too_early": 18,
    "rescued_runs_are_forgotten": 0,
    "results_leave_before_their_commit": 2,
    "silence_expires_nothing": 50,
    "the_end_is_told_before_the_last_result": 2,
    "the_fence_is_open": 0,
    "the_ledger_acks_before_its_commit": 123,
    "the_ledger_applies_twice": 8,
    "the_ledger_posts_one_side_more": 2,
    "the_outbox_is_sent_once": 3,
    "the_upload_of_an_ended_job_waits": 5,
    "work_starts_without_a_hold": 0,
}

#: Faults without which a bug hardly shows: where its seed has moved, seeds with them come first.
NEEDS: dict[str, set[str]] = {
    "a_cancel_is_not_recorded": {"broker crash", "steer"},
    "a_slot_that_stands_still_is_renewed": {"jail trouble"},
    "bills_leave_before_their_commit": {"broker crash"},
    "silence_expires_nothing": {"worker crash"},
}

END_MS = 60_000  #: after the heal; a few seeds need longer, and are not used here


def broken(seed: int) -> str:
    """What a seed finds, in one line, or nothing."""
    try:
        Grid(seed, end_ms=END_MS).run()
    except Exception as error:  # a planted bug may break the product itself, too
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return ""


def likely(mutant: str) -> Iterator[int]:
    """Where the bug was found, then seeds whose faults may show it."""
    if mutant in FOUND_AT:
        yield FOUND_AT[mutant]
    if mutant in NEEDS:
        for seed in range(SEEDS_MAX):
            if NEEDS[mutant] <= draw_settings(World(seed)).faults.keys():
                yield seed


@pytest.mark.parametrize("mutant", sorted(sim_mutants.MUTANTS))
def test_a_planted_bug_is_found(mutant, monkeypatch, sized, figures) -> None:
    logging.disable(logging.CRITICAL)
    began = time.monotonic()
    try:
        hints = likely(mutant) if sized(1, 0) else []
        for seed in itertools.chain(hints, range(SEEDS_MAX)):
            with monkeypatch.context() as patch:
                sim_mutants.MUTANTS[mutant](patch)
                told = broken(seed)
            if told and not broken(seed):  # by the bug alone
                figures(found_at=seed, by=told[:80], seconds=round(time.monotonic() - began, 1))
                return
    finally:
        logging.disable(logging.NOTSET)
    pytest.fail(f"{SEEDS_MAX} seeds did not find {mutant}")


def test_there_is_a_bug_for_each_way_of_recovery() -> None:
    assert len(sim_mutants.MUTANTS) >= 30
    assert FOUND_AT.keys() | NEEDS.keys() <= sim_mutants.MUTANTS.keys()
    assert set().union(*NEEDS.values()) <= FAULTS.keys()
