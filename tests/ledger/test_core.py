"""The ledger's core: one entry in, the exact effects out, and the laws after any sequence."""

import copy
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gristmill.ledger.core import effects as fx
from gristmill.ledger.core import invariants
from gristmill.ledger.core.coverage import Coverage
from gristmill.ledger.core.events import Applied, CreditsFunded, OutboxReceived
from gristmill.ledger.core.ids import outbox_id, outbox_prefix
from gristmill.ledger.core.state import LedgerState
from gristmill.ledger.core.step import digest_of_entry, step
from gristmill.wire.ledger import Contribution, Hold, Release
from gristmill.wire.spec import toll_of

NOW = 1_800_000_000_000


def funded(amount: int = 1_000_000) -> LedgerState:
    state = LedgerState()
    step(state, CreditsFunded("ann", amount, "first"), NOW)
    return state


def post(state: LedgerState, *entries: Any, broker: str = "b") -> list[fx.AnyEffect]:
    first = state.applied.get(broker, 0) + 1
    effects = step(state, OutboxReceived(broker, first, list(entries)), NOW)
    assert invariants.check(state) == []
    return effects


def verdict(effects: list[fx.AnyEffect]) -> tuple[str, str]:
    (ack,) = [effect for effect in effects if isinstance(effect, fx.Acknowledge)]
    assert len(ack.verdicts) == 1
    return ack.verdicts[0].code, ack.verdicts[0].message


def books(state: LedgerState) -> dict[str, tuple[int, int]]:
    return {name: (one.posted, one.debits_pending) for name, one in state.accounts.items()}


def kinds(effects: list[fx.AnyEffect]) -> list[str]:
    return [type(effect).__name__ for effect in effects]


def test_funding_moves_credits_from_world() -> None:
    state = LedgerState()
    effects = step(state, CreditsFunded("ann", 500, "r"), NOW)
    assert kinds(effects) == [
        "OpenAccount",
        "OpenAccount",
        "AddTransfer",
        "AddMint",
        "AnswerOperator",
    ]
    assert books(state) == {"world": (-500, 0), "tenant:ann": (500, 0)}


def test_funding_again_is_a_yes_and_otherwise_a_conflict() -> None:
    state = funded()
    before = books(state)
    again = CreditsFunded("ann", 1_000_000, "first", ("ann", 1_000_000))
    assert step(state, again, NOW) == [fx.AnswerOperator("", "", is_repeat=True)]
    other = CreditsFunded("ann", 2_000_000, "first", ("ann", 1_000_000))
    assert kinds(step(state, other, NOW)) == ["RaiseAlarm", "AnswerOperator"]
    assert books(state) == before


@pytest.mark.parametrize(
    ("tenant", "amount", "ref"), [("", 1, "r"), ("a", 0, "r"), ("a", -1, "r"), ("a", 1 << 61, "r"),
                                  ("a", 1, ""), ("a" * 201, 1, "r")]
)  # fmt: skip
def test_funding_that_is_no_funding(tenant: str, amount: int, ref: str) -> None:
    state = LedgerState()
    (answer,) = step(state, CreditsFunded(tenant, amount, ref), NOW)
    assert isinstance(answer, fx.AnswerOperator)
    assert answer.code == "INVALID_SPEC"
    assert state.accounts == {}


def test_a_hold_reserves_and_a_release_gives_back() -> None:
    state = funded()
    effects = post(state, Hold("b/1", "ann", 300_000))
    assert kinds(effects) == ["OpenAccount", "AddTransfer", "OpenHold", "AddEntry", "Acknowledge"]
    assert verdict(effects) == ("", "")
    assert books(state)["tenant:ann"] == (1_000_000, 300_000)
    effects = post(state, Release("b/1"))
    assert kinds(effects) == ["AddTransfer", "CloseHold", "AddEntry", "Acknowledge"]
    assert effects[0] == fx.AddTransfer(
        3, outbox_id(outbox_prefix("b"), 2, 0), fx.Kind.VOID, 2, 3, 300_000, 2, NOW
    )
    assert books(state)["tenant:ann"] == (1_000_000, 0)


