"""The command line of nsjail: what must always be on it, in which unit, and what is refused."""

import resource
import subprocess

import pytest

from gristmill.sandbox.argv import build_argv, config_text, nsjail_path, policy_text
from gristmill.sandbox.errors import SandboxError
from gristmill.sandbox.limits import MEBIBYTE, Limits
from gristmill.sandbox.spec import Bind, JailSpec

FREE = {number: resource.RLIM_INFINITY for number in range(16)}


def build(has_group=True, hard=None, is_root=True, **fields):
    return build_argv(
        JailSpec(**{"argv": ("/bin/true",), **fields}),
        nsjail="/nsjail",
        policy_file="/policy",
        etc=None,
        is_root=is_root,
        has_group=has_group,
        hard_limits=hard or FREE,
    )


def value(argv, flag):
    assert argv.count(flag) == 1
    return argv[argv.index(flag) + 1]


def values(argv, flag):
    return [argv[at + 1] for at, word in enumerate(argv[: argv.index("--")]) if word == flag]


def test_rlimits_are_all_set_and_in_nsjails_units():
    limits = Limits(
        cpu_ms=1500,
        file_bytes_max=MEBIBYTE + 1,
        files_max=99,
        stack_bytes=16 * MEBIBYTE,
        address_space_bytes=3 * MEBIBYTE,
    )
    argv = build(limits=limits)
    assert value(argv, "--rlimit_cpu") == "3"  # seconds, rounded up, and one for clock ticks
    assert value(argv, "--rlimit_fsize") == "2"  # MiB, rounded up
    assert value(argv, "--rlimit_nofile") == "99"
    assert value(argv, "--rlimit_stack") == "16"
    assert value(argv, "--rlimit_as") == "3"
    assert value(argv, "--rlimit_core") == "0"
    assert value(argv, "--rlimit_nproc") == "inf"
    assert value(argv, "--rlimit_memlock") == "64"  # KiB
    assert value(argv, "--time_limit") == "0"  # nsjail's own default is 600 s
    assert value(argv, "--nice_level") == "0"  # and 19


def test_without_a_cgroup_rlimits_stand_in():
    argv = build(has_group=False, limits=Limits(memory_bytes=7 * MEBIBYTE, pids_max=5))
    assert value(argv, "--rlimit_as") == "7"
    assert value(argv, "--rlimit_nproc") == "5"
    assert value(build(limits=Limits(memory_bytes=7 * MEBIBYTE)), "--rlimit_as") == "inf"


def test_limits_never_pass_the_starters_own():
    hard = {**FREE, resource.RLIMIT_NOFILE: 64, resource.RLIMIT_CPU: 1}
    hard[resource.RLIMIT_NPROC] = 100
    argv = build(hard=hard, limits=Limits(cpu_ms=9000, files_max=256))
    assert value(argv, "--rlimit_nofile") == "64"
    assert value(argv, "--rlimit_cpu") == "1"
    assert value(argv, "--rlimit_nproc") == "hard"


def test_root_is_nobody_outside_and_never_root():
    assert value(build(), "--user") == "1000:65534:1"
    assert value(build(outside_uid=4321, outside_gid=4322), "--user") == "1000:4321:1"
    assert value(build(outside_uid=4321, outside_gid=4322), "--group") == "1000:4322:1"


def test_every_namespace_and_the_seccomp_policy_are_on():
    argv = build()
    assert value(argv, "--seccomp_policy") == "/policy"
    assert not [word for word in argv if word.startswith("--disable_clone") or "keep" in word]
    assert "--disable_no_new_privs" not in argv


def test_binds_come_in_order_and_only_writable_ones_are_writable():
    argv = build(
        binds=(Bind("/a", "/x"), Bind("/b", "/y", is_writable=True)),
    )
    assert values(argv, "--bindmount_ro")[-1] == "/a:/x"
    assert values(argv, "--bindmount")[-1] == "/b:/y"


