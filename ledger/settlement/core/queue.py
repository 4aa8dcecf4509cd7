"""The nonce queue: everything that our account sends, each purpose once, each nonce once.

Theory of operation. A purpose has at most one nonce, given in order when its call has passed a
trial (``Preflight``), and written down before anything is signed. Each signed attempt is written
down before it is sent, and all attempts of an intent have its nonce: the chain itself takes one of
them. So neither a crash, a node that lags, nor two that disagree can spend twice: nothing that a
node says ever gives a purpose a second nonce. A nonce is never skipped: an intent that is not
wanted any more gives its nonce to a transfer of nothing to ourselves.

    state       | event                                        | then
    ------------|----------------------------------------------|---------------------------------
    queued      | its trial passes, price and budget allow     | a nonce, Sign
    queued      | its trial reverts, or it is unwanted         | superfluous (no nonce yet)
    queued      | asked again with another call                | the new call (no nonce yet)
    queued      | Signed                                       | signed, Send
    signed      | the node takes it                            | broadcast
    signed      | the node does not answer; a restart          | unknown
    unknown     | a node has it                                | broadcast
    any of them | no node has it                               | the same attempt is sent again
    any of them | N blocks go by                               | trial, then Sign with a higher fee
    any of them | unwanted, or that trial reverts              | Sign the cancelling transfer
    any of them | a receipt of any attempt                     | mined
    mined       | its block is K deep                          | confirmed; failed (it reverted);
                |                                              | replaced (the cancelling one)
    mined       | the receipt is gone or in another block      | broadcast, or mined there
    final       | a re-org deeper than K                       | broadcast; the queue is halted

Above the cap on the price of gas, or over the day's budget, everything waits and nothing is lost.
"""