def test_a_contribution_is_two_transfers_out_of_the_hold(entries: Any) -> None:
    state = funded()
    post(state, Hold("b/1", "ann", 300_000))
    effects = post(state, entries.contribution(0, amount=1_000))
    transfers = [effect for effect in effects if isinstance(effect, fx.AddTransfer)]
    assert [(one.kind, one.amount, one.pending) for one in transfers] == [
        (fx.Kind.POST, 970, 2),
        (fx.Kind.POST, 30, 2),
    ]
    assert books(state) == {
        "world": (-1_000_000, 0),
        "tenant:ann": (999_000, 299_000),
        "escrow": (0, 0),
        "node:mill": (970, 0),
        "toll": (30, 0),
    }
    assert kinds(effects)[-3:] == ["AddContribution", "AddEntry", "Acknowledge"]
    assert effects[-1] == fx.Acknowledge("b", 2, [])


def test_a_bill_of_nothing_is_a_row_without_transfers(entries: Any) -> None:
    state = funded()
    post(state, Hold("b/1", "ann", 0))
    effects = post(state, entries.contribution(0, amount=0))
    assert kinds(effects) == ["AddContribution", "AddEntry", "Acknowledge"]
    # of less than 34 micro-credits the toll is nothing
    post(state, Hold("b/2", "ann", 10))
    effects = post(state, entries.contribution(0, amount=10, ref="b/2"))
    assert kinds(effects).count("AddTransfer") == 1


def test_overdraft_is_refused_counting_what_is_held() -> None:
    state = funded(1_000_000)
    post(state, Hold("b/1", "ann", 600_000))
    code, message = verdict(post(state, Hold("b/2", "ann", 400_001)))
    assert code == "INSUFFICIENT_CREDITS"
    assert message == (
        "the cap is 0.400001 credits; tenant ann has 0.4 available (1 less 0.6 held by unfinished "
        "jobs)"
    )
    assert verdict(post(state, Hold("b/3", "ann", 400_000))) == ("", "")
    assert verdict(post(state, Hold("b/4", "nobody", 1)))[0] == "INSUFFICIENT_CREDITS"


@pytest.mark.parametrize(
    "more",
    [{"first": 0}, {"first": 5}, {"first": 9, "count": 1}, {"first": 9, "count": 100},
     {"first": 0, "count": 1, "lease_id": 99}, {"first": 3, "node": "other"}],
)  # fmt: skip
def test_an_overlap_is_refused_whatever_its_id(entries: Any, more: dict[str, Any]) -> None:
    state = funded()
    post(state, Hold("b/1", "ann", 300_000), entries.contribution(0, 10))
    before = books(state)
    effects = post(state, entries.contribution(**more))
    assert kinds(effects) == ["AddEntry", "RaiseAlarm", "Acknowledge"] or kinds(effects) == [
        "RaiseAlarm",
        "AddEntry",
        "Acknowledge",
    ]
    code, message = verdict(effects)
    assert code == "LEDGER_CONFLICT"
    assert "billed already" in message
    assert books(state) == before


@pytest.mark.parametrize("more", [{"attempt": 2}, {"replica": 1}, {"first": 10}])
def test_another_unit_is_no_overlap(entries: Any, more: dict[str, Any]) -> None:
    state = funded()
    post(state, Hold("b/1", "ann", 300_000), entries.contribution(0, 10))
    assert "AddContribution" in kinds(post(state, entries.contribution(**{"first": 0, **more})))


def test_more_than_the_hold_has_is_refused_not_cut(entries: Any) -> None:
    state = funded()
    post(state, Hold("b/1", "ann", 1_500), entries.contribution(0, amount=1_000))
    code, message = verdict(post(state, entries.contribution(10, amount=501)))
    assert code == "LEDGER_CONFLICT"
    assert "0.0005 are left of its 0.0015" in message
    assert "AddContribution" in kinds(post(state, entries.contribution(10, amount=500)))


