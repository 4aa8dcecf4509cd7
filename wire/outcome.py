"""How an attempt ended: one byte on the wire, one word for a person."""

import enum


class Outcome(enum.IntEnum):
    """The reason an attempt ended, read from the kernel or from what we did ourselves.

    One u8 per subtask in the outcome column of a meter frame. Everything but ``OK`` may carry a
    ``Failure`` with details. The numbers are on disk and on the wire: never reuse one.
    """

    OK = 0  #: returned a value, or a command exited 0
    ERROR = 1  #: the function raised
    EXIT = 2  #: the command exited non-zero
    TIME = 3  #: over its wall-clock limit
    CPU = 4  #: over its cpu limit
    OOM = 5  #: over its memory limit
    PIDS = 6  #: over its process limit
    OUTPUT = 7  #: over its output limit
    FS = 8  #: refused or full file system
    SYSCALL = 9  #: a forbidden system call
    SIGNAL = 10  #: killed by another signal
    SETUP = 11  #: the jail or its environment could not be set up: never billed
    CANCELLED = 12  #: cancelled by its tenant
    NET = 13  #: tried to reach a network
    STORE = 14  #: its input or output could not be read from or written to the store
    #: its value cannot travel under the job's result rule, or its input cannot be read
    ENCODING = 15
    LOST = 16  #: lost with its worker more often than ``losses_max`` allows
    BUDGET = 17  #: the job's cap was reached
    RETURNED = 18  #: never started; handed back unspent (never final)
    DISPUTED = 19  #: its replicas differ, and no result has the quorum that its job asks for

    @property
    def word(self) -> str:
        """The word shown to people: ``ok``, ``time``, ``set-up``."""
        return "set-up" if self is Outcome.SETUP else self.name.lower()


#: Ends that are the subtask's own doing: billed, and they spend ``retries``.
OWN_DOING = frozenset(
    {
        Outcome.OK,
        Outcome.ERROR,
        Outcome.EXIT,
        Outcome.TIME,
        Outcome.CPU,
        Outcome.OOM,
        Outcome.PIDS,
        Outcome.OUTPUT,
        Outcome.FS,
        Outcome.SYSCALL,
        Outcome.SIGNAL,
        Outcome.NET,
        Outcome.ENCODING,
    }
)
#: Ends that the grid caused: never billed, and they spend ``losses_max``.
GRIDS_DOING = frozenset({Outcome.SETUP, Outcome.STORE, Outcome.LOST})
