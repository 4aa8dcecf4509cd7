"""Carries out what the log of blocks decides: reads the chain and hands on what is certain."""

import logging
from collections.abc import Callable, Sequence

from gristmill.ledger.settlement.core.chain_log import (
    Apply,
    AskWitness,
    Block,
    BlockRead,
    Drop,
    Effect,
    Event,
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
from gristmill.ledger.settlement.ports import Node, NodeDownError, RangeRefusedError
from gristmill.ledger.settlement.rows import Rows

log = logging.getLogger("gristmill.settlement")

STEPS_MAX = 10_000  #: in one turn; the rest is for the next


class Follower:
    """Reads blocks of one chain, from several nodes if there are several. One thread.

    Args:
        start: the first block that can have something of ours.
        apply: told of certain facts, in the transaction that has them in the file.
        halted: told why, at once.
        rewound: told of the block above which nothing that was certain is so.
    """

    def __init__(
        self,
        rows: Rows,
        limits: Limits,
        start: int,
        apply: Callable[[list[Fact]], None],
        halted: Callable[[str], None],
        rewound: Callable[[int], None],
    ) -> None:
        self._rows = rows
        self._apply, self._halted, self._rewound = apply, halted, rewound
        self.log = Log(limits)
        if not rows.load_log(self.log):
            begin(self.log, start)

    def forget(self, start: int) -> None:
        """Read everything again, from a first block on; facts are the caller's to remove."""
        begin(self.log, start)
        self._rows.forget_blocks(0, 1 << 62)
        self._rows.save_log(self.log)

    def release(self) -> None:
        """An operator says go after a re-org deeper than K."""
        for effect in self._step(Released()):
            self._perform(effect, [])

    def turn(self, nodes: Sequence[Node]) -> None:
        """Read all that is new at the first of the nodes; the others are asked in doubt.

        Raises:
            NodeDownError: it does not answer.
        """
        head = nodes[0].head()
        seen = HeadSeen(head.number, head.hash)
        for _ in range(STEPS_MAX):
            before = self.log.tip
            events: list[Event] = [seen]
            while events:
                for effect in self._step(events.pop(0)):
                    answer = self._perform(effect, nodes)
                    if answer is not None:
                        events.append(answer)
            if self.log.tip >= head.number or self.log.halted or self.log.tip == before:
                return

    def _step(self, event: Event) -> list[Effect]:
        """One event with all that it changes in the file, in one transaction."""
        with self._rows.together():
            effects = step(self.log, event)
            for effect in effects:
                match effect:
                    case Keep():
                        self._rows.save_block(effect.block)
                    case Drop():
                        self._rows.forget_blocks(effect.number, 1 << 62)
                    case Apply():
                        self._rows.add_facts(effect.facts)
                        self._rows.save_block(effect.block)
                        self._apply(effect.facts)
                        if self.log.blocks:
                            self._rows.forget_blocks(0, min(self.log.blocks) - 1)
                    case Rewind():
                        self._rows.drop_facts(effect.number)
                        self._rows.forget_blocks(0, 1 << 62)
                        for block in self.log.blocks.values():
                            self._rows.save_block(block)
                        self._rewound(effect.number)
                    case Halt():
                        self._halted(effect.why)
            if effects and not all(isinstance(e, ReadBlock | ReadRange | Warn) for e in effects):
                self._rows.save_log(self.log)
        return effects

    def _perform(self, effect: Effect, nodes: Sequence[Node]) -> Event | None:
        match effect:
            case ReadBlock():
                node = nodes[-1] if effect.elsewhere else nodes[0]
                block = node.block(effect.number)
                return None if block is None else BlockRead(block)
            case ReadRange():
                return self._read_range(effect, nodes)
            case AskWitness():
                theirs = nodes[-1].block(effect.number) if len(nodes) > 1 else None
                return None if theirs is None else Witnessed(theirs)
            case Warn():
                if effect.kind == "alarm":
                    log.error("ALARM %s", effect.text)
                else:
                    log.info("%s", effect.text)
        return None

    def _read_range(self, effect: ReadRange, nodes: Sequence[Node]) -> Event | None:
        ends: list[Block] = []
        for number in (effect.first, effect.last):
            block = nodes[0].block(number)
            if block is None:
                return None
            ends.append(block)
        try:
            told = [node.facts(effect.first, effect.last) for node in nodes]
        except RangeRefusedError:
            if effect.first == effect.last:
                raise NodeDownError(f"{nodes[0].name} refuses one block's events") from None
            return RangeRefused()
        facts = {(fact.block, fact.index): fact for fact in told[0]}
        if any({(fact.block, fact.index): fact for fact in other} != facts for other in told[1:]):
            if effect.first == effect.last:
                raise NodeDownError(f"nodes differ in the events of block {effect.first}")
            return RangeRefused()
        return RangeRead(ends[0], ends[1], list(facts.values()))
