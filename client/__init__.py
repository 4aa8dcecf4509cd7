"""The Python API of a gristmill grid: ``Client`` with map, submit, run and what they give back."""

from gristmill.client.client import Client
from gristmill.client.command import CommandOutput
from gristmill.client.errors import (
    BrokerUnavailable,
    BudgetReached,
    CommandFailed,
    CpuLimit,
    DecomposeError,
    EncodingFailed,
    GridError,
    JobFailed,
    KilledBySignal,
    NetworkRefused,
    OutOfMemory,
    OutputLimit,
    ProcessLimit,
    RemoteException,
    RemoteTraceback,
    ScratchError,
    SetupFailed,
    SizeWarning,
    StoreFailed,
    SubtaskCancelled,
    SubtaskError,
    SubtaskLost,
    SyscallRefused,
    TimeLimit,
    UnpicklableError,
    UnsafeResultError,
)
from gristmill.client.future import Future
from gristmill.client.jobs import Job
from gristmill.client.map import MapResults
from gristmill.client.options import Options
from gristmill.client.reading import Ended
from gristmill.wire.shared import Ref

__all__ = [
    "BrokerUnavailable",
    "BudgetReached",
    "Client",
    "CommandFailed",
    "CommandOutput",
    "CpuLimit",
    "DecomposeError",
    "EncodingFailed",
    "Ended",
    "Future",
    "GridError",
    "Job",
    "JobFailed",
    "KilledBySignal",
    "MapResults",
    "NetworkRefused",
    "Options",
    "OutOfMemory",
    "OutputLimit",
    "ProcessLimit",
    "Ref",
    "RemoteException",
    "RemoteTraceback",
    "ScratchError",
    "SetupFailed",
    "SizeWarning",
    "StoreFailed",
    "SubtaskCancelled",
    "SubtaskError",
    "SubtaskLost",
    "SyscallRefused",
    "TimeLimit",
    "UnpicklableError",
    "UnsafeResultError",
]
