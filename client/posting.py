"""A submission that is left behind: every input on disk, nobody waiting for the results.

``Client.map`` and ``Client.run`` feed inputs as results come back, because they read them.
``Client.post`` uploads everything and goes; its memory is bounded by the commits of inputs.
"""

import threading
from collections.abc import Callable, Iterable
from typing import Any

from gristmill.client.encode import Parcels
from gristmill.client.errors import BrokerUnavailable, GridError
from gristmill.client.keyed import KeptParcels, submission_of
from gristmill.client.link import Link, Sink
from gristmill.client.map import with_way_back
from gristmill.wire import client as wire
from gristmill.wire.ids import JobId
from gristmill.wire.spec import JobSpec
from gristmill.wire.values import BlobRef

UNCOMMITTED_BYTES = 32 << 20  #: of parcels on their way to the broker's disk
_WAKE_S = 1.0


class Upload(Sink):
    """One job on its way to the broker's disk; all of it from the thread that posts."""

    def __init__(self) -> None:
        self.job: JobId = 0
        self._changed = threading.Condition()
        self._is_closed = False
        self._error: GridError | None = None
        self._committed = 0

    # ------------------------------------------------------------ in the link's thread

    def on_accepted(self, job: int) -> None:
        """The job is on disk."""
        with self._changed:
            self.job = job
            self._changed.notify()

    def on_moved(self, committed: int, unsent: int) -> None:
        """Inputs went to disk."""
        with self._changed:
            self._committed = committed
            self._changed.notify()

    def on_upload_closed(self) -> None:
        """Every input is counted."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()

    def on_upload_failed(self, error: GridError) -> None:
        """The submission or an input was refused."""
        with self._changed:
            self._error = with_way_back(error, self.job)
            self._changed.notify()

    # ------------------------------------------------------------ in the caller's thread

    def wait_committed(self, inputs: int) -> None:
        """Until this many inputs are on disk."""
        self._wait(lambda: self._committed >= inputs or self._is_closed)

    def wait_accepted(self) -> JobId:
        """Until the job has a number."""
        self._wait(lambda: self.job != 0)
        return self.job

    def wait_closed(self) -> None:
        """Until the broker has counted every input."""
        self._wait(lambda: self._is_closed)

    def _wait(self, is_so: Any) -> None:
        with self._changed:
            while not is_so():
                if self._error is not None:
                    raise self._error
                self._changed.wait(_WAKE_S)
            if self._error is not None:
                raise self._error


def post(
    link: Link,
    store_blob: Callable[[bytes], BlobRef],
    spec: JobSpec,
    function: bytes,
    inputs: Iterable[Any],
    key: str | None = None,
) -> JobId:
    """Submit a job with all of its inputs; the job, once everything is on disk.

    When this is interrupted (Ctrl-C, an input that cannot be read) the job is cancelled: nobody
    asked for a part of it. One with a key is left as it is: it will be asked for again.

    Raises:
        GridError: the submission or an input was refused.
    """
    parcels = Parcels(inputs, None, store_blob)
    if key is not None:
        parcels = kept = KeptParcels(inputs, store_blob)
        spec = kept.spec(spec)
    upload = Upload()
    number = link.open_job(wire.Submit(b"", 0, submission_of(key), spec), function, upload)
    sent = 0
    waiting: list[tuple[int, int]] = []  # (inputs up to here, bytes of the parcel)
    try:
        job = upload.wait_accepted()
        link.unwatch(job)
        while (packed := parcels.take(1 << 20)) is not None:
            link.send_parcel(number, packed.items, packed.codec, packed.frame)
            sent += packed.items
            waiting.append((sent, len(packed.frame)))
            while sum(size for _, size in waiting) > UNCOMMITTED_BYTES:
                upload.wait_committed(waiting.pop(0)[0])
        link.end_upload(number)
        upload.wait_closed()
    except BaseException as error:
        if upload.job and key is None and not isinstance(error, BrokerUnavailable):
            link.end_upload(number)
            link.ask(wire.Cancel(b"", 0, upload.job, []))
        raise
    return job
