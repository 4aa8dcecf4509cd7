"""Nothing of a machine, a site or a person is in the repository."""

import pathlib
import re

import pytest

KEEPS_STATE = {".db", ".sqlite", ".sqlite3", ".pem", ".key", ".p12", ".pfx", ".jks", ".keystore"}
BYTES_MAX = 1 << 20  #: a larger file is not source

# Each pattern is written so that it does not match its own text.
PATTERNS = {
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE[ ]KEY-----",
    "a CURVE secret": r"secret-key\s*=\s*\"[0-9A-Za-z.:+=^!/*?&<>()\[\]{}@%$#-]{40}\"",
    "a token": r"\b(?:gh[pousr]_[0-9A-Za-z]{36}|AKI[A][0-9A-Z]{16}|sk-[0-9A-Za-z]{32,}"
    r"|xox[abpr]-[0-9A-Za-z-]{10,}|pypi-AgE[0-9A-Za-z_-]{20,})",
    "credentials in an address": r"\b[a-z][a-z+]*://[^/\s:@\"'<>{}$]+:[^/\s@\"'<>{}$]+@[a-z0-9]",
    "the path of a machine": r"(?<![\w.}])/(?:roo[t]|hom[e]/\w+|User[s]/\w+)/[\w.]"
    r"|(?<![\w.}])/wor[k]/(?:main|shared|\.)",
    "the host of a package registry": r"(?i)\b(?:extra-)?index-ur[l]\b|\btrusted-hos[t]\b"
    r"|\bGOPROX[Y]\s*=|//[\w.-]*\b(?:artifactor[y]|nexu[s]|jfro[g])\b",
}


@pytest.mark.parametrize("what", PATTERNS)
def test_no_file_holds(what: str, root: pathlib.Path, files: list[pathlib.Path]) -> None:
    pattern = re.compile(PATTERNS[what])
    found = []
    for path in files:
        text = path.read_bytes().decode("utf-8", errors="replace")
        for match in pattern.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            found.append(f"{path.relative_to(root)}:{line} {match[0][:12]}...")
    assert not found, f"{what} is in the repository"


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("a private key", "-----BEGIN OPENSSH PRIVATE" + " KEY-----"),
        ("a token", "gh" + "p_" + "a1" * 18),
        ("credentials in an address", "amqp" + "://me:word@broker"),
        ("the path of a machine", "see /ro" + "ot/.cache"),
        ("the path of a machine", 'open("/ho' + 'me/ann/x")'),
        ("the host of a package registry", "pip --index-u" + "rl x"),
    ],
)
def test_the_patterns_find(what: str, text: str) -> None:
    assert re.search(PATTERNS[what], text)


def test_no_file_keeps_state(root: pathlib.Path, files: list[pathlib.Path]) -> None:
    found = [
        path.relative_to(root)
        for path in files
        if path.suffix in KEEPS_STATE
        or path.stat().st_size > BYTES_MAX
        or path.open("rb").read(16) == b"SQLite format 3\0"
    ]
    assert not found