@pytest.mark.parametrize(
    ("entry", "code"),
    [
        (Hold("b/1", "ann", 5), "LEDGER_CONFLICT"),
        (Hold("b/1", "bob", 300_000), "LEDGER_CONFLICT"),
        (Hold("other/2", "ann", 5), "FORBIDDEN"),
        (Hold("b/" + "9" * 300, "ann", 5), "MALFORMED"),
        (Hold("b/2", "ann", -5), "MALFORMED"),
        (Hold("b/2", "ann", 1 << 62), "MALFORMED"),
        (Hold("b/2", "", 5), "MALFORMED"),
        (Release("other/1"), "FORBIDDEN"),
    ],
)
def test_holds_that_are_refused(entry: Any, code: str) -> None:
    state = funded()
    post(state, Hold("b/1", "ann", 300_000))
    before = books(state)
    effects = post(state, entry)
    assert verdict(effects)[0] == code
    assert kinds(effects) == ["RaiseAlarm", "AddEntry", "Acknowledge"]
    assert books(state) == before


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"ref": "b/404"}, "LEDGER_CONFLICT"),
        ({"ref": "other/1"}, "FORBIDDEN"),
        ({"tenant": "bob"}, "LEDGER_CONFLICT"),
        ({"count": 0}, "MALFORMED"),
        ({"count": -3}, "MALFORMED"),
        ({"first": -1}, "MALFORMED"),
        ({"first": 1 << 63}, "MALFORMED"),
        *[
            ({name: number}, "MALFORMED")
            for name in ("attempt", "replica", "wall_us", "cpu_us", "peak_kib", "ended_ms")
            for number in (-1, 1 << 62)
        ],
        ({"subtasks": 11}, "MALFORMED"),
        ({"failed": 11}, "MALFORMED"),
        ({"amount": -1}, "MALFORMED"),
        ({"toll_ucredits": -1}, "MALFORMED"),
        ({"toll_ucredits": 31}, "MALFORMED"),
        ({"cpu_us": -1}, "MALFORMED"),
        ({"wall_us": 1 << 63}, "MALFORMED"),
        ({"node": ""}, "MALFORMED"),
        ({"signature": b"short"}, "MALFORMED"),
        ({"lease_id": -1}, "MALFORMED"),
    ],
)
def test_contributions_that_are_refused(entries: Any, more: dict[str, Any], code: str) -> None:
    state = funded()
    post(state, Hold("b/1", "ann", 300_000))
    before = books(state)
    effects = post(state, entries.contribution(**{"first": 0, **more}))
    assert verdict(effects)[0] == code
    assert kinds(effects) == ["RaiseAlarm", "AddEntry", "Acknowledge"]
    assert books(state) == before


def test_nothing_is_billed_after_the_release(entries: Any) -> None:
    state = funded()
    post(state, Hold("b/1", "ann", 300_000), Release("b/1"))
    assert verdict(post(state, entries.contribution(0)))[0] == "LEDGER_CONFLICT"
    assert verdict(post(state, Release("b/1")))[0] == "LEDGER_CONFLICT"
    assert verdict(post(state, Hold("b/1", "ann", 300_000)))[0] == "LEDGER_CONFLICT"
    # a job whose hold was refused ends like any other
    assert "RaiseAlarm" not in kinds(post(state, Release("b/9")))


def test_a_repeat_is_answered_and_changes_nothing(entries: Any) -> None:
    state = funded()
    sent = [Hold("b/1", "ann", 300_000), Hold("b/2", "bob", 5), entries.contribution(0)]
    effects = step(state, OutboxReceived("b", 1, sent), NOW)
    stored = {
        effect.sequence: Applied(effect.digest, effect.code, effect.message)
        for effect in effects
        if isinstance(effect, fx.AddEntry)
    }
    before, transfers = books(state), state.transfers
    again = step(state, OutboxReceived("b", 1, sent, stored), NOW + 1)
    assert again == [effect for effect in effects if isinstance(effect, fx.Acknowledge)]
    assert (books(state), state.transfers) == (before, transfers)


