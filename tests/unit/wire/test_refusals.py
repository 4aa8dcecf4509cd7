"""Lines about who was refused: one a name and second, every refusal counted, names bounded."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as some

from gristmill.wire.refusals import OTHERS, SECOND_MS, Line, Refusals

NOTES = some.lists(
    some.tuples(some.integers(0, 600), some.sampled_from("abcdefgh")), min_size=1, max_size=200
)


@given(NOTES)
def test_one_line_a_name_and_second_and_all_are_counted(notes: list[tuple[int, str]]) -> None:
    refusals, now_ms = Refusals(names_max=4), 0
    lines: list[tuple[int, Line]] = []
    for pause_ms, name in notes:
        now_ms += pause_ms
        lines += [(now_ms, line) for line in refusals.due(now_ms)]
        if line := refusals.note(name, "MALFORMED", "words", now_ms):
            lines.append((now_ms, line))
    while refusals.is_waiting:
        now_ms += SECOND_MS
        lines += [(now_ms, line) for line in refusals.due(now_ms)]
    assert sum(line.times for _, line in lines) == len(notes)
    last: dict[str, int] = {}
    for at_ms, line in lines:
        assert at_ms - last.get(line.name, -SECOND_MS) >= SECOND_MS, (lines, line)
        last[line.name] = at_ms
    told, noted = Counter(), Counter(name for _, name in notes)
    for _, line in lines:
        told[line.name] += line.times
    assert all(told[name] <= noted[name] for name in told if name != OTHERS)


def test_who_comes_with_a_new_name_each_time_is_one_line() -> None:
    refusals = Refusals(names_max=3)
    lines = [refusals.note(f"n{number}", "UNAUTHORISED", "w", 0) for number in range(1_000)]
    assert [line.name for line in lines if line] == ["n0", "n1", "n2", OTHERS]
    assert [(line.name, line.times) for line in refusals.due(SECOND_MS)] == [(OTHERS, 996)]


def test_what_a_peer_says_is_one_line_of_bounded_length() -> None:
    line = Refusals().note("k", "MALFORMED", "a\nkey=forged code=OK: " + "b" * 10_000, 0)
    assert line is not None and "\n" not in str(line) and len(str(line)) < 400
