"""``pytest``: a source tree to one subtask for each test file, and one verdict of all of them.

The tree travels once, as a tar that every subtask unpacks into its own scratch folder, so tests
cannot spoil each other's files. The interpreter and its packages are the environment's, read-only.
"""

import io
import os
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

from gristmill.client.errors import DecomposeError, SubtaskError
from gristmill.client.options import Options

if TYPE_CHECKING:
    from gristmill.client.client import Client

#: of pytest: all passed, some failed, interrupted, internal error, usage error, no tests
PASSED, FAILED, NO_TESTS = 0, 1, 5
_LEFT_OUT = {
    ".git", ".hg", ".mypy_cache", ".nox", ".pytest_cache", ".ruff_cache", ".tox", ".venv",
    "__pycache__", "node_modules",
}  # fmt: skip
TREE_BYTES_MAX = 256 << 20

#: runs in the jail: names of test files that pytest would collect, as JSON on the last line
_COLLECT = """
import json, os, sys, pytest
class Files:
    def __init__(self): self.names = {}
    def pytest_itemcollected(self, item): self.names[str(item.path)] = None
    def pytest_collectreport(self, report):
        if report.failed and report.fspath: self.names[os.path.abspath(report.fspath)] = None
files = Files()
code = pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *sys.argv[1:]], [files])
here = os.getcwd() + os.sep
names = [name.removeprefix(here) for name in files.names if name.startswith(here)]
print("\\n" + json.dumps([int(code), sorted(names)]))
"""


class Pytest:
    """Test files of a source tree.

    Arguments: ``tree`` (a folder), ``args`` for pytest (a list). The input is a test file's
    path below the tree, which is its id too.
    """

    name = "pytest"
    version = 1

    def prepare(self, arguments: Mapping[str, Any]) -> tuple[Callable[[Any], list[list[Any]]], Any]:
        """See ``Decomposer``."""
        rest = {**arguments}
        tree, args = rest.pop("tree"), list(rest.pop("args", ()))
        packed = rest.pop("packed", None)  # a tree that was packed already
        if rest:
            raise TypeError(f"no argument {', '.join(rest)}; there are tree and args")
        value = [packed if packed is not None else pack_tree(tree), args]
        script = _COLLECT

        def split(value: Any) -> list[list[Any]]:
            import io
            import json
            import os
            import subprocess
            import sys
            import tarfile
            import tempfile

            body, args = value
            folder = tempfile.mkdtemp()
            with tarfile.open(fileobj=io.BytesIO(body)) as archive:
                # Python 3.11.0 to 3.11.3 has no filter; ``pack_tree`` packs plain files only.
                archive.extraction_filter = getattr(tarfile, "data_filter", None)
                archive.extractall(folder)
            done = subprocess.run(
                [sys.executable, "-c", script, *args],
                cwd=folder,
                env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
                capture_output=True,
                text=True,
                check=False,
            )
            try:
                _, names = json.loads(done.stdout.strip().splitlines()[-1])
            except (ValueError, IndexError):
                raise RuntimeError(
                    f"pytest --collect-only ended with {done.returncode}\n{done.stdout[-3000:]}\n"
                    f"{done.stderr[-3000:]}"
                ) from None
            return [[name, name] for name in names]

        return split, value


def pack_tree(tree: str | os.PathLike[str]) -> bytes:
    """A folder as a tar whose bytes depend on names, contents and x bits only.

    Raises:
        ValueError: not a folder, or larger than ``TREE_BYTES_MAX``.
    """
    root = Path(tree)
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder")
    buffer, total = io.BytesIO(), 0
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for folder, folders, files in os.walk(root):
            folders[:] = sorted(f for f in folders if f not in _LEFT_OUT)
            for name in sorted(files):
                path = Path(folder, name)
                if path.suffix == ".pyc" or path.is_symlink() or not path.is_file():
                    continue
                body = path.read_bytes()
                total += len(body)
                if total > TREE_BYTES_MAX:
                    raise ValueError(f"{root} has more than {TREE_BYTES_MAX >> 20} MiB of files")
                entry = tarfile.TarInfo(str(path.relative_to(root)))
                entry.size = len(body)
                entry.mode = 0o755 if os.access(path, os.X_OK) else 0o644
                archive.addfile(entry, io.BytesIO(body))
    return buffer.getvalue()


class SuiteVerdict(NamedTuple):
    """What a test suite ended with.

    ``exit_code`` is plain pytest's; ``files``: exit code by test file; ``junit``: one report.
    """

    exit_code: int
    tests: int
    failures: int
    errors: int
    skipped: int
    files: dict[str, int]
    junit: str
    job: int

    @property
    def passed(self) -> int:
        """Tests that ran and did not fail."""
        return self.tests - self.failures - self.errors - self.skipped

    def __str__(self) -> str:
        word = "passed" if self.exit_code == PASSED else f"failed (exit code {self.exit_code})"
        return (
            f"{word}: {self.passed} passed, {self.failures} failed, {self.errors} errors, "
            f"{self.skipped} skipped in {len(self.files)} files"
        )


