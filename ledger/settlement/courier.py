"""Carries out what the nonce queue decides: tries, signs, sends, and looks what became of it."""

import logging
from collections.abc import Callable, Sequence

from gristmill.ledger.settlement.core.chain_log import Log
from gristmill.ledger.settlement.core.queue import in_flight, restore, step
from gristmill.ledger.settlement.core.queue_records import (
    Asked,
    Attempt,
    Effect,
    Ended,
    Event,
    Explain,
    Explained,
    Halted,
    Intent,
    Lane,
    Limits,
    Looked,
    Preflight,
    PreflightDone,
    Receipt,
    Released,
    Restarted,
    Rewound,
    Save,
    SaveLane,
    Say,
    Send,
    Sent,
    Sign,
    Signed,
    State,
    Unwanted,
)
from gristmill.ledger.settlement.ports import (
    Node,
    NodeDownError,
    RevertedError,
    Signer,
)
from gristmill.ledger.settlement.rows import Rows

log = logging.getLogger("gristmill.settlement")


class Courier:
    """One account's queue, over the nodes of its chain. One thread.

    Args:
        blocks: our log of blocks: which receipts are certain.
        clock: Unix time in ms, for the day's budget.
        ended: told of each intent that is final, after that is on disk; told again after a
            restart, never.
    """

    def __init__(
        self,
        rows: Rows,
        limits: Limits,
        signer: Signer,
        blocks: Log,
        clock: Callable[[], int],
        ended: Callable[[str, State], None] = lambda *_: None,
    ) -> None:
        self._rows, self._signer, self._blocks = rows, signer, blocks
        self._clock, self._ended = clock, ended
        self.lane = Lane(limits)
        restore(self.lane, rows.load_lane(self.lane))
        self._node: Node | None = None
        self._do(Restarted())

    def ask(self, purpose: str, target: bytes, call: bytes) -> None:
        """Have this done once; the same purpose again is no second time."""
        self._do(Asked(purpose, target, call))

    def ask_many(self, asked: Sequence[Asked]) -> None:
        """The same for many, in one transaction of the file."""
        with self._rows.together():
            for one in asked:
                self._do(one)

    def drop(self, purpose: str, why: str) -> None:
        """It is not needed any more."""
        self._do(Unwanted(purpose, why))

    def halt(self, why: str) -> None:
        """Send nothing until ``release``."""
        if not self.lane.halted:
            self._do(Halted(why))

    def release(self) -> None:
        """Send again."""
        self._do(Released())

    def rewind(self, block: int) -> None:
        """What was final above this block is not."""
        self._do(Rewound(block))

    def turn(self, node: Node) -> None:
        """Look what became of all in flight, and do what follows.

        Raises:
            NodeDownError: this node cannot say.
        """
        head = node.head()
        applied = self._blocks.applied
        nonce = node.nonce(None)
        receipts = self._receipts(node, in_flight(self.lane))
        # What has used its nonce has a receipt: who does not find it is asked once more.
        hidden = [
            intent
            for intent in in_flight(self.lane)
            if intent.nonce < nonce and not any(one.hash in receipts for one in intent.attempts)
        ]
        receipts |= self._receipts(node, hidden)
        # Of one that is in no block the last attempt is to be known; the others it has replaced.
        lost = [
            intent.attempts[-1].hash
            for intent in in_flight(self.lane)
            if intent.attempts and not any(one.hash in receipts for one in intent.attempts)
        ]
        looked = Looked(
            self._blocks.tip,
            head.number,
            head.base_fee_wei,
            head.tip_wei,
            applied,
            nonce,
            node.nonce(applied) if applied >= 0 else 0,
            receipts,
            node.known(lost) | frozenset(receipts),
        )
        self._node = node
        try:
            self._do(looked)
        finally:
            self._node = None

    def _receipts(self, node: Node, intents: Sequence[Intent]) -> dict[bytes, Receipt]:
        hashes = [one.hash for intent in intents for one in intent.attempts]
        found = node.receipts(hashes)
        return {hash: receipt for hash, receipt in found.items() if self._is_ours(receipt)}

    def _is_ours(self, receipt: Receipt) -> bool:
        """Whether our log of blocks has the block of this receipt, or is still to have it."""
        ours = self._blocks.blocks.get(receipt.block)
        return receipt.block > self._blocks.tip or ours is None or ours.hash == receipt.block_hash

    # ------------------------------------------------------------ effects

    def _do(self, event: Event) -> None:
        """Apply an event and all that follows from it; what is to be saved is, in its place."""
        queue: list[Event] = [event]
        while queue:
            effects = step(self.lane, queue.pop(0), self._clock())
            at = 0
            while at < len(effects):
                saves: list[Save | SaveLane] = []
                while at < len(effects) and isinstance(one := effects[at], Save | SaveLane):
                    saves.append(one)
                    at += 1
                if saves:
                    self._save(saves)
                    continue
                answer = self._perform(effects[at])
                if answer is not None:
                    queue.append(answer)
                at += 1

    def _save(self, saves: list[Save | SaveLane]) -> None:
        with self._rows.together():
            for one in saves:
                if isinstance(one, Save):
                    self._rows.save_intent(one.intent)
                else:
                    self._rows.save_lane(one.next_nonce, one.day, one.spent_wei)

    def _perform(self, effect: Effect) -> Event | None:
        match effect:
            case Say():
                if effect.is_alarm:
                    log.error("ALARM %s", effect.text)
                else:
                    log.info("%s", effect.text)
            case Ended():
                log.info("%s is %s", effect.purpose, effect.state)
                self._ended(effect.purpose, effect.state)
            case Preflight():
                return self._preflight(effect)
            case Sign():
                return self._sign(effect)
            case Send():
                if self._node is None:
                    return Sent(effect.purpose, effect.attempt.hash, "unknown")
                how, text = self._node.send(effect.attempt)
                nonce = self.lane.intents[effect.purpose].nonce
                log.info("%s: sent with nonce %d: %s %s", effect.purpose, nonce, how, text)
                return Sent(effect.purpose, effect.attempt.hash, how, text)
            case Explain():
                return self._explain(effect)
        return None

    def _preflight(self, effect: Preflight) -> PreflightDone | None:
        intent = self.lane.intents[effect.purpose]
        if self._node is None:
            return None
        try:
            gas = self._node.preflight(intent.target, intent.call)
        except RevertedError as error:
            return PreflightDone(effect.purpose, 0, str(error))
        except NodeDownError:
            return None  # asked again at the next look
        return PreflightDone(effect.purpose, gas)

    def _sign(self, effect: Sign) -> Signed | None:
        intent = self.lane.intents[effect.purpose]
        target = self._signer.address if effect.is_cancel else intent.target
        call = b"" if effect.is_cancel else intent.call
        try:
            hash, raw = self._signer.sign(
                effect.nonce, target, call, effect.gas, effect.max_fee_wei, effect.tip_wei
            )
        except NodeDownError as error:
            log.error("ALARM %s is not signed: %s", effect.purpose, error)
            return None
        made = Attempt(
            hash,
            raw,
            effect.gas,
            effect.max_fee_wei,
            effect.tip_wei,
            effect.is_cancel,
            effect.block,
        )
        return Signed(effect.purpose, made)

    def _explain(self, effect: Explain) -> Explained | None:
        intent = self.lane.intents[effect.purpose]
        if self._node is None:
            return None
        try:
            self._node.preflight(intent.target, intent.call, effect.block - 1)
        except RevertedError as error:
            return Explained(effect.purpose, str(error))
        except NodeDownError:
            return None
        return Explained(
            effect.purpose, "it ran out of gas, or something before it in its block was in its way"
        )
