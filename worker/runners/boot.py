"""First code of a slot: finds our code, then hands over to zygote.py.

Run as ``python -I -B boot.py SLOT_FD PAGE_FD RUNTIME KIND``; a mother (mother.py) has WALLS as one
more argument and her control socket as SLOT_FD. The job's own packages win over ours
for everything but ``gristmill`` itself: msgspec and cloudpickle are looked up with RUNTIME last,
our modules with RUNTIME first, and user code then finds RUNTIME last again. A slot of commands
(KIND ``command``) runs nothing of the job's here: it goes without what takes long to import.
"""

import gc
import os
import sys


def main() -> None:
    """Import our modules from RUNTIME and serve."""
    gc.disable()  # what is imported stays: to look through it again and again takes a tenth
    runtime = sys.argv[3]
    os.environ.pop("LD_BIND_NOW", None)  # it was for the start of this very process (starter.py)
    sys.path[:] = [entry for entry in sys.path if entry and not entry.endswith("/worker/runners")]
    if runtime:
        sys.path.insert(0, runtime)
    from gristmill.worker.runners.lean import spare_hooks

    spare_hooks()  # before anything else imports what it spares
    if runtime:
        sys.path.append(sys.path.pop(0))
    is_command = sys.argv[4] == "command"
    if is_command:  # msgspec asks for it, has another way, and it takes as long as the rest of it
        sys.modules["typing_extensions"] = None  # type: ignore[assignment]
    else:
        import cloudpickle  # type: ignore[import-untyped]  # noqa: F401  (the job's own copy wins)
    import msgspec  # noqa: F401

    if runtime:
        sys.path.insert(0, sys.path.pop())
    from gristmill.worker.runners.zygote import serve

    if is_command:
        from gristmill.worker.runners import commands  # noqa: F401
    is_mother = len(sys.argv) > 5
    if is_mother:
        from gristmill.worker.runners.mother import bear

    if runtime:
        sys.path.append(sys.path.pop(0))
    slot_fd, page_fd = int(sys.argv[1]), int(sys.argv[2])
    gc.freeze()
    if is_mother:
        slot_fd, page_fd = bear(slot_fd, sys.argv[5])
    gc.enable()
    serve(slot_fd, page_fd)


main()
