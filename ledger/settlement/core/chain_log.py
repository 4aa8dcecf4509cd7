"""The log of blocks: which events are certain, which were, and what a re-org took back.

Theory of operation. Blocks near the head are read one by one, each with its events by its own
hash, and linked by their parents' hashes; blocks that are deeper than K at the first look are
read in ranges. An event counts (``Apply``) when K blocks, its own included, stand on each other
and, where there is a second node, that one has the same block. What is not applied yet is dropped
when another block takes its place; what is applied stays, or everything halts.

    state     | event                                         | then
    ----------|-----------------------------------------------|--------------------------------------
    following | a head above our last block                   | read the next block, or a range
    following | a head that we have                           | nothing (a node that lags)
    following | a head that contradicts a block of ours       | drop from there on, read again
    following | a block whose parent is our last              | keep it, apply what is K deep
    following | a block whose parent is another, not applied  | drop our last, read it again
    following | the same, and our last is applied             | halted: the re-org is deeper than K
    following | a block that lacks events, by its own bloom   | read it again, elsewhere, until one
              |                                               | node tells all; then an alarm, too
    following | a range is refused                            | half of it
    following | the second node has another block K deep      | alarm; nothing is applied until it
              |                                               | agrees
    halted    | an operator says go                           | rewind to the fork, follow
"""

from typing import Literal

import msgspec

HASH_BYTES = 32


class Fact(msgspec.Struct, frozen=True):
    """One event of a contract of ours, decoded. ``contract``: rental or pool.

    ``fields``: by the names of the ABI; addresses and hashes are bytes.
    """

    block: int
    index: int
    contract: str
    name: str
    fields: dict[str, int | bytes | bool]
    transaction: bytes = b""


class Block(msgspec.Struct, frozen=True):
    """A block with its facts.

    ``is_short``: the bloom in its header is not that of the events that a node told of it.
    """

    number: int
    hash: bytes
    parent: bytes
    facts: list[Fact] = []
    is_short: bool = False


class Limits(msgspec.Struct, frozen=True):
    """How the chain is read.

    ``depth``: K. ``range_max``: blocks that are asked for at once. ``rereads_max``: of a block that
    lacks events, before there is an alarm. ``is_witnessed``: a second node must have each block
    with the same events.
    """

    depth: int = 12
    range_max: int = 2_000
    rereads_max: int = 4
    is_witnessed: bool = False


class Log(msgspec.Struct):
    """``tip``: the last block that we have; ``applied``: the last that is certain.

    ``blocks``: those that a re-org may take back, and as many before them, by number.
    """

    limits: Limits
    tip: int = -1
    applied: int = -1
    blocks: dict[int, Block] = {}
    halted: str = ""
    start: int = 0  #: the first block that is ours to read
    range_now: int = 0
    rereads: int = 0
    witnessed: int = -1
    is_disputed: bool = False


# ---------------------------------------------------------------- events


class HeadSeen(msgspec.Struct, frozen=True):
    """A node says which block is its last."""

    number: int
    hash: bytes


class BlockRead(msgspec.Struct, frozen=True):
    """What ``ReadBlock`` asked for."""

    block: Block


class RangeRead(msgspec.Struct, frozen=True):
    """What ``ReadRange`` asked for: facts of all, and the first and the last block."""

    first: Block
    last: Block
    facts: list[Fact]


class RangeRefused(msgspec.Struct, frozen=True):
    """A node does not answer for so many blocks."""


class Witnessed(msgspec.Struct, frozen=True):
    """What the second node has at a height; nothing is said of what it does not have yet."""

    block: Block


class Released(msgspec.Struct, frozen=True):
    """An operator has seen the re-org and says go."""


Event = HeadSeen | BlockRead | RangeRead | RangeRefused | Witnessed | Released

# ---------------------------------------------------------------- effects


class ReadBlock(msgspec.Struct, frozen=True):
    """Read a block and its facts; ``elsewhere``: from another node than the last time."""

    number: int
    elsewhere: bool = False


class ReadRange(msgspec.Struct, frozen=True):
    """Read a range of blocks that are all deeper than K."""

    first: int
    last: int


class Keep(msgspec.Struct, frozen=True):
    """Write an unconfirmed block down."""

    block: Block


class Drop(msgspec.Struct, frozen=True):
    """The unconfirmed blocks from here on are not there any more."""

    number: int


class Apply(msgspec.Struct, frozen=True):
    """All up to this block is certain; ``facts``: of what was not before, in order."""

    block: Block
    facts: list[Fact]


class AskWitness(msgspec.Struct, frozen=True):
    """What does the second node have here?"""

    number: int


class Rewind(msgspec.Struct, frozen=True):
    """What was applied above this block is not so: take it back, and tell the difference."""

    number: int


class Halt(msgspec.Struct, frozen=True):
    """Nothing that was read counts until an operator says go."""

    why: str


class Warn(msgspec.Struct, frozen=True):
    """A line in the log."""

    text: str
    kind: Literal["note", "alarm"] = "note"


Effect = ReadBlock | ReadRange | Keep | Drop | Apply | AskWitness | Rewind | Halt | Warn


