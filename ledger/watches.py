"""Questions that wait for another balance than the one that is known already.

Looked at every ``LOOK_MS`` at most, however much is posted meanwhile: a busy account is told at
that pace, and a mint within it.
"""

from collections.abc import Callable

from gristmill.ledger.core.state import LedgerState
from gristmill.wire.ledger import WATCH_MS, AskBalance

LOOK_MS = 100
WATCHES_MAX = 10_000  #: more than these are answered at once


def tag_of(state: LedgerState, tenant: str) -> str:
    """Another one when the figures of this tenant's account are others; "": of any account.

    >>> tag_of(LedgerState(), "ann")
    '0-0-0'
    """
    if not tenant:
        return str(state.transfers)
    its = state.accounts_of(tenant)
    came, went = sum(one.credits for one in its), sum(one.debits for one in its)
    return f"{came}-{went}-{sum(one.debits_pending for one in its)}"


class Watches:
    """See the module's text. A peer's question said again is the same one, and waits no longer."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[bytes, int], tuple[AskBalance, int]] = {}
        self._looked_ms = 0

    def take(self, peer: bytes, question: AskBalance, state: LedgerState, now_ms: int) -> bool:
        """Whether the question waits; else it is to be answered now."""
        if not question.seen or question.seen != tag_of(state, question.tenant):
            return False
        key = (peer, question.request)
        if key not in self._waiting and len(self._waiting) >= WATCHES_MAX:
            return False
        until = self._waiting[key][1] if key in self._waiting else now_ms + WATCH_MS
        self._waiting[key] = (question, until)
        return True

    def wait_ms(self, now_ms: int) -> int | None:
        """How long until somebody must be looked at; None when nobody waits."""
        return max(0, self._looked_ms + LOOK_MS - now_ms) if self._waiting else None

    def due(
        self, state: LedgerState, now_ms: int, answer: Callable[[bytes, AskBalance], None]
    ) -> None:
        """Answers those for whom there is another balance, or whose time is over."""
        if not self._waiting or 0 <= now_ms - self._looked_ms < LOOK_MS:
            return
        self._looked_ms = now_ms
        for key, (question, until) in list(self._waiting.items()):
            is_over = not until - WATCH_MS <= now_ms < until  # also when the clock was set back
            if is_over or question.seen != tag_of(state, question.tenant):
                del self._waiting[key]
                answer(key[0], question)
