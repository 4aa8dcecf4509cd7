"""What the tests of clients share: a call that takes a while, and for how long they may wait."""

import time

DEAD_S = 15.0  #: the promise: nobody waits longer for a dead broker


def doubled(number: int, seconds: float = 0.0) -> int:
    """A call whose value shows which call it was."""
    time.sleep(seconds)
    return 2 * number
