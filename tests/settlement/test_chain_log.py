"""The log of blocks, transition by transition: one event in, the exact effects out."""

import pytest

from gristmill.ledger.settlement.core.chain_log import (
    Apply,
    AskWitness,
    Block,
    BlockRead,
    Drop,
    Fact,
    Halt,
    HeadSeen,
    Keep,
    Limits,
    Log,
    RangeRead,
    RangeRefused,
    ReadBlock,
    ReadRange,
    Released,
    Rewind,
    Warn,
    Witnessed,
    begin,
    step,
)


def hash_of(number: int, fork: int = 0) -> bytes:
    return bytes([fork, number >> 8, number & 255, 0]) * 8


def fact(number: int, index: int = 0) -> Fact:
    return Fact(number, index, "rental", "Paid", {"net": number})


def block(number: int, fork: int = 0, parent_fork: int | None = None, **more: object) -> Block:
    parent = hash_of(number - 1, fork if parent_fork is None else parent_fork)
    return Block(number, hash_of(number, fork), parent, **more)  # type: ignore[arg-type]


def seen(number: int, fork: int = 0) -> HeadSeen:
    return HeadSeen(number, hash_of(number, fork))


def log_to(tip: int, depth: int = 3, **more: object) -> Log:
    """A log from block 1 on, without forks."""
    log = Log(Limits(depth=depth, **more))  # type: ignore[arg-type]
    begin(log, 1)
    for number in range(1, tip + 1):
        step(log, BlockRead(block(number, facts=[fact(number)])))
    return log


def test_the_next_block_is_read() -> None:
    log = log_to(5)
    assert step(log, seen(6)) == [ReadBlock(6)]
    assert step(log, seen(7)) == [ReadBlock(6)]


def test_a_fact_counts_when_k_blocks_stand_on_each_other() -> None:
    log = Log(Limits(depth=3))
    begin(log, 1)
    one, two, three = (block(number, facts=[fact(number)]) for number in (1, 2, 3))
    assert step(log, BlockRead(one)) == [Keep(one)]
    assert step(log, BlockRead(two)) == [Keep(two)]
    assert step(log, BlockRead(three)) == [Keep(three), Apply(one, [fact(1)])]
    assert (log.tip, log.applied) == (3, 1)


def test_a_block_that_was_not_asked_for_is_nothing() -> None:
    log = log_to(5)
    assert step(log, BlockRead(block(5))) == []
    assert step(log, BlockRead(block(7))) == []


def test_a_node_that_lags_is_no_news() -> None:
    log = log_to(5)
    assert step(log, seen(4)) == []
    assert step(log, seen(5)) == []


def test_another_parent_drops_our_last() -> None:
    log = log_to(5)
    effects = step(log, BlockRead(block(6, fork=1)))
    assert effects == [Warn("block 5 is another now: read again"), Drop(5), ReadBlock(5)]
    effects = step(log, BlockRead(block(5, fork=1, parent_fork=0, facts=[])))
    assert effects == [Keep(block(5, fork=1, parent_fork=0))]
    assert (log.tip, log.applied) == (5, 3)


def test_another_head_at_our_height_is_read_again() -> None:
    log = log_to(5)
    assert step(log, seen(4, fork=1)) == [Drop(4), ReadBlock(4)]
    assert sorted(log.blocks) == [1, 2, 3]


def test_deeper_than_k_halts() -> None:
    log = log_to(5)
    drop = step(log, BlockRead(block(6, fork=1)))
    assert Drop(5) in drop
    step(log, BlockRead(block(5, fork=1)))
    assert log.tip == 3
    halt, warn = step(log, BlockRead(block(4, fork=1)))
    assert isinstance(halt, Halt)
    assert isinstance(warn, Warn)
    assert "3 deep" in halt.why
    assert step(log, seen(9)) == []
    assert step(log, BlockRead(block(4))) == []


def test_so_does_another_head_where_ours_was_certain() -> None:
    log = log_to(5)
    assert isinstance(step(log, seen(3, fork=1))[0], Halt)


