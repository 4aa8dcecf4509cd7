"""Names that lead elsewhere, end early, look like another, or do not fit: by what they try."""

from gristmill.wire import limits

LONG = limits.NAME_CHARS_MAX + 1

#: each leads out of a folder, or to it itself, when it is put behind the folder's path
LEAVES = [
    "..", "../x", "../../../../../../etc/passwd", "a/../../x", "a/b/../../../x", "/", "//",
    "/etc/passwd",
    "//etc/passwd", "a/..", ".", "./", "", "a/../../../dev/shm/x", "\0/../x",
]  # fmt: skip
#: each is read otherwise than it is written: shorter, longer, in another order, as another
TRICKS = [
    "a\0", "a\0.txt", "\0", "a/\0b", "a\nb", "a\r\nb", "\n", "a\tb", "\x1b[2Ja", "\x7f",
    "a\x85b",
    "\u202egnp.exe", "\u2066a\u2069", "\u200b", "a\u200db", "\ufeffa", "\u2028",
    "a\u2029",
]  # fmt: skip
#: dots and slashes that are none, and become some where a name is normalised (NFKC) or decoded
ALIKE = [
    "\uff0e\uff0e/x", "\u2025/x", "\uff0e\uff0e\uff0fx", "..\u2215x", "..\u2044x", "%2e%2e%2fx",
    "%2e%2e/x", "..%2fx", "..%c0%afx", "..\\x", "..\\..\\x", "C:\\x", "\\\\host\\x", "~", "~root/x",
    "$HOME/x", "${HOME}", "`id`", "$(id)", "a;id", "{0.__class__}", "%s%n",
    "file:///etc/passwd",
]  # fmt: skip
#: as long as nothing may be, and a byte or a character more
OVERLONG = [
    "a" * LONG, "a" * 256, "\xe9" * 128, "\U0001f600" * 64, "a/" * 2_000 + "a", "a" * 100_000,
    "/".join(["a" * 255] * 13),
]  # fmt: skip
#: what a file or an account of ours is called
RESERVED = [
    "broker.key", "ledger.key", "worker.key", "tokens", "journal.db", "ledger.db", "grid.json",
    "world", "(grid)", "toll", "-", "--help", "-rf", "CON", "NUL", "aux.txt", ".bashrc", ".ssh",
    "*",
    "con.", "j1", "*?[]", "local", "operator", "null", "None", "0", "-1", "1e9", "__proto__",
]  # fmt: skip
DIGEST = "ab" * 32
#: nearly a digest: other case, other digits, a line's end, a byte more or less, what int() takes
NEARLY_DIGESTS = [
    DIGEST.upper(), DIGEST[:-1], DIGEST + "0", DIGEST + "\n", "\n" + DIGEST, " " + DIGEST[1:],
    DIGEST[:-1] + "\0", DIGEST[:-1] + "\u0663", DIGEST[:-1] + "\uff10", "g" * 64, "0x" + DIGEST[2:],
    DIGEST[:62] + "..", "../" + DIGEST[3:], DIGEST[:31] + "/" + DIGEST[32:],
    "_".join("a" * 32) + "a",
]  # fmt: skip

EVERY = [*LEAVES, *TRICKS, *ALIKE, *OVERLONG, *RESERVED, *NEARLY_DIGESTS]
