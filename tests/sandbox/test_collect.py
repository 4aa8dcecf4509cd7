"""Collection: patterns, limits, and what hostile code may leave in the directory."""

import errno
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from gristmill.sandbox.collect import collect, measure, open_beneath


@pytest.fixture(params=["openat2", "by steps"], autouse=True)
def way(request, monkeypatch):
    """As the kernel does it, and as where openat2 is refused with ENOSYS."""
    if request.param == "by steps":
        monkeypatch.setattr("gristmill.sandbox.collect._OPENAT2", 1 << 20)
    return request.param


@pytest.fixture
def out(tmp_path):
    root = tmp_path / "out"
    (root / "plots" / "deep").mkdir(parents=True)
    (root / "a.csv").write_text("a")
    (root / "b.txt").write_text("bb")
    (root / "plots" / "c.png").write_text("ccc")
    (root / "plots" / "deep" / "d.png").write_text("dddd")
    (tmp_path / "secret.csv").write_text("s3cret")
    return root


def take(out, patterns, files_max=100, bytes_max=1 << 20):
    taken = {}

    def sink(path, chunks):
        taken[path] = b"".join(chunks)

    report = collect(str(out), patterns, sink, files_max=files_max, bytes_max=bytes_max)
    assert {file.path: file.size_bytes for file in report.files} == {
        path: len(content) for path, content in taken.items()
    }
    assert report.size_bytes == sum(map(len, taken.values()))
    return taken, dict(report.refused)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["*.csv"], {"a.csv"}),
        (["*"], {"a.csv", "b.txt"}),
        (["plots/*.png"], {"plots/c.png"}),
        (["plots/**/*.png"], {"plots/c.png", "plots/deep/d.png"}),
        (["**/*.png"], {"plots/c.png", "plots/deep/d.png"}),
        (["**"], {"a.csv", "b.txt", "plots/c.png", "plots/deep/d.png"}),
        (["?.[ct]*", "./nothing"], {"a.csv", "b.txt"}),
        (["plots"], set()),
        (["../secret.csv", "/secret.csv"], set()),
        ([], set()),
        (["**/" * 40 + "x"], set()),
    ],
)
def test_patterns(out, patterns, expected):
    taken, refused = take(out, patterns)
    assert set(taken) == expected
    assert refused == {}


def test_links_of_every_kind_are_refused(out, tmp_path, way):
    (out / "link.csv").symlink_to(tmp_path / "secret.csv")
    (out / "up").symlink_to("..")
    (out / "loop").symlink_to("loop")
    (out / "inside.csv").symlink_to("a.csv")
    taken, refused = take(out, ["**"])
    assert b"s3cret" not in taken.values()
    assert set(refused) == {"link.csv", "up", "loop", "inside.csv"}
    root = os.open(out, os.O_DIRECTORY)
    try:
        for path in ("link.csv", "up/secret.csv", "../secret.csv", "/etc/passwd", "plots/../../x"):
            with pytest.raises(OSError, match=r".+"):
                os.close(open_beneath(root, path))
        if way == "openat2":
            os.close(open_beneath(root, "plots/../a.csv"))  # within is within
        else:
            with pytest.raises(OSError, match="cross-device"):
                open_beneath(root, "plots/../a.csv")
        for path in ("up/secret.csv", "link.csv", "inside.csv"):
            with pytest.raises(OSError) as caught:
                open_beneath(root, path)
            assert caught.value.errno == errno.ELOOP
        before = len(os.listdir("/proc/self/fd"))
        os.close(open_beneath(root, "plots/deep/d.png"))
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        os.close(root)


def test_a_fifo_and_a_socket_do_not_block(out):
    os.mkfifo(out / "fifo")
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(str(out / "socket"))
        _, refused = take(out, ["**"])
    assert refused == {"fifo": "a FIFO", "socket": "a socket"}


def test_count_and_size_are_limited_and_the_rest_still_looked_at(out):
    taken, refused = take(out, ["**"], files_max=2)
    assert (len(taken), len(refused)) == (2, 2)
    assert "more than 2 files" in refused["plots/c.png"]
    taken, refused = take(out, ["**"], bytes_max=5)
    assert set(taken) == {"a.csv", "b.txt"}
    assert refused["plots/c.png"] == "3 bytes where 2 are left"


def test_a_file_that_grows_is_read_to_the_size_it_had(out):
    (out / "a.csv").write_bytes(b"x" * 100)

    def sink(path, chunks):
        with open(out / "a.csv", "ab") as file:
            file.write(b"y" * 1000)
        assert b"".join(chunks) == b"x" * 100

    report = collect(str(out), ["a.csv"], sink, files_max=1, bytes_max=200)
    assert report.size_bytes == 100


def test_executables_are_told(out):
    (out / "a.csv").chmod(0o755)
    report = collect(
        str(out), ["*"], lambda _, chunks: list(chunks) and None, files_max=9, bytes_max=99
    )
    assert [file.is_executable for file in report.files] == [True, False]


def test_a_directory_that_cannot_be_opened_is_refused_not_fatal(out):
    deep = out
    for _ in range(66):
        deep = deep / "d"
        deep.mkdir()
    (deep / "x").write_text("x")
    taken, refused = take(out, ["**"])
    assert len(taken) == 4
    assert list(refused.values()) == ["deeper than 64 directories"]


def test_measure_counts_what_is_there_and_follows_nothing(out, tmp_path):
    (out / "away").symlink_to("/usr")
    (out / "sparse").open("wb").truncate(1 << 40)
    entries, size_bytes = measure(str(out))
    assert entries == 8
    assert size_bytes < 1 << 20
    (out / "big").write_bytes(b"x" * (1 << 20))
    assert measure(str(out))[1] >= 1 << 20


@pytest.mark.root
def test_a_mount_is_a_way_out(out, tmp_path, way):
    """Also a second mount of the very same file system, which has the same device number."""
    (out / "plots" / "mnt").mkdir()
    (out / "bound.csv").touch()
    script = (
        "import os, sys\n"
        "from gristmill.sandbox import collect\n"
        "if sys.argv[2] == 'by steps': collect._OPENAT2 = 1 << 20\n"
        "found = {}\n"
        "report = collect.collect(sys.argv[1], ['**'], lambda path, chunks: found.update(\n"
        "    {path: b''.join(chunks)}), files_max=99, bytes_max=999)\n"
        "print(sorted(found), dict(report.refused))\n"
    )
    mounts = "mount --bind $1/.. $1/plots/mnt && mount --bind $1/../secret.csv $1/bound.csv"
    command = ["unshare", "-m", "sh", "-euc", f'{mounts} && exec "$2" -c "$4" "$1" "$3"', "sh"]
    done = subprocess.run(
        [*command, str(out), sys.executable, way, script],
        capture_output=True, text=True, check=True, cwd=pathlib.Path.cwd(),
    )  # fmt: skip
    taken, _, refused = done.stdout.partition("] {")
    assert "secret" not in taken and "bound" not in taken and "'a.csv'" in taken
    assert "'plots/mnt': 'Invalid cross-device link'" in refused
    assert "'bound.csv': 'Invalid cross-device link'" in refused