def make_test_runner(tree: bytes, args: Sequence[str]) -> Callable[[str], list[Any]]:
    """A function that runs one test file of the tree; it travels with the tree inside."""
    arguments = list(args)

    def run_test_file(name: str) -> list[Any]:
        import io
        import os
        import subprocess
        import sys
        import tarfile
        import tempfile

        folder = tempfile.mkdtemp()
        with tarfile.open(fileobj=io.BytesIO(tree)) as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)
            archive.extractall(folder)
        report = os.path.join(tempfile.mkdtemp(), "junit.xml")
        done = subprocess.run(
            [
                sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
                f"--junitxml={report}", *arguments, name,
            ],
            cwd=folder,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )  # fmt: skip
        junit = ""
        if os.path.exists(report):
            with open(report, encoding="utf-8") as file:
                junit = file.read()
        return [name, done.returncode, junit, (done.stdout + done.stderr)[-4000:]]

    return run_test_file


def run_suite(
    client: "Client",
    tree: str | os.PathLike[str],
    *,
    args: Sequence[str] = (),
    junit: str | os.PathLike[str] | None = None,
    **options: Unpack[Options],
) -> SuiteVerdict:
    """Run the test suite of a source tree, a jail for each test file.

    Args:
        client: of the grid.
        tree: folder with the sources and the tests, and pytest's configuration if it has one.
        args: more arguments for pytest, for the collection too.
        junit: where to write the one JUnit XML report.
        options: of the job, see ``Options``; the default name is the tree's.

    Raises:
        DecomposeError: pytest could not collect the tree.
        SubtaskError: never; a test file that ended another way counts as an error.
    """
    try:
        packed = pack_tree(tree)
    except (ValueError, OSError) as error:
        raise DecomposeError("DECOMPOSE_FAILED", str(error), "correct the request") from error
    files = client.decompose("pytest", tree=str(tree), args=list(args), packed=packed)
    named: Options = {"name": f"pytest {Path(tree).resolve().name}", "pids": 256, **options}
    results = client.map(make_test_runner(packed, args), files, return_exceptions=True, **named)
    job, outcomes = results.job, list(results)
    verdict = aggregate(dict(zip(files.ids, outcomes, strict=True)), job)
    if junit is not None:
        Path(junit).write_text(verdict.junit, encoding="utf-8")
    return verdict


def aggregate(outcomes: dict[str, Any], job: int) -> SuiteVerdict:
    """One verdict of what every test file gave back, or of how its subtask ended."""
    root = ElementTree.Element("testsuites", name="gristmill")
    codes: dict[str, int] = {}
    sums = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for name, outcome in outcomes.items():
        if isinstance(outcome, BaseException):
            codes[name] = FAILED
            suites = [_broken(name, outcome)]
        else:
            _, codes[name], report, output = outcome
            suites = _suites(report) or [_broken(name, RuntimeError(output or "no report"))]
        for suite in suites:
            suite.set("name", name)
            for what in sums:
                sums[what] += int(suite.get(what, 0))
            root.append(suite)
    for what, number in sums.items():
        root.set(what, str(number))
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode", xml_declaration=True)
    return SuiteVerdict(_exit_code(list(codes.values())), **sums, files=codes, junit=text, job=job)


def _exit_code(codes: list[int]) -> int:
    """Plain pytest's: the worst of what is neither passed nor empty.

    An error in the collection (2) is stronger than a failed test: plain pytest then runs nothing.
    """
    if all(code == NO_TESTS for code in codes):
        return NO_TESTS
    return max((code for code in codes if code != NO_TESTS), default=PASSED)


def _suites(report: str) -> list[ElementTree.Element]:
    if not report:
        return []
    root = ElementTree.fromstring(report)
    return [root] if root.tag == "testsuite" else list(root.iter("testsuite"))


def _broken(name: str, error: BaseException) -> ElementTree.Element:
    """A test file without a report of its own: one error."""
    suite = ElementTree.Element("testsuite", name=name, tests="1", errors="1")
    case = ElementTree.SubElement(suite, "testcase", classname=name, name="(the file)")
    outcome = error.outcome.word if isinstance(error, SubtaskError) else "error"
    found = ElementTree.SubElement(case, "error", message=f"{outcome}: {error}"[:500])
    found.text = "\n".join([str(error), *getattr(error, "__notes__", [])])
    return suite
