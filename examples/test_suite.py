"""Runs the test suite of a package from the package index over the grid and with plain pytest.

The verdicts must be the same.

Run it inside a grid: `gristmill up -- python -P examples/test_suite.py`.
"""

import argparse
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from gristmill.client import Client
from gristmill.wire.units import format_credits

PACKAGE = "toolz==1.0.0"  #: pure Python, and its source distribution brings its tests


def download(package: str, folder: Path) -> Path:
    """The source tree of a package, unpacked below a folder."""
    archives = list(folder.glob(f"{package.partition('==')[0]}-*.tar.gz"))
    if not archives:
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
            "--no-deps", "--no-binary", ":all:", "--dest", str(folder), package,
        ]  # fmt: skip
        subprocess.run(command, check=True)
        archives = list(folder.glob("*.tar.gz"))
    with tarfile.open(archives[0]) as archive:
        name = archive.getnames()[0].partition("/")[0]
        # Python 3.11.0 to 3.11.3 has no filter; pip has already run what this archive says.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(folder)
    return folder / name


def plain_pytest(tree: Path, junit: Path) -> tuple[int, dict[str, int]]:
    """(exit code, counts) of pytest on this machine, without the grid."""
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={junit}",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    head = re.search(r"<testsuite [^>]*>", junit.read_text()) if junit.exists() else None
    if head is None:
        sys.exit(f"plain pytest wrote no report:\n{done.stdout}{done.stderr}")
    counts = {
        what: int(found[1])
        for what in ("tests", "failures", "errors", "skipped")
        if (found := re.search(rf'\b{what}="(\d+)"', head[0]))
    }
    return done.returncode, counts


def main() -> None:
    """Download, run twice, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out"))
    parser.add_argument("--package", default=PACKAGE)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    junit = arguments.out / "test_suite.xml"

    with tempfile.TemporaryDirectory() as folder:
        tree = download(arguments.package, Path(folder))
        with Client() as client:
            verdict = client.pytest(tree, junit=junit, timeout="10m", memory="1G")
            job = client.job(verdict.job)
            bill = job.bill()
        code, counts = plain_pytest(tree, Path(folder, "plain.xml"))

    for name, one in sorted(verdict.files.items()):
        print(f"{'ok' if one == 0 else f'exit {one}':8} {name}")
    ours = {
        "tests": verdict.tests, "failures": verdict.failures, "errors": verdict.errors,
        "skipped": verdict.skipped,
    }  # fmt: skip
    print(f"{arguments.package} on the grid: {verdict}")
    print(f"{arguments.package} in plain pytest: exit code {code}, {counts}")
    print(f"results: {junit}")
    print(
        f"bill: {job.id}, {bill.subtasks:,} subtasks, {bill.cpu_us / 1e6:.2f} s of cpu, "
        f"{format_credits(bill.amount_ucredits)} credits (gristmill usage)"
    )
    if (verdict.exit_code, ours) != (code, counts):
        sys.exit("the verdicts differ")


if __name__ == "__main__":
    main()
