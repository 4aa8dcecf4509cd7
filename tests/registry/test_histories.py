"""Random histories with restarts, judged by a checker that knows the log and not the code."""

import random
from collections import Counter
from collections.abc import Callable

import pytest
from desk_rig import Desk, key_of

from gristmill.broker.registry.core import decisions, enrolling
from gristmill.broker.registry.core.records import AnswerRow, Policy
from gristmill.broker.registry.core.table import ACTS, TABLE

NAMES = ("a", "b", "c")


def play(seed: int, steps: int = 120) -> Desk:
    """One history. Every decision that is answered with a change is counted."""
    dice = random.Random(seed)
    desk = Desk(Policy(approvals=dice.choice((1, 1, 2)), pending_ttl_ms=200_000))
    tokens = [desk.token("a")]
    seen: dict[str, int] = {}
    done: Counter[str] = Counter()
    for _ in range(steps):
        name = dice.choice(NAMES)
        choice = dice.random()
        if choice < 0.15:
            rows = [row for row in desk.rows.values() if row.principal.name == name]
            is_rotation = bool(rows) and dice.random() < 0.3
            try:
                tokens.append(desk.token(name, is_rotation=is_rotation))
            except AssertionError:
                assert is_rotation
        elif choice < 0.4:
            token = dice.choice(tokens[-4:])
            holder = desk.state.nodes.get(desk.tokens[token].name, "")
            desk.enrol(
                token,
                key_of(dice.randrange(8)),
                desk.tokens[token].name,
                is_proven=dice.random() < 0.8,
                replaces=dice.choice(("", holder)),
            )
        elif choice < 0.85:
            row = next((row for row in desk.rows.values() if row.principal.name == name), None)
            if row is None:
                continue
            public = row.principal.public
            if dice.random() < 0.6:
                seen[public] = row.principal.version
            act = dice.choice([act for act in ACTS if act not in ("enrol", "expire", "rotate")])
            answer = desk.decide(
                act, public, seen.get(public, 1), dice.choice(("ann", "bob")), reason="r"
            )
            if isinstance(answer, AnswerRow) and not answer.is_repeat:
                done[public] += 1
        elif choice < 0.95:
            desk.tick(dice.choice((0, 1_000, 20_000, 100_000)))
        else:
            before = desk.state
            desk.restart()
            assert list(desk.state.rows) == list(before.rows)
            assert (desk.state.nodes, desk.state.open_tokens) == (before.nodes, before.open_tokens)
        check(desk)
    told = Counter(record.subject for record in desk.log if record.by in ("ann", "bob"))
    own = [record for record in desk.log if record.act in ("rotate", "token", "rotate-token")]
    own += [record for record in desk.log if record.act.startswith("token-")]
    told.subtract(record.subject for record in own if record.by in ("ann", "bob"))
    assert +told == done  # whoever was told of a change has his record, nobody else has one
    return desk


def check(desk: Desk) -> None:
    """What must hold at any time, told from the disk alone."""
    assert [record.number for record in desk.log] == list(range(1, len(desk.log) + 1))
    last: dict[str, tuple[int, str]] = {}
    moved: dict[str, list[int]] = {}
    for record in desk.log:
        was = last.get(record.subject, (0, "-"))
        assert (record.version_before, record.state_before) == was, record
        assert record.version_after - record.version_before in (0, 1), record
        last[record.subject] = record.version_after, record.state_after
        if record.state_before != record.state_after and record.subject[:6] != "token:":
            assert record.version_after == record.version_before + 1, record
            is_rotated = record.act == "rotate" and record.state_before == "-"
            assert is_rotated or TABLE[record.state_before][record.act] == record.state_after
            assert record.state_before != "banned"
        if record.version_after != record.version_before:
            moved.setdefault(record.subject, []).append(record.version_after)
    for versions in moved.values():  # of each version there is one change: one winner
        assert versions == list(range(1, len(versions) + 1))
    holders = Counter(
        row.principal.name
        for row in desk.rows.values()
        if row.principal.state not in ("rejected", "expired", "banned", "revoked")
    )
    assert all(count == 1 for count in holders.values()), holders
    assert {row.principal.public for row in desk.rows.values()} == set(moved)
    for row in desk.rows.values():
        assert last[row.principal.public] == (row.principal.version, row.principal.state)
    opened = Counter(token.name for token in desk.tokens.values() if token.state == "open")
    assert all(count == 1 for count in opened.values())
    used = Counter(token.digest for token in desk.tokens.values() if token.used_by)
    assert all(desk.tokens[digest].state == "used" for digest in used)


def test_random_histories(sized: Callable[[int, int], int], figures: Callable[..., None]) -> None:
    records, states, acts = 0, set(), set()
    count = sized(150, 5_000)
    for seed in range(count):
        desk = play(seed)
        records += len(desk.log)
        states |= {record.state_after for record in desk.log}
        acts |= {record.act for record in desk.log}
    assert states >= set(TABLE) - {"-"}  # the dice reach all of it
    assert acts >= set(ACTS)
    figures(histories=count, records=records)


@pytest.mark.parametrize("mutant", ["any version", "any key", "no record"])
def test_a_planted_bug_is_found(monkeypatch: pytest.MonkeyPatch, mutant: str) -> None:
    if mutant == "any version":
        real = decisions.replace
        monkeypatch.setattr(
            decisions,
            "replace",
            lambda row, **more: real(row, **{k: v for k, v in more.items() if k != "version"}),
        )
    elif mutant == "any key":
        monkeypatch.setattr(
            enrolling,
            "_conflict",
            lambda state, holder, event, now_ms: [
                *enrolling._enter(state, None, state.tokens[event.digest], event, now_ms)
            ],
        )
    else:
        real_save = decisions.save_row
        monkeypatch.setattr(decisions, "save_row", lambda *a: real_save(*a)[1:])
    with pytest.raises((AssertionError, KeyError)):
        for seed in range(60):
            play(seed)
