"""The seccomp policy as the kernel's own filter program, for jails that nsjail does not start.

nsjail compiles ``deny.kafel`` when it starts a jail. A warm jail (warm.py) is forked by a process
that is in a jail already and has to load the same policy by itself, so the same text is compiled
here too. Only what that text uses is known: lists of names, and a condition on one argument.
``tests/sandbox/test_filter.py`` compares both programs as the kernel has them.

A program is a row of 8-byte instructions (linux/filter.h) over ``struct seccomp_data``. They stand
in the order of the text: the kernel finds out by itself which calls are always allowed, and runs no
program for those.
"""

import platform
import re
import struct
from typing import Final

#: kafel's name -> number, on x86_64 and on aarch64; None: there is no such call.
NUMBERS: Final[dict[str, tuple[int, int | None]]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "clone": (56, 220),
    "clone3": (435, 435),
    "delete_module": (176, 106),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioctl": (16, 29),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "socket": (41, 198),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
}
#: machine -> column of ``NUMBERS``, AUDIT_ARCH of the kernel
MACHINES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
X32_BIT: Final = 0x40000000  #: x86_64: the same calls again, with 32-bit pointers
ENOSYS: Final = 38

LOAD, EQUAL, AT_LEAST, AND, RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
NR_AT, ARCH_AT, ARGS_AT = 0, 4, 16

_BLOCK = re.compile(r"ERRNO\((\d+)\)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_RULE = re.compile(r"(\w+)(?:\(([\w, ]*)\)\s*\{([^{}]*)\})?\s*(?:,|$)")
_TERM = re.compile(r"^\(?\s*\(?(\w+)(?:\s*&\s*(\w+)\s*\))?\s*(==|!=)\s*(\w+)\s*\)?$")

_Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand
_Term = tuple[int, int, bool, int]  # argument, mask (0: none), whether it is ==, value


def compile_policy(text: str, machine: str | None = None) -> bytes:
    """The program of a policy (``argv.policy_text``).

    Raises:
        ValueError: the machine or something in the text is not known here: no program, no jail.
    """
    machine = machine or platform.machine()
    if machine not in MACHINES:
        raise ValueError(f"no system call numbers for {machine}")
    column, architecture = MACHINES[machine]
    program: list[_Instruction] = [
        (LOAD, 0, 0, ARCH_AT),
        (EQUAL, 1, 0, architecture),
        (RETURN, 0, 0, KILL),
        (LOAD, 0, 0, NR_AT),
    ]
    if machine == "x86_64":
        program += [(AT_LEAST, 0, 1, X32_BIT), (RETURN, 0, 0, ERRNO | ENOSYS)]
    for name, number, terms, is_any in _rules(text):
        if name not in NUMBERS or NUMBERS[name][column] is None:
            raise ValueError(f"no number for {name} on {machine}")
        body = _condition(terms, is_any, ERRNO | number)
        program += [(EQUAL, 0, len(body), NUMBERS[name][column] or 0), *body]
    program.append((RETURN, 0, 0, ALLOW))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def _rules(text: str) -> list[tuple[str, int, list[_Term], bool]]:
    """(name, errno, terms, whether one term is enough) of each call that is refused."""
    text = re.sub(r"//[^\n]*", "", text)
    found: list[tuple[str, int, list[_Term], bool]] = []
    rest = text
    for block in _BLOCK.finditer(text):
        rest = rest.replace(block[0], "")
        body, at = block[2].strip(), 0
        while at < len(body):
            rule = _RULE.match(body, at)
            if rule is None:
                raise ValueError(f"policy: {body[at : at + 40]!r} is not understood")
            at = rule.end()
            while at < len(body) and body[at].isspace():
                at += 1
            name, names, condition = rule.groups()
            if name in (each[0] for each in found):
                raise ValueError(f"policy: {name} stands twice")
            arguments = [word.strip() for word in (names or "").split(",")]
            terms, is_any = _terms(condition, arguments) if condition else ([], True)
            found.append((name, int(block[1]), terms, is_any))
    words = re.sub(r"[{},\s]+", " ", rest).strip()
    if not re.fullmatch(r"POLICY (\w+) USE \1 DEFAULT ALLOW", words):
        raise ValueError(f"policy: {words[:80]!r} is not understood")
    return found


def _terms(condition: str, arguments: list[str]) -> tuple[list[_Term], bool]:
    is_any = "||" in condition
    if is_any and "&&" in condition:
        raise ValueError(f"policy: {condition!r} is not understood")
    terms = []
    for part in re.split(r"\|\||&&", condition):
        term = _TERM.match(part.strip())
        if term is None or term[1] not in arguments:
            raise ValueError(f"policy: {part.strip()!r} is not understood")
        mask, value = int(term[2] or "0", 0), int(term[4], 0)
        if max(mask, value) >= 1 << 32:
            raise ValueError(f"policy: {part.strip()!r} is wider than 32 bits")
        terms.append((arguments.index(term[1]), mask, term[3] == "==", value))
    return terms, is_any


def _condition(terms: list[_Term], is_any: bool, refusal: int) -> list[_Instruction]:
    """Refuse where all terms hold (or any); else allow. Without terms: refuse.

    Each term ends with a jump on whether the low word of its argument is its value; a term without
    a mask is about the high word as well.
    """
    if not terms:
        return [(RETURN, 0, 0, refusal)]
    parts = []
    for argument, mask, is_equal, value in terms:
        at = ARGS_AT + 8 * argument
        parts.append((at, mask, is_equal, value))
    # Behind all terms: "it holds" for any, "it does not" for all; then the other of the two.
    body: list[_Instruction] = []
    sizes = [3 if mask else 4 for _, mask, _, _ in parts]
    for number, (at, mask, is_equal, value) in enumerate(parts):
        left = sum(sizes[number + 1 :])  # instructions of the terms that follow
        # where a term leads when it decides (``out``), or when the next is asked (``on``)
        out, on = (left + 1, 0) if number + 1 < len(parts) else (1, 0)
        decides_when_equal = is_equal == is_any
        to_equal, to_other = (out, on) if decides_when_equal else (on, out)
        if mask:
            body += [(LOAD, 0, 0, at), (AND, 0, 0, mask)]
        else:
            body += [(LOAD, 0, 0, at + 4), (EQUAL, 0, to_other + 2, 0), (LOAD, 0, 0, at)]
        body.append((EQUAL, to_equal, to_other, value))
    decided, undecided = (refusal, ALLOW) if is_any else (ALLOW, refusal)
    return [*body, (RETURN, 0, 0, undecided), (RETURN, 0, 0, decided)]
