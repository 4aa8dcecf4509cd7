"""The pipes of children: real ones, and what is left in them."""

import os
import resource
from pathlib import Path
from typing import Any

import pytest

from gristmill.wire.outcome import Outcome
from gristmill.worker.runners import protocol
from gristmill.worker.runners.broom import Broom
from gristmill.worker.runners.children import Children, Pipes, Waited


@pytest.fixture
def children(tmp_path: Path) -> Children:
    setting = protocol.Setting(
        1, "function", "fork", False, False, 60_000, 0, 10_000, 1 << 20, str(tmp_path / "w"), ""
    )
    broom = Broom(setting.work_dir)
    broom.prepare()
    return Children(setting, broom, lambda *_: None, lambda: None)


def test_what_is_left_in_the_pipes_is_the_childs_that_is_gone(children: Children) -> None:
    pipes = children._pipes = Pipes()  # as in a jail: kept for the next
    os.write(pipes.out_end, b"late")
    os.write(pipes.err_end, b"words")
    os.write(pipes.note_end, b"reply")

    usage = resource.getrusage(resource.RUSAGE_SELF)
    waited = Waited()
    sinks = {pipes.bulk: bytearray(), pipes.out: waited.output[0], pipes.err: waited.output[1]}
    children._settle(waited, pipes, sinks, 0, usage)

    assert (waited.output, bytes(waited.reply)) == ((b"late", b"words"), b"reply")
    assert pipes.poll.poll(0) == []
    with pytest.raises(BlockingIOError):
        os.read(pipes.note, 1)
    pipes.close()


@pytest.mark.parametrize(
    ("text", "output"), [(b"x", b""), (b"x" * 200_000, b"o" * 9_999), (b"", b"o" * 70_000)]
)
def test_a_child_of_its_own_speaks_on_all_four(
    children: Children, text: bytes, output: bytes
) -> None:
    def work(value: Any, note: int, bulk: int) -> Any:
        for fd, what in ((1, output), (note if len(text) < 4096 else bulk, text)):
            view = memoryview(what)
            while view:
                view = view[os.write(fd, view) :]
        os._exit(7)

    before = set(os.listdir("/proc/self/fd"))
    waited = children.run(work, None)

    if len(output) > 10_000:
        assert waited.deed is Outcome.OUTPUT and len(waited.output[0]) == 10_000
    else:
        assert os.waitstatus_to_exitcode(waited.status) == 7
        assert (bytes(waited.output[0]), bytes(waited.reply)) == (output, text)
    assert len(os.listdir("/proc/self/fd")) == len(before), "its pipes are closed"