def test_a_bare_word_is_looked_up_in_the_jail():
    assert build(argv=("ls", "-l"))[-3:] == ["/usr/bin/env", "ls", "-l"]
    assert build(argv=("./ls", "--", "x"))[-4:] == ["--", "./ls", "--", "x"]


def test_scratch_has_a_size_and_a_number_of_files():
    argv = build(limits=Limits(scratch_bytes=123, scratch_files_max=45, shm_bytes=0))
    assert values(argv, "--mount") == ["none:/tmp:tmpfs:size=123,nr_inodes=45,mode=1777"]
    assert len(values(build(), "--mount")) == 2


def test_the_environment_is_not_on_the_command_line():
    env = {"SECRET": "s3cret", "HOME": "/x"}
    assert "s3cret" not in " ".join(build(env=env))
    lines = config_text(JailSpec(argv=("true",), env=env)).decode().splitlines()
    values = [
        bytes(int(octal, 8) for octal in line[8:-1].split("\\")[1:]).decode() for line in lines[1:]
    ]
    assert "SECRET=s3cret" in values
    assert [value for value in values if value.startswith("HOME=")] == ["HOME=/x"]


def test_any_value_arrives_as_it_is(bare_host):
    from gristmill.sandbox.run import run

    env = {"ODD": "a\"b\\c\nd\t'e' =\u00e9\udcff", "EMPTY": "", "LD_PRELOAD": ""}
    spec = JailSpec(argv=("env", "-0"), env=env)
    lines = run(bare_host, spec).stdout.split(b"\0")
    assert b"ODD=a\"b\\c\nd\t'e' =\xc3\xa9\xff" in lines
    assert b"EMPTY=" in lines


def test_all_faults_are_told_at_once():
    with pytest.raises(SandboxError) as caught:
        build(
            argv=(),
            binds=(Bind("rel", "/a:b"),),
            fds={1: 1, 200: 1},
            env={"A=B": "1", "N": "a\0b", "M": "\ud800"},
        )
    for word in (
        "no command",
        "colon",
        "not absolute",
        "descriptor 1 ",
        "200",
        "'A=B'",
        "zero",
        "ud800",
    ):
        assert word in str(caught.value)


def test_the_policy_compiles_without_its_x86_lines_too(able, scratch):
    for machine in ("x86_64", "riscv64"):
        text = policy_text(machine)
        assert ("modify_ldt" in text) == (machine == "x86_64")
        command = [nsjail_path(), "--mode", "o", "--really_quiet", "--bindmount_ro", "/"]
        done = subprocess.run(
            [*command, "--seccomp_string", text, "--", "/bin/true"],
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr


def test_a_real_jail_has_these_limits(host, bare_host, python):
    from gristmill.sandbox.run import run

    code = (
        "import resource as r; "
        "print(*(r.getrlimit(getattr(r, 'RLIMIT_' + n))[1] for n in "
        "'AS CPU FSIZE NOFILE STACK CORE NPROC'.split()))"
    )
    limits = Limits(cpu_ms=3000, file_bytes_max=4 * MEBIBYTE, files_max=77, pids_max=9)
    spec = JailSpec(
        argv=(python.executable, "-I", "-S", "-c", code), binds=python.binds, limits=limits
    )
    space, cpu, size, files, stack, core, _ = run(host, spec).stdout.split()
    assert (space, cpu, size, files) == (b"-1", b"4", b"%d" % (4 * MEBIBYTE), b"77")
    assert (stack, core) == (b"%d" % (8 * MEBIBYTE), b"0")
    bare = run(bare_host, spec).stdout.split()
    assert bare[0] == b"%d" % limits.memory_bytes
    assert bare[6] == b"9"


def test_limits_say_every_field_that_is_out_of_range():
    with pytest.raises(ValueError, match=r"wall_ms is 0.*pids_max is -1") as caught:
        Limits(wall_ms=0, pids_max=-1, shm_bytes=0)
    assert "shm_bytes" not in str(caught.value)
