"""Warm jails for tests: a host like any other, whose jails are made by mothers."""

import contextlib
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from gristmill.sandbox.host import Host
from gristmill.sandbox.interpreter import find_interpreter, runtime_binds
from gristmill.sandbox.jail import Jail
from gristmill.sandbox.limits import MEBIBYTE, Limits
from gristmill.sandbox.spec import BASE_ENV, Bind, JailSpec
from gristmill.sandbox.warm import Mother
from gristmill.worker.starter import MODULES, walls_of

BOOT = Path(__file__).with_name("warm_boot.py")
DEADLINE_S = 20


class WarmHost:
    """As ``Host``, for ``run`` and for tests: ``start`` makes a warm jail of the same spec.

    One mother for each set of limits and mounts; all end with ``close``.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.mothers: dict[Any, Mother] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.host, name)

    def mother(self, limits: Limits, binds: tuple[Bind, ...] = (), **changes: Any) -> Mother:
        """One that is ready."""
        key = limits, binds
        if key not in self.mothers or self.mothers[key].jail.poll() is not None:
            python = find_interpreter()
            mine = dataclasses.replace(limits, memory_bytes=256 * MEBIBYTE, pids_max=64)
            more = tuple(bind for bind in binds if bind not in python.binds)
            walls = walls_of(limits, (*python.binds, *more))
            spec = JailSpec(
                argv=(python.executable, "-I", "-B", "/warm_boot.py", "3", walls),
                binds=(
                    *python.binds, *runtime_binds(python, MODULES),
                    Bind(str(BOOT), "/warm_boot.py"), *more,
                ),
                limits=mine, cwd="/", is_mother=True, stderr=2, **changes,
            )  # fmt: skip
            mother = self.mothers[key] = self.host.start_mother(spec, 3)
            deadline = time.monotonic() + DEADLINE_S
            while not mother.is_ready:
                assert not mother.refusal, mother.refusal
                assert time.monotonic() < deadline, "no mother"
                time.sleep(0.005)
        return self.mothers[key]

    def start(self, spec: JailSpec) -> Jail:
        """A warm jail that becomes ``spec``'s command."""
        mother = self.mother(spec.limits, spec.binds)
        order = {
            "argv": [*spec.argv] if "/" in spec.argv[0] else ["/usr/bin/env", *spec.argv],
            "env": {**BASE_ENV, **spec.env},
            "cwd": spec.cwd,
        }
        page = os.memfd_create("order")
        null = os.open("/dev/null", os.O_RDWR)
        try:
            os.write(page, json.dumps(order).encode())
            ends = [null if fd is None else fd for fd in (spec.stdin, spec.stdout, spec.stderr)]
            return self.host.start_warm(mother, spec.limits, ends[0], page, ends[1], ends[2])
        finally:
            os.close(page)
            os.close(null)

    def close(self) -> None:
        """End all mothers."""
        for mother in self.mothers.values():
            with contextlib.suppress(OSError):
                mother.close()
        self.mothers.clear()
        sys.stderr.flush()