def step(log: Log, event: Event) -> list[Effect]:
    """Apply one event."""
    effects: list[Effect] = []
    match event:
        case HeadSeen():
            _on_head(log, event, effects)
        case BlockRead():
            _on_block(log, event.block, effects)
        case RangeRead():
            _on_range(log, event, effects)
        case RangeRefused():
            log.range_now = max(1, (log.range_now or log.limits.range_max) // 2)
        case Witnessed():
            _on_witnessed(log, event, effects)
        case Released():
            _on_released(log, effects)
    return effects


def begin(log: Log, number: int) -> None:
    """Nothing of ours is on the chain before this block, so it is read from there on, or again."""
    log.start = number
    log.tip = log.applied = log.witnessed = number - 1
    log.blocks.clear()
    log.halted, log.rereads, log.range_now, log.is_disputed = "", 0, 0, False


def certain(log: Log) -> int:
    """The last block that is K deep, whatever a second node says."""
    return log.tip - log.limits.depth + 1


# ---------------------------------------------------------------- following


def _on_head(log: Log, event: HeadSeen, effects: list[Effect]) -> None:
    if log.halted:
        return
    if event.number <= log.tip:
        ours = log.blocks.get(event.number)
        if ours is None or ours.hash == event.hash:
            _apply(log, effects)
            return
        if event.number <= log.applied:
            _halt(log, event.number, effects)
            return
        _drop(log, event.number, effects)
    first = log.tip + 1
    deep = event.number - log.limits.depth
    if deep - first >= log.limits.depth:
        size = log.range_now or log.limits.range_max
        effects.append(ReadRange(first, min(deep, first + size - 1)))
    else:
        effects.append(ReadBlock(first, log.rereads % 2 == 1))


def _on_block(log: Log, block: Block, effects: list[Effect]) -> None:
    if log.halted or block.number != log.tip + 1:
        return
    if block.is_short:
        log.rereads += 1
        if log.rereads == log.limits.rereads_max:
            effects.append(Warn(f"no node tells all events of block {block.number}", "alarm"))
        elif log.rereads < log.limits.rereads_max:
            effects.append(ReadBlock(block.number, elsewhere=True))
        return
    before = log.blocks.get(log.tip)
    if before is not None and before.hash != block.parent:
        if log.tip <= log.applied:
            _halt(log, log.tip, effects)
            return
        effects.append(Warn(f"block {log.tip} is another now: read again"))
        _drop(log, log.tip, effects)
        effects.append(ReadBlock(log.tip + 1))
        return
    log.rereads = 0
    log.tip = block.number
    log.blocks[block.number] = block
    effects.append(Keep(block))
    _apply(log, effects)


def _drop(log: Log, number: int, effects: list[Effect]) -> None:
    for gone in range(number, log.tip + 1):
        log.blocks.pop(gone, None)
    log.tip = number - 1
    log.rereads = 0
    effects.append(Drop(number))


def _on_range(log: Log, event: RangeRead, effects: list[Effect]) -> None:
    """All of it is deeper than K, and so is what it stands on."""
    if log.halted or event.first.number != log.tip + 1:
        return
    before = log.blocks.get(log.tip)
    if before is not None and before.hash != event.first.parent:
        if log.tip <= log.applied:
            _halt(log, log.tip, effects)
        else:
            _drop(log, log.tip, effects)
        return
    waiting = [log.blocks[number].facts for number in range(log.applied + 1, log.tip + 1)]
    facts = sorted(event.facts, key=lambda fact: (fact.block, fact.index))
    log.tip = log.applied = event.last.number
    log.blocks = {log.tip: msgspec.structs.replace(event.last, facts=[])}
    log.range_now = min(log.limits.range_max, 2 * (log.range_now or log.limits.range_max))
    log.witnessed = log.tip  # the shell compares ranges of both nodes
    before_it = [fact for found in waiting for fact in found]
    effects.append(Apply(log.blocks[log.tip], before_it + facts))


# ---------------------------------------------------------------- certain


def _apply(log: Log, effects: list[Effect]) -> None:
    """Apply what is K deep and, if there is a second node, what it has seen, too."""
    upto = certain(log)
    if upto <= log.applied:
        return
    if log.limits.is_witnessed:
        if log.witnessed < upto:
            effects.append(AskWitness(log.witnessed + 1))
        upto = min(upto, log.witnessed)
    for number in range(log.applied + 1, upto + 1):
        block = log.blocks[number]
        log.applied = number
        effects.append(Apply(block, block.facts))
        log.blocks.pop(number - 2 * log.limits.depth, None)


def _on_witnessed(log: Log, event: Witnessed, effects: list[Effect]) -> None:
    theirs = event.block
    ours = log.blocks.get(theirs.number)
    if ours is None or log.halted or theirs.number != log.witnessed + 1:
        return
    if theirs.number > certain(log):
        return
    if (ours.hash, ours.facts) != (theirs.hash, theirs.facts):
        if not log.is_disputed:
            log.is_disputed = True
            told = f"two nodes differ in block {theirs.number}: nothing counts until they agree"
            effects.append(Warn(told, "alarm"))
        return
    log.is_disputed = False
    log.witnessed = theirs.number
    _apply(log, effects)


# ---------------------------------------------------------------- deeper than K


def _halt(log: Log, number: int, effects: list[Effect]) -> None:
    log.halted = (
        f"block {number} was {log.limits.depth} deep and is another now: a re-org deeper than "
        "that, or a node that lies"
    )
    effects += [Halt(log.halted), Warn(log.halted, "alarm")]


def _on_released(log: Log, effects: list[Effect]) -> None:
    """Go back as far as blocks are kept: they are read again, and those that stayed stay.

    The parent of the first is still known, so a fork before it halts once more; then everything is
    read again.
    """
    if not log.halted:
        return
    log.halted = ""
    first = log.blocks[min(log.blocks)]
    anchor = first.parent
    number = first.number - 1 if anchor else log.start - 1
    log.blocks = {number: Block(number, anchor, b"")} if anchor else {}
    log.tip = log.applied = log.witnessed = number
    log.rereads = 0
    effects.append(Rewind(number))
