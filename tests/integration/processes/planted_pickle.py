"""A library that opens a pickle inside a process of ours; imported by it as ``sitecustomize``.

It waits until the file ``PLANTED_TRIGGER`` is there, and then opens ``PLANTED_PICKLE`` in the way
that ``PLANTED_WAY`` names. Nothing happens without the three.
"""

import os
import pathlib
import threading
import time


def _open(frame: bytes, way: str) -> None:
    import io
    import pickle

    try:
        if way == "c":
            pickle.loads(frame)
        elif way == "python":
            pickle._loads(frame)  # type: ignore[attr-defined]
        elif way == "unpickler":
            pickle.Unpickler(io.BytesIO(frame)).load()
        elif way == "numpy":
            import numpy

            whole = io.BytesIO()
            numpy.save(whole, numpy.array([None], dtype=object), allow_pickle=True)
            head = whole.getvalue()[: whole.getvalue().index(b"\n") + 1]
            numpy.load(io.BytesIO(head + frame), allow_pickle=True)
    except BaseException:  # a library that hides what went wrong
        pass


def _wait() -> None:
    while not os.path.exists(os.environ["PLANTED_TRIGGER"]):
        time.sleep(0.01)
    frame = pathlib.Path(os.environ["PLANTED_PICKLE"]).read_bytes()
    _open(frame, os.environ["PLANTED_WAY"])


if "PLANTED_TRIGGER" in os.environ:
    threading.Thread(target=_wait, daemon=True).start()