from gristmill.ledger.settlement.core.queue_records import (
    CANCEL_GAS,
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

DAY_MS = 86_400_000
_UNMINED = ("queued", "signed", "unknown", "broadcast")


def step(lane: Lane, event: Event, now_ms: int) -> list[Effect]:
    """Apply one event; the intents in the effects are those of the lane, after it."""
    effects: list[Effect] = []
    match event:
        case Looked():
            _on_looked(lane, event, now_ms, effects)
        case Asked():
            _on_asked(lane, event, effects)
        case Unwanted():
            _on_unwanted(lane, event, effects)
        case PreflightDone():
            _on_preflight(lane, event, effects)
        case Signed():
            _on_signed(lane, event, effects)
        case Sent():
            _on_sent(lane, event, effects)
        case Explained():
            intent = lane.intents.get(event.purpose)
            if intent is not None and intent.receipt is not None and intent.receipt.is_reverted:
                intent.reason = event.reason
                effects.append(Save(intent))
        case Halted():
            lane.halted = lane.halted or event.why
            effects.append(Say(f"nothing is sent: {event.why}", is_alarm=True))
        case Released():
            lane.halted = ""
        case Restarted():
            _on_restarted(lane, effects)
        case Rewound():
            _on_rewound(lane, event, effects)
    return effects


def restore(lane: Lane, intents: list[Intent]) -> None:
    """Put what was written down into a new lane."""
    for intent in sorted(intents, key=lambda one: one.number):
        lane.intents[intent.purpose] = intent
        if not intent.is_final:
            lane.open[intent.purpose] = None


def in_flight(lane: Lane) -> list[Intent]:
    """Intents with a nonce that is not final, by nonce."""
    found = [lane.intents[purpose] for purpose in lane.open]
    return sorted((one for one in found if one.is_in_flight), key=lambda one: one.nonce)


# ---------------------------------------------------------------- what is wanted


def _on_asked(lane: Lane, event: Asked, effects: list[Effect]) -> None:
    intent = lane.intents.get(event.purpose)
    if intent is None:
        intent = Intent(event.purpose, event.target, event.call, len(lane.intents) + 1)
        lane.intents[event.purpose] = intent
        lane.open[event.purpose] = None
        effects.append(Save(intent))
        if len(lane.open) > lane.limits.pending_max and not lane.is_crowded:
            lane.is_crowded = True
            told = f"{len(lane.open)} transactions wait; the limit is {lane.limits.pending_max}"
            effects.append(Say(told, is_alarm=True))
    elif intent.nonce < 0 and not intent.is_final and intent.call != event.call:
        intent.target, intent.call = event.target, event.call
        effects.append(Save(intent))


def _on_unwanted(lane: Lane, event: Unwanted, effects: list[Effect]) -> None:
    intent = lane.intents.get(event.purpose)
    if intent is None or intent.is_final or intent.is_unwanted:
        return
    intent.reason = event.why
    if intent.nonce < 0:
        _end(lane, intent, "superfluous", effects)
    else:
        intent.is_unwanted = True
        effects.append(Save(intent))


def _on_restarted(lane: Lane, effects: list[Effect]) -> None:
    for intent in in_flight(lane):
        if intent.state == "signed":
            intent.state = "unknown"
            effects.append(Save(intent))


def _on_rewound(lane: Lane, event: Rewound, effects: list[Effect]) -> None:
    for intent in lane.intents.values():
        if intent.receipt is not None and intent.receipt.block > event.block:
            effects.append(
                Say(f"{intent.purpose} was {intent.state} and is not any more", is_alarm=True)
            )
            if intent.is_final:
                lane.spent_wei = max(0, lane.spent_wei - intent.receipt.paid_wei)
            intent.state, intent.receipt, intent.reason = "broadcast", None, ""
            lane.open[intent.purpose] = None
            effects.append(Save(intent))


def _end(lane: Lane, intent: Intent, state: State, effects: list[Effect]) -> None:
    intent.state = state
    lane.open.pop(intent.purpose, None)
    effects.append(Save(intent))
    if intent.receipt is not None:
        lane.spent_wei += intent.receipt.paid_wei
        effects.append(SaveLane(lane.next_nonce, lane.day, lane.spent_wei))
    effects.append(Ended(intent.purpose, state))
    if len(lane.open) <= lane.limits.pending_max:
        lane.is_crowded = False


# ---------------------------------------------------------------- a turn


def _on_looked(lane: Lane, event: Looked, now_ms: int, effects: list[Effect]) -> None:
    if event.node_head < event.head:
        return  # a node that lags: what it does not have is no news
    lane.head, lane.base_fee_wei, lane.tip_wei = event.head, event.base_fee_wei, event.tip_wei
    lane.asking.clear()
    lane.signing.clear()
    if now_ms // DAY_MS > lane.day:
        lane.day, lane.spent_wei = now_ms // DAY_MS, 0
    if lane.next_nonce < 0:
        lane.next_nonce = event.nonce
        effects.append(SaveLane(lane.next_nonce, lane.day, lane.spent_wei))
    foreign = ""
    flying = in_flight(lane)
    for intent in flying:
        _place(lane, intent, event, effects)
        if intent.state in _UNMINED and event.nonce_confirmed > intent.nonce:
            foreign = (
                f"nonce {intent.nonce} of {intent.purpose} was used by a transaction that is not "
                "ours, or its receipt is held back: who else has the key?"
            )
    if not foreign and event.nonce_confirmed > lane.next_nonce:
        foreign = (
            f"the account has sent {event.nonce_confirmed} transactions, ours were "
            f"{lane.next_nonce}: who else has the key?"
        )
    if lane.halted:
        return
    is_first = True
    for intent in flying:
        if intent.state in _UNMINED and not intent.is_final:
            _push(lane, intent, event, is_first, effects)
            is_first = False
    _begin(lane, foreign, effects)


def _place(lane: Lane, intent: Intent, event: Looked, effects: list[Effect]) -> None:
    """Where it is on the chain now."""
    found = [event.receipts[one.hash] for one in intent.attempts if one.hash in event.receipts]
    receipt = max(found, key=lambda one: one.block, default=None)
    before = intent.receipt
    if receipt is None:
        if before is not None and event.head >= before.block:
            effects.append(Say(f"{intent.purpose} is not in block {before.block} any more"))
            intent.state, intent.receipt, intent.reason = "broadcast", None, ""
            effects.append(Save(intent))
        return
    if before != receipt:
        intent.state, intent.receipt = "mined", receipt
        effects.append(Save(intent))
        if receipt.is_reverted:
            effects.append(Explain(intent.purpose, receipt.block))
    if receipt.block <= event.confirmed:
        _end(lane, intent, _outcome(intent, receipt), effects)


def _outcome(intent: Intent, receipt: Receipt) -> State:
    if any(one.hash == receipt.hash and one.is_cancel for one in intent.attempts):
        return "replaced"
    return "failed" if receipt.is_reverted else "confirmed"


def _push(lane: Lane, intent: Intent, event: Looked, is_first: bool, effects: list[Effect]) -> None:
    """Keep one that is not mined going: known, sent again, or with a higher fee."""
    if not intent.attempts:  # it has a nonce, and the process ended before it was signed
        _try(lane, intent, effects)
        return
    last = intent.attempts[-1]
    is_known = any(one.hash in event.known for one in intent.attempts)
    if is_known and intent.state in ("signed", "unknown"):
        intent.state = "broadcast"
        effects.append(Save(intent))
    is_stuck = is_first or last.max_fee_wei < event.base_fee_wei
    is_late = event.head - last.block >= lane.limits.bump_blocks
    if intent.is_unwanted and not last.is_cancel:
        if _bump(lane, intent, effects):
            return
        is_late = False  # at the cap: the call itself is the only way to use the nonce
    if last.hash not in event.known:
        effects.append(Send(intent.purpose, last))
    if is_stuck and is_late:
        _try(lane, intent, effects)


def _try(lane: Lane, intent: Intent, effects: list[Effect]) -> None:
    lane.asking[intent.purpose] = None
    effects.append(Preflight(intent.purpose))


def _begin(lane: Lane, foreign: str, effects: list[Effect]) -> None:
    """Have as many new ones tried as may fly."""
    room = lane.limits.in_flight_max - len(in_flight(lane))
    waiting = [one for one in (lane.intents[name] for name in lane.open) if one.nonce < 0]
    _tell(lane, "foreign", foreign, effects, is_alarm=True)
    dear = ""
    if waiting and _fee(lane)[0] == 0:
        dear = (
            f"{len(waiting)} transactions wait for cheaper gas: it costs {lane.base_fee_wei} wei, "
            f"the cap is {lane.limits.fee_cap_wei}"
        )
    _tell(lane, "dear", dear, effects)
    if foreign or dear:
        return
    for intent in waiting[: max(0, room)]:
        _try(lane, intent, effects)


def _tell(
    lane: Lane, topic: str, why: str, effects: list[Effect], *, is_alarm: bool = False
) -> None:
    """Say once why something is not sent, whatever figures are in it; no reason: it is over."""
    if why and topic not in lane.waiting:
        effects.append(Say(why, is_alarm=is_alarm))
    if why:
        lane.waiting[topic] = why
    elif lane.waiting.pop(topic, ""):
        effects.append(Say(f"over: {topic}"))


# ---------------------------------------------------------------- price


def _fee(lane: Lane) -> tuple[int, int]:
    """Most for a unit of gas and the tip in it; (0, 0) above the cap."""
    cap = lane.limits.fee_cap_wei
    tip = min(lane.tip_wei, cap)
    if lane.base_fee_wei + tip > cap:
        return 0, 0
    return min(cap, 2 * lane.base_fee_wei + tip), tip


def _gas(lane: Lane, estimate: int) -> int:
    return estimate * lane.limits.gas_percent // 100 + lane.limits.gas_extra


def _raised(fee_wei: int) -> int:
    return -(-fee_wei * 9 // 8)  # 12.5 % is what nodes ask of a replacement


def _higher_fee(lane: Lane, last: Attempt) -> tuple[int, int]:
    """What replaces the last attempt; (0, 0) when the cap does not allow it."""
    cap = lane.limits.fee_cap_wei
    least, tip = _raised(last.max_fee_wei), max(_raised(last.tip_wei), min(lane.tip_wei, cap))
    if least > cap:
        return 0, 0
    fee = min(cap, max(least, 2 * lane.base_fee_wei + tip))
    return fee, min(tip, fee)


def _has_budget(lane: Lane, more_wei: int) -> bool:
    """Counting every unmined or unconfirmed transaction with the most that it may cost."""
    flying = 0
    for intent in in_flight(lane):
        if intent.receipt is not None:
            flying += intent.receipt.paid_wei
        elif intent.attempts:
            flying += max(one.gas * one.max_fee_wei for one in intent.attempts)
    return lane.spent_wei + flying + more_wei <= lane.limits.fee_day_wei


def _on_preflight(lane: Lane, event: PreflightDone, effects: list[Effect]) -> None:
    intent = lane.intents.get(event.purpose)
    if intent is None or event.purpose not in lane.asking or lane.halted:
        return
    del lane.asking[event.purpose]
    if intent.state not in _UNMINED:
        return
    if event.reason:
        intent.reason = event.reason
        if intent.nonce < 0:
            effects.append(Say(f"{intent.purpose} is not sent, it would revert: {event.reason}"))
            _end(lane, intent, "superfluous", effects)
            return
        intent.is_unwanted = True
        effects.append(Save(intent))
    if intent.attempts:
        _bump(lane, intent, effects)
        return
    is_cancel = intent.is_unwanted
    gas = CANCEL_GAS if is_cancel else _gas(lane, event.gas)
    fee, tip = _fee(lane)
    if not fee:
        return  # told by _begin
    if not _has_budget(lane, gas * fee):
        _over_budget(lane, effects)
        return
    if intent.nonce < 0:
        if len(in_flight(lane)) >= lane.limits.in_flight_max:
            return
        intent.nonce = lane.next_nonce
        lane.next_nonce += 1
        effects += [Save(intent), SaveLane(lane.next_nonce, lane.day, lane.spent_wei)]
    _sign(lane, intent, gas, (fee, tip), is_cancel, effects)


def _bump(lane: Lane, intent: Intent, effects: list[Effect]) -> bool:
    """Have it signed with a higher fee; False where the caps do not allow that."""
    last = intent.attempts[-1]
    is_cancel = intent.is_unwanted or last.is_cancel
    fee, tip = _higher_fee(lane, last)
    gas = CANCEL_GAS if is_cancel else last.gas
    if not fee:
        told = f"{intent.purpose} is stuck at the cap of {lane.limits.fee_cap_wei} wei for gas"
        _tell(lane, "stuck", told, effects)
    elif not _has_budget(lane, gas * fee - last.gas * last.max_fee_wei):
        _over_budget(lane, effects)
    else:
        _sign(lane, intent, gas, (fee, tip), is_cancel, effects)
        return True
    return False


def _over_budget(lane: Lane, effects: list[Effect]) -> None:
    told = f"transactions wait: the day's {lane.limits.fee_day_wei} wei for gas are spent"
    _tell(lane, "budget", told, effects, is_alarm=True)


def _sign(
    lane: Lane,
    intent: Intent,
    gas: int,
    fee: tuple[int, int],
    is_cancel: bool,
    effects: list[Effect],
) -> None:
    for topic in ("budget", "stuck"):
        _tell(lane, topic, "", effects)
    lane.signing[intent.purpose] = None
    effects.append(Sign(intent.purpose, intent.nonce, is_cancel, gas, *fee, lane.head))


# ---------------------------------------------------------------- sending


def _on_signed(lane: Lane, event: Signed, effects: list[Effect]) -> None:
    intent = lane.intents.get(event.purpose)
    if intent is None or event.purpose not in lane.signing or lane.halted:
        return  # it is on no disk, so it is sent by nobody
    del lane.signing[event.purpose]
    if intent.state not in _UNMINED:
        return
    intent.attempts.append(event.attempt)
    intent.state = "signed"
    effects += [Save(intent), Send(intent.purpose, event.attempt)]


def _on_sent(lane: Lane, event: Sent, effects: list[Effect]) -> None:
    intent = lane.intents.get(event.purpose)
    if intent is None or intent.state not in ("signed", "unknown", "broadcast"):
        return
    before = intent.state
    if event.how in ("accepted", "known"):
        intent.state = "broadcast"
    elif event.how in ("unknown", "nonce_used"):
        intent.state = "unknown"
    elif event.how == "refused" and event.text != intent.reason:
        intent.reason = event.text
        effects.append(Say(f"no node takes {intent.purpose}: {event.text}", is_alarm=True))
        effects.append(Save(intent))
    if intent.state != before:
        effects.append(Save(intent))
