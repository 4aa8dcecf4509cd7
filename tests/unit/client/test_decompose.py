import pathlib
import tempfile
import xml.etree.ElementTree as ElementTree
from importlib import metadata
from typing import Any

import pytest

from gristmill.client import Client, DecomposeError, TimeLimit
from gristmill.client.decompose import check_list, find_decomposer, request_digest
from gristmill.client.decompose.suite import aggregate, make_test_runner, pack_tree
from gristmill.wire import limits


@pytest.fixture(autouse=True)
def scratch(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a split unpacks goes with the jail; outside of one, with the test."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def split(name: str, **arguments: Any) -> list[list[Any]]:
    function, value = find_decomposer(name).prepare(arguments)
    return check_list(function(value), name, 0)


def test_lines(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("# note\nfirst\n\nfirst\n")
    assert split("lines", path=path, comment="#") == [["2", "first"], ["4", "first"]]
    assert len(split("lines", text="a\n\nb", blank=True)) == 3


def test_glob(tmp_path: pathlib.Path) -> None:
    for name in ("a.py", "b.txt", "deep/c.py", "deep/er/d.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    ids = [pair[0] for pair in split("glob", root=tmp_path, pattern="**/*.py")]
    assert ids == ["a.py", "deep/c.py", "deep/er/d.py"]
    assert split("glob", root=tmp_path, pattern="*.txt", absolute=False) == [["b.txt", "b.txt"]]
    assert split("glob", root=tmp_path, pattern=["deep/?.py"])[0][1] == f"{tmp_path}/deep/c.py"


def test_sweep() -> None:
    pairs = split("sweep", rate=[0.1, 0.2], size=[3])
    assert pairs[1] == ["rate=0.2,size=3", {"rate": 0.2, "size": 3}]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("text", "returned a str, not a list"),
        ([], "found nothing"),
        ([["a", 1], ["a", 2]], "element 1: its id 'a' is that of element 0 too"),
        ([["a", 1], 5], r"element 1: 5 is not \[id, input\]"),
        ([[1, 1]], "element 0: its id 1 is not a text"),
        ([["a", {1: 2}]], "element 0: its input {1: 2} is not a plain value"),
        ([["a", (1,)]], "not a plain value"),
    ],
)
def test_the_list_is_checked_whole(answer: Any, said: str) -> None:
    with pytest.raises(DecomposeError, match=said) as caught:
        check_list(answer, "it", 0)
    assert caught.value.code == "DECOMPOSE_FAILED"


def test_too_many_are_refused_before_any_exists() -> None:
    with pytest.raises(DecomposeError, match="100,001 subtasks; the limit is 100,000") as caught:
        check_list([["a", 1]] * (limits.DECOMPOSED_MAX + 1), "it", 0)
    assert caught.value.code == "DECOMPOSE_TOO_LARGE"


def test_the_same_request_has_the_same_digest() -> None:
    values = [find_decomposer("sweep").prepare({"a": [1], "b": [2]})[1] for _ in range(2)]
    first, second = (request_digest("sweep", 1, value) for value in values)
    assert first == second != request_digest("sweep", 2, values[0])


def test_a_request_becomes_a_job_with_its_parent(client: Client, peer: Any) -> None:
    peer.answers["decomposed"] = []
    parts = client.decompose("sweep", a=[1, 2], b=["x"])
    assert list(parts) == [{"a": 1, "b": "x"}, {"a": 2, "b": "x"}]
    spec = peer.jobs[1].spec
    assert (spec.tariff, spec.results, spec.count) == ("zero", "safe", 1)
    assert list(client.map(lambda p: p["a"], parts)) == [1, 2]
    assert peer.jobs[2].spec.parent == 1
    assert peer.jobs[2].spec.request_digest == parts.request_digest
    peer.answers["decomposed"] = lambda message: [
        job.status() for job in peer.jobs.values() if job.spec.request_digest == message.text
    ][:1]
    again = client.decompose("sweep", a=[1, 2], b=["x"])
    assert again.is_reused and list(again) == list(parts) and len(peer.jobs) == 2


def test_a_decomposer_that_fails_creates_nothing(
    client: Client, peer: Any, tmp_path: pathlib.Path
) -> None:
    peer.answers |= {"decomposed": [], "logs": []}
    path = tmp_path / "latin.txt"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DecomposeError, match="UnicodeDecodeError") as caught:
        client.decompose("lines", path=path)
    assert caught.value.code == "DECOMPOSE_FAILED"
    with pytest.raises(DecomposeError, match="no decomposer is named 'lin'"):
        client.decompose("lin")
    with pytest.raises(DecomposeError, match="give path or text"):
        client.decompose("lines")
    assert all(job.spec.tariff == "zero" for job in peer.jobs.values())


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "test_good.py").write_text("def test_a(): pass\ndef test_b(): pass\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/test_bad.py").write_text("def test_c(): assert 0, 'wrong'\n")
    (tmp_path / "data.txt").write_text("x")
    return tmp_path


def test_a_tree_is_split_and_put_together(tree: pathlib.Path) -> None:
    assert pack_tree(tree) == pack_tree(tree)
    names = [pair[0] for pair in split("pytest", tree=tree)]
    assert names == ["sub/test_bad.py", "test_good.py"]
    runner = make_test_runner(pack_tree(tree), [])
    verdict = aggregate({name: runner(name) for name in names}, 9)
    assert (verdict.exit_code, verdict.tests, verdict.failures, verdict.passed) == (1, 3, 1, 2)
    root = ElementTree.fromstring(verdict.junit)
    assert [suite.get("name") for suite in root] == names
    assert "wrong" in verdict.junit


def test_a_tree_that_is_not_there(client: Client, tmp_path: pathlib.Path) -> None:
    with pytest.raises(DecomposeError, match="is not a folder"):
        client.pytest(tmp_path / "nowhere")


def test_a_test_file_that_ended_another_way_is_an_error() -> None:
    error = TimeLimit("too long", index=0)
    verdict = aggregate({"test_slow.py": error}, 9)
    assert (verdict.exit_code, verdict.errors, verdict.tests) == (1, 1, 1)
    assert "time: too long" in verdict.junit


class Twice:
    name, version = "twice", 1

    def prepare(self, arguments: Any) -> Any:
        def split(value: Any) -> Any:
            return [["first", value], ["second", value]]

        return split, arguments["value"]


def test_other_packages_add_decomposers(
    client: Client, peer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = metadata.EntryPoint("twice", f"{__name__}:Twice", "gristmill.decomposers")
    monkeypatch.setattr(metadata.EntryPoint, "load", lambda self: Twice)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point])
    peer.answers["decomposed"] = []
    assert list(client.decompose("twice", value=7)) == [7, 7]
