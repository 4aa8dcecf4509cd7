"""bench/ still runs: a question that nobody asks for weeks must not have rotted meanwhile."""

import os
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

#: the module of each question is loaded, and its options are parsed: its main goes no further
ASK_ALL = """
import contextlib, importlib, io, pathlib, sys
sys.path.insert(0, sys.argv[1])
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.py")):
    question = importlib.import_module(path.stem)
    sys.argv = [path.name, "--quick", "--help"]
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            question.main()
    except SystemExit as end:
        assert end.code == 0 and "--quick" in said.getvalue(), path
    else:
        raise AssertionError(f"{path} did not parse its options")
    print(path.stem)
"""


def run(root: pathlib.Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", *arguments], cwd=root, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_each_question_loads_and_has_options(root: pathlib.Path) -> None:
    asked = run(root, "-c", ASK_ALL, str(root / "bench")).split()
    assert set(asked) >= {
        "throughput", "latency", "backlog", "payload", "fanout", "mixed", "jails", "ledger",
        "recovery", "overhead", "blobs", "endless", "losses",
    }  # fmt: skip


def test_questions_run_at_a_tiny_size(root: pathlib.Path) -> None:
    said = run(root, str(root / "tests" / "tidy" / "bench_tiny.py"), str(root / "bench"))
    assert '"contenders": 20' in said, said


def test_the_page_is_made_from_the_results(root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The results in the repository are enough for every section that they are of."""
    report = root / "bench" / "harness" / "report.py"
    run(root, str(report), "--docs", str(tmp_path))
    page = (tmp_path / "performance.md").read_text()
    assert [f"| T{number} |" in page for number in range(1, 14)] == [True] * 13
    shown = set(re.findall(r"\(plots/([a-z-]+\.svg)\)", page))
    made = {path.name for path in (tmp_path / "plots").iterdir()}
    assert shown == made
    for name in made:
        picture = ET.parse(tmp_path / "plots" / name).getroot()
        words = [element.text for element in picture.iter() if element.tag.endswith("text")]
        assert len(words) > 5 and all(words), name