def test_the_same_sequence_with_other_content_is_an_alarm(entries: Any) -> None:
    state = funded()
    sent = Hold("b/1", "ann", 300_000)
    post(state, sent)
    stored = {1: Applied(digest_of_entry(sent))}
    other = Hold("b/1", "ann", 300_001)
    before = books(state)
    effects = step(state, OutboxReceived("b", 1, [other], stored), NOW)
    assert kinds(effects) == ["RaiseAlarm", "Acknowledge"]
    assert verdict(effects)[0] == "LEDGER_CONFLICT"
    assert books(state) == before


def test_a_gap_is_not_jumped() -> None:
    state = funded()
    post(state, Hold("b/1", "ann", 1))
    effects = step(state, OutboxReceived("b", 3, [Hold("b/3", "ann", 1)]), NOW)
    assert effects == [fx.Acknowledge("b", 1, [])]
    assert list(state.holds) == ["b/1"]
    effects = step(state, OutboxReceived("b", 0, [Hold("b/3", "ann", 1)]), NOW)
    assert kinds(effects) == ["RaiseAlarm", "Acknowledge"]


def test_brokers_do_not_mix() -> None:
    state = funded()
    post(state, Hold("b/1", "ann", 1))
    post(state, Hold("c/1", "ann", 1), broker="c")
    assert state.applied == {"b": 1, "c": 1}
    assert list(state.holds) == ["b/1", "c/1"]


def test_a_new_field_keeps_the_digests_of_old_entries(entries: Any) -> None:
    class Later(Contribution, tag="contribution", frozen=True):
        colour: str = ""

    Later.__name__ = "Contribution"
    old = entries.contribution(3)
    new = Later(*msgspec.structs.astuple(old))
    assert digest_of_entry(new) == digest_of_entry(old)
    changed = msgspec.structs.replace(new, colour="red")
    assert digest_of_entry(changed) != digest_of_entry(old)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12))))
def test_coverage_is_a_set_of_indices(runs: list[tuple[int, int]]) -> None:
    coverage, model = Coverage(), set[int]()
    for first, count in runs:
        asked = set(range(first, first + count))
        overlap = coverage.take(first, first + count)
        assert (overlap is None) == model.isdisjoint(asked)
        if overlap is None:
            assert coverage.overlap(first, first + count) == (first, first + count)
            model |= asked
        else:
            assert set(range(*overlap)) <= model & asked
    found = [i for s, e in zip(coverage.starts, coverage.ends, strict=True) for i in range(s, e)]
    assert found == sorted(model)
    # melted: no two runs touch
    assert all(e < s for e, s in zip(coverage.ends, coverage.starts[1:], strict=False))


AMOUNTS = st.integers(0, 400)
ENTRIES = st.one_of(
    st.builds(
        Hold, st.sampled_from(["b/1", "b/2", "c/1"]), st.sampled_from(["ann", "bob"]), AMOUNTS
    ),
    st.builds(Release, st.sampled_from(["b/1", "b/2", "b/3"])),
    st.builds(
        lambda job, first, count, attempt, amount: Contribution(
            f"b/{job}", "ann", f"n{first % 3}", 1, first, count, attempt, count, 0, 1, 1, 1, "proc",
            False, amount, toll_of(amount), NOW,
        ),
        st.integers(1, 2), st.integers(0, 20), st.integers(1, 6), st.integers(1, 2), AMOUNTS,
    ),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(ENTRIES, max_size=40))
def test_the_laws_hold_after_any_sequence(sequence: list[Any]) -> None:
    state = funded(1_000)
    billed: set[tuple[str, int, int]] = set()
    paid = 0
    for entry in sequence:
        before = copy.deepcopy(books(state))
        effects = post(state, entry)
        refused = any(effect.verdicts and effect.verdicts[0].code for effect in effects
                      if isinstance(effect, fx.Acknowledge))  # fmt: skip
        if refused:
            assert {name: books(state)[name] for name in before} == before
        for effect in effects:
            if isinstance(effect, fx.AddContribution):
                one = effect.entry
                units = {(one.ref, one.attempt, i) for i in range(one.first, one.first + one.count)}
                assert not units & billed
                billed |= units
                paid += one.amount_ucredits
    got = sum(
        account.posted
        for name, account in state.accounts.items()
        if name == "toll" or name.startswith("node:")
    )
    assert got == paid
