"""Our program of the seccomp policy decides as the one that nsjail makes of the same text."""

import ctypes
import os
import platform
import re
import select
import struct
import time

import pytest

from gristmill.sandbox.argv import policy_text
from gristmill.sandbox.filter import ALLOW, ERRNO, MACHINES, NUMBERS, X32_BIT, compile_policy
from gristmill.sandbox.spec import JailSpec

WORDS_OF_POLICY = re.findall(r"\b[a-z_0-9]+\b", re.sub(r"//.*", "", policy_text()))
NAMES = sorted(set(WORDS_OF_POLICY) & set(NUMBERS))
EPERM, ENOSYS = ERRNO | 1, ERRNO | 38
PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH, GET_FILTER = 0x4206, 0x4207, 17, 0x420C
#: values of an argument about which the policy has an opinion, and their neighbours
WORDS = [
    *(0, 1, 2, 3, 9, 10, 11, 16, 17, 0x11, 0x5411, 0x5412, 0x5413, 0x541B, 0x541C, 0x541D),
    *(1 << bit for bit in range(7, 33)),
    *(0x3D0F00, 0x7E020000, 0x10000011, 1 << 32 | 2, 1 << 32 | 0x5412, (1 << 64) - 1),
]


def decide(program, number, arguments=(0, 0, 0, 0, 0, 0), machine=None):
    """What the kernel would do: classic BPF over ``struct seccomp_data``."""
    architecture = MACHINES[machine or platform.machine()][1]
    data = struct.pack("<IIQ6Q", number, architecture, 0, *arguments)
    held, at = 0, 0
    while True:
        code, if_true, if_false, operand = struct.unpack_from("<HBBI", program, 8 * at)
        at += 1
        if code == 0x20:
            held = struct.unpack_from("<I", data, operand)[0]
        elif code == 0x54:
            held &= operand
        elif code == 0x05:
            at += operand
        elif code in (0x15, 0x25, 0x35, 0x45):
            is_true = {
                0x15: held == operand,
                0x25: held > operand,
                0x35: held >= operand,
                0x45: held & operand != 0,
            }[code]
            at += if_true if is_true else if_false
        elif code in (0x06, 0x16):
            return operand if code == 0x06 else held
        else:
            raise AssertionError(f"instruction {code:#x}")


@pytest.mark.parametrize("machine", sorted(MACHINES))
def test_each_name_is_refused_and_nothing_else_is(machine):
    column = MACHINES[machine][0]
    program = compile_policy(policy_text(machine), machine)
    text = re.sub(r"//.*", "", policy_text(machine))
    unconditional = [
        name for name in NAMES if re.search(rf"\b{name}\b(?!\()", text) and NUMBERS[name][column]
    ]
    refused = {NUMBERS[name][column] for name in unconditional}
    missing = {NUMBERS[name][column] for name in unconditional if re.match("clone3|io_ur", name)}
    for number in range(1024):
        wanted = ENOSYS if number in missing else EPERM if number in refused else ALLOW
        if number in (NUMBERS["socket"][column], NUMBERS["clone"][column]):
            continue  # they depend on an argument, see below
        assert decide(program, number, machine=machine) == wanted, number
    socket, clone, ioctl = (NUMBERS[name][column] for name in ("socket", "clone", "ioctl"))
    for word in WORDS:
        is_family = word in (1, 2, 10)
        got = decide(program, socket, (word, 0, 0, 0, 0, 0), machine)
        assert got == (ALLOW if is_family else EPERM)
        got = decide(program, clone, (word, 0, 0, 0, 0, 0), machine)
        assert got == (EPERM if word & 0x7E020000 else ALLOW)
        got = decide(program, ioctl, (0, word, 0, 0, 0, 0), machine)
        assert got == (EPERM if word & 0xFFFFFFFF in (0x5412, 0x541C) else ALLOW)


@pytest.mark.root
def test_the_kernel_has_the_same_decisions_of_nsjail(host, python):
    """nsjail's own program is read back from a cold jail, and both are asked about everything."""
    read, write = os.pipe()
    jail = host.start(JailSpec(argv=("cat",), stdin=read))
    try:
        theirs = program_of(inner_of(jail))
    finally:
        jail.close()
        os.close(read)
        os.close(write)
    ours = compile_policy(policy_text())
    assert theirs != ours  # or nothing is compared
    for number in range(1024):
        assert decide(theirs, number) == decide(ours, number), number
    for name in NAMES:
        number = NUMBERS[name][MACHINES[platform.machine()][0]]
        for word in WORDS:
            for place in range(2):
                arguments = [0] * 6
                arguments[place] = word
                assert decide(theirs, number, arguments) == decide(ours, number, arguments), (
                    name,
                    word,
                )
    if platform.machine() == "x86_64":  # where theirs has nothing to say, and the kernel has
        assert decide(ours, X32_BIT | NUMBERS["mount"][0]) == ENOSYS


def test_what_is_not_understood_is_no_program():
    good = policy_text()
    for word, other in (
        ("setns,", "setnothing,"),
        ("!= 0 }", "< 0 }"),
        ("DEFAULT ALLOW", "DEFAULT KILL"),
        ("family != 10", "other != 10"),
        ("ERRNO(38)", "TRAP(38)"),
        ("ptrace,", "ptrace, ptrace,"),
    ):
        assert word in good
        with pytest.raises(ValueError):
            compile_policy(good.replace(word, other, 1))
    with pytest.raises(ValueError, match="riscv64"):
        compile_policy(good, "riscv64")


def inner_of(jail):
    """Process 1 of a jail, once it is the command."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{jail.pid}/task/{jail.pid}/children") as file:
                for pid in map(int, file.read().split()):
                    with open(f"/proc/{pid}/comm") as comm:
                        if comm.read() in ("cat\n", "env\n"):
                            return pid
        except FileNotFoundError:
            pass
        select.select([], [], [], 0.005)
    raise AssertionError("the jail did not come up")


def program_of(pid):
    """The newest filter of a process, as the kernel has it."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long

    def ask(request, address, data):
        count = libc.ptrace(request, pid, address, data)
        if count < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return count

    ask(PTRACE_SEIZE, None, None)
    ask(PTRACE_INTERRUPT, None, None)
    os.waitpid(pid, 0x40000000)
    count = ask(GET_FILTER, None, None)
    program = ctypes.create_string_buffer(8 * count)
    ask(GET_FILTER, None, program)
    ask(PTRACE_DETACH, None, None)
    return program.raw