def test_go_rewinds_to_what_is_kept_and_then_to_the_beginning() -> None:
    log = log_to(20)
    first = min(log.blocks)
    step(log, seen(18, fork=1))
    assert step(log, Released()) == [Rewind(first - 1)]
    assert (log.tip, log.applied, log.halted) == (first - 1, first - 1, "")
    # The block before is known by the hash that the first had as its parent.
    assert isinstance(step(log, BlockRead(block(first, fork=1)))[0], Halt)
    assert step(log, Released()) == [Rewind(0)]
    assert step(log, BlockRead(block(1, fork=1))) == [Keep(block(1, fork=1))]
    assert step(log, Released()) == []


def test_a_block_that_lacks_events_is_asked_for_elsewhere() -> None:
    log = log_to(5)
    short = block(6, is_short=True)
    assert step(log, BlockRead(short)) == [ReadBlock(6, elsewhere=True)]
    assert step(log, seen(6)) == [ReadBlock(6, elsewhere=True)]
    full = block(6, facts=[fact(6)])
    assert step(log, BlockRead(full)) == [Keep(full), Apply(log.blocks[4], [fact(4)])]
    assert log.rereads == 0


def test_when_no_node_tells_all_there_is_an_alarm_and_it_is_never_believed() -> None:
    log = log_to(5)
    short = block(6, is_short=True)
    for _ in range(3):
        assert step(log, BlockRead(short)) == [ReadBlock(6, elsewhere=True)]
    assert step(log, BlockRead(short)) == [
        Warn("no node tells all events of block 6", "alarm"),
    ]
    assert step(log, BlockRead(short)) == []
    assert log.tip == 5


def test_the_past_is_read_in_ranges() -> None:
    log = log_to(5, range_max=50)
    assert step(log, seen(500)) == [ReadRange(6, 55)]
    facts = [fact(30), fact(10)]
    (apply,) = step(log, RangeRead(block(6), block(55), facts))
    assert apply == Apply(block(55), [fact(4), fact(5), fact(10), fact(30)])
    assert (log.tip, log.applied) == (55, 55)
    assert step(log, seen(60)) == [ReadBlock(56)]


def test_a_range_on_another_fork_drops_what_was_not_certain() -> None:
    log = log_to(5, range_max=50)
    assert step(log, RangeRead(block(6, fork=1), block(55, fork=1), [])) == [Drop(5)]
    assert step(log, seen(500)) == [ReadRange(5, 54)]


def test_a_range_that_is_refused_is_halved_and_grows_again() -> None:
    log = Log(Limits(depth=3, range_max=100))
    begin(log, 1)
    assert step(log, RangeRefused()) == []
    assert step(log, seen(500)) == [ReadRange(1, 50)]
    for _ in range(10):
        step(log, RangeRefused())
    assert step(log, seen(500)) == [ReadRange(1, 1)]
    step(log, RangeRead(block(1), block(1), []))
    assert step(log, seen(500)) == [ReadRange(2, 3)]


def test_a_range_that_does_not_follow_on_our_last_halts() -> None:
    log = Log(Limits(depth=3))
    begin(log, 1)
    step(log, RangeRead(block(1), block(9), []))
    halt, _ = step(log, RangeRead(block(10, fork=1), block(12, fork=1), []))
    assert isinstance(halt, Halt)


def test_a_second_node_must_have_each_block() -> None:
    log = log_to(3, is_witnessed=True)
    assert log.applied == 0
    assert step(log, seen(3)) == [AskWitness(1)]
    ours = log.blocks[1]
    assert step(log, Witnessed(ours)) == [Apply(ours, [fact(1)])]
    assert step(log, Witnessed(ours)) == []


@pytest.mark.parametrize(
    "theirs", [block(1, fork=1), block(1), block(1, facts=[fact(1), fact(1, 1)])]
)
def test_two_nodes_that_differ_stop_it_until_they_agree(theirs: Block) -> None:
    log = log_to(3, is_witnessed=True)
    ours = log.blocks[1]
    (warn,) = step(log, Witnessed(theirs))
    assert isinstance(warn, Warn)
    assert warn.kind == "alarm"
    assert step(log, Witnessed(theirs)) == []
    assert log.applied == 0
    assert step(log, Witnessed(ours)) == [Apply(ours, [fact(1)])]
