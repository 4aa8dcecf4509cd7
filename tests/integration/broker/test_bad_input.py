"""What makes no sense is answered and counted, and the others go on."""

import hashlib
import os
import random
import stat
import subprocess

import pytest

import gristmill.wire.client as wc
import gristmill.wire.worker as ww
from gristmill.wire import limits
from gristmill.wire.frames import encode
from gristmill.wire.spec import Command, JobSpec


def refusal(peer, frames, kind=wc.Refused):
    """The code of the answer to raw frames."""
    peer.socket.send_multipart(frames)
    got = peer.receive()
    assert got and isinstance(got[0], kind), got
    return got[0]


def test_every_malformed_message_of_a_client_is_answered_and_counted(grid):
    client, other = grid.client(), grid.client()
    job = client.submit().job
    session, spec = client.session, JobSpec("command", command=Command(["true"]))
    bad = [
        [b""],
        [b"\xff" * 40],
        [b"\x91\x63"],
        [b"\x91" * 5_000],
        [encode(wc.Ping(session))[:-3]],
        [b"\x00" * (limits.HEADER_BYTES_MAX + 1)],
        [encode(wc.Ping(session)), b"a body too many"],
        [encode(wc.Parcel(session, job, 0, 1, "q"))],
        [encode(wc.Parcel(session, job, -1, 1, "q")), b"12345678"],
        [encode(wc.Parcel(session, job, 0, 1, "")), b"12345678"],
        [encode(wc.Parcel(session, job, 0, 9, "range")), b"12345678"],
        [encode(wc.Parcel(session, job, 0, 1, "@q")), b"\xc1"],
        [encode(wc.Parcel(session, job, 0, 1, "@q")), b"\x93\xa0\x00" + b"\x91" * 20_000],
        [encode(wc.Submit(session, 7, b"short", spec)), b""],
        [encode(wc.Submit(session, 7, b"s" * 16, spec)), b"bytes of a command"],
        [encode(wc.Subscribe(session, 7, job, -1, 0))],
        [encode(wc.Cancel(session, 7, job, [(-1, 5)]))],
        [encode(wc.CloseUpload(session, 7, job, -2))],
        [encode(wc.Ask(session, 7, "jobs", limit=0))],
        [encode(wc.Hello(limits.PROTOCOL, b"x", "local", "", ""))],
        [encode(wc.Hello(limits.PROTOCOL, b"x" * 16, "a/b", "", ""))],
    ]
    for frames in bad:
        answer = refusal(client, frames)
        assert answer.code == "MALFORMED", (frames, answer)
        assert answer.message and answer.hint
    assert grid.client().ask("grid")["malformed"] == len(bad)
    assert other.submit().job == job + 1


def test_every_malformed_message_of_a_worker_is_answered_and_counted(grid):
    worker = grid.worker()
    worker.hello()
    session = worker.session
    head = ww.ResultHead(1, 5, 1, 0, 4, "q", 1, 1, 1, "wait4")

    def report(*heads):
        return encode(ww.Report(session, 1, False, [], [], list(heads), []))

    meter = b"\x00\x00\x04\x00\x00\x00"
    hello = ww.Hello(
        1, "w9", "ab" * 32, b"i" * 16, 1, 1000, 1 << 30, 1, {}, ["job"], ["3.11"], "proc", "t"
    )
    replace = ww.msgspec.structs.replace
    bad = [
        [b"\xff" * 10],
        [report(head)],
        [report(head), b"", meter, b""],
        [report(head), b"", b"", b"", b""],
        [report(head), b"", b"\x00\x00\x05\x00\x00\x00", b"", b""],
        [report(head), b"", b"\x00\x63\x04\x00\x00\x00", b"", b""],
        [report(head), b"x" * limits.RESULT_FRAME_BYTES_MAX, meter, b"", b""],
        [report(head), b"", meter, b"\xc1", b""],
        [
            report(head),
            b"",
            meter,
            b"\x91\x92\x00\x9a\xa0\xa0\xa0\xc4\x00\x00\x00\x00\x00\x00" + b"\x91" * 20_000,
            b"",
        ],
        [report(replace(head, count=0)), b"", b"\x00\x00\x00\x00\x00\x00", b"", b""],
        [report(replace(head, first=-1)), b"", meter, b"", b""],
        [report(replace(head, cpu_us=-1)), b"", meter, b"", b""],
        [encode(replace(hello, name=""))],
        [encode(replace(hello, node="no key"))],
        [encode(replace(hello, instance=b""))],
        [encode(replace(hello, slots=0))],
        [encode(replace(hello, tiers=["root"]))],
    ]
    for frames in bad:
        answer = refusal(worker, frames, ww.Refused)
        assert answer.code == "MALFORMED", (frames, answer)
    assert grid.client().ask("grid")["malformed"] == len(bad)
    worker.report(is_full=True)
    assert worker.take(5).answers == 1


def test_random_bytes_never_stop_the_broker(grid):
    draw = random.Random(7)
    client, worker = grid.client(), grid.worker()
    worker.hello()
    valid = [
        encode(wc.Ask(client.session, 1, "jobs")),
        encode(wc.Subscribe(client.session, 1, 1, 0, 0)),
        encode(wc.Steer(client.session, 1, 1, "pause")),
    ]
    for number in range(2_000):
        frame = bytearray(draw.choice(valid))
        for _ in range(draw.randrange(1, 4)):
            frame[draw.randrange(len(frame))] = draw.randrange(256)
        client.socket.send_multipart([bytes(frame)] + [b"x"] * draw.randrange(3))
        if number % 4 == 0:
            worker.socket.send_multipart([draw.randbytes(draw.randrange(40))])
    probe = grid.client()
    grid.until(lambda: probe.ask("grid")["malformed"] > 1_000, "most are malformed")
    assert probe.submit().job


def test_other_protocol_versions_are_refused_with_both_numbers(grid):
    client = grid.client()
    answer = client.hello(protocol=99)
    assert answer.code == "PROTOCOL" and "99" in answer.message and "1" in answer.message
    refused = grid.worker().hello(protocol=99)
    assert refused.code == "PROTOCOL" and "99" in refused.message


def test_unknown_sessions_are_told_to_join_again(grid):
    client, worker = grid.client(), grid.worker()
    worker.hello()
    stranger = wc.Ping(os.urandom(16))
    assert refusal(client, [encode(stranger)]).code == "REJOIN"
    report = ww.Report(os.urandom(16), 1, True, [], [], [], [])
    assert refusal(worker, [encode(report)], ww.Refused).code == "REJOIN"
    thief = grid.client()  # a token is good on its own connection only
    assert refusal(thief, [encode(wc.Ping(client.session))]).code == "REJOIN"
    grid.kill()
    grid.start()
    assert client.call(wc.Ask, "jobs").code == "REJOIN"
    client.hello()
    assert client.ask("jobs") == []


def test_parcels_over_their_limits(grid):
    client = grid.client()
    job = client.submit().job
    for count, codec, body in (
        (1, "m", b"x" * (limits.PARCEL_BYTES_MAX + 1)),
        (limits.PARCEL_ITEMS_MAX + 1, "q", b""),
        (limits.RANGE_ITEMS_MAX + 1, "range", b"x" * 16),
        (0, "q", b""),
    ):
        header = wc.Parcel(client.session, job, 0, count, codec)
        answer = refusal(client, [encode(header), body])
        assert (answer.code, answer.job) == ("PARCEL_TOO_LARGE", job)
        assert str(count) in answer.message


def test_parcels_out_of_order_repeated_and_contradicting(grid):
    client = grid.client()
    job = client.submit().job
    client.parcel(job, 0, [1, 2, 3])
    client.watch(lambda: client.committed.get(job) == 3)
    client.committed.clear()
    client.parcel(job, 0, [1, 2, 3])
    client.watch(lambda: client.committed.get(job) == 3)
    for first, values in ((0, [1, 2, 4]), (5, [1])):
        client.parcel(job, first, values)
        answer = client.wait_for(lambda m: isinstance(m, wc.Refused))
        assert (answer.code, answer.job) == ("PARCEL_ORDER", job)
    client.parcel(999, 0, [1])
    assert client.wait_for(lambda m: isinstance(m, wc.Refused)).code == "UNKNOWN_JOB"


def test_a_repeated_submission_is_the_same_job(grid):
    client, other = grid.client(), grid.client()
    submission = os.urandom(16)
    spec = JobSpec("command", command=Command(["true"]), cap_ucredits=5)
    first = client.submit(spec, submission)
    again = other.submit(spec, submission)
    assert (again.job, again.is_replayed) == (first.job, True)
    changed = JobSpec("command", command=Command(["false"]), cap_ucredits=5)
    assert client.submit(changed, submission).code == "SUBMISSION_CONFLICT"


def test_bad_specs_name_every_field(grid):
    client = grid.client()
    answer = client.submit(JobSpec("command", retries=-1, priority=77))
    assert answer.code == "INVALID_SPEC"
    for word in ("retries", "priority", "command"):
        assert word in answer.message
    spec = JobSpec("function", function=hashlib.sha256(b"another").hexdigest())
    assert "digest" in client.submit(spec).message
    body = b"f" * (limits.FUNCTION_BYTES_MAX + 1)
    large = JobSpec("function", function=hashlib.sha256(body).hexdigest())
    assert client.call(wc.Submit, b"s" * 16, large, bodies=(body,)).code == "PARCEL_TOO_LARGE"


def test_jobs_of_other_tenants_do_not_exist(grid):
    ann, ben = grid.client(tenant="ann"), grid.client(tenant="ben")
    job = ann.submit().job
    assert ben.ask("job", job=job).code == "UNKNOWN_JOB"
    assert ben.subscribe(job).code == "UNKNOWN_JOB"
    assert ben.call(wc.Cancel, job, []).code == "UNKNOWN_JOB"
    assert ben.ask("logs", job=job).code == "UNKNOWN_JOB"
    assert ben.ask("subtasks", job=job).code == "UNKNOWN_JOB"
    assert ben.ask("why", job=job).code == "UNKNOWN_JOB"
    assert ben.ask("jobs") == []
    ben.parcel(job, 0, [1])
    assert ben.wait_for(lambda m: isinstance(m, wc.Refused)).code == "UNKNOWN_JOB"


@pytest.mark.parametrize(
    ("front", "code", "told"),
    [("tcp://192.0.2.1:1", 3, "UNREACHABLE"), ("udp://x", 2, "INVALID_SPEC")],
)
def test_addresses_that_are_none_or_not_ours_are_refused(broker, front, code, told):
    broker.front = front
    done = subprocess.run(broker.command(), capture_output=True, text=True, timeout=30)
    assert done.returncode == code
    assert told in done.stderr and "->" in done.stderr


def test_a_ledger_over_tcp_without_its_key_is_refused(broker):
    broker.ledger_address = "tcp://127.0.0.1:1"
    done = subprocess.run(broker.command(), capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and "ledger_key is missing" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_key_that_others_can_read_is_refused(broker):
    done = subprocess.run(broker.command("--print-key"), capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 and len(bytes.fromhex(done.stdout.strip())) == 32
    key = broker.state / "broker.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    again = subprocess.run(
        broker.command("--print-key"), capture_output=True, text=True, timeout=30
    )
    assert again.stdout == done.stdout
    key.chmod(0o640)
    refused = subprocess.run(broker.command(), capture_output=True, text=True, timeout=30)
    assert refused.returncode == 4 and "chmod 600" in refused.stderr


def test_a_second_broker_in_the_same_folder_is_refused(grid):
    command = grid.command()
    command[command.index("--front") + 1] += "2"
    command[command.index("--back") + 1] += "2"
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 5 and "ALREADY_RUNNING" in done.stderr


def test_settings_are_checked_together(broker):
    environment = {
        **os.environ,
        "GRISTMILL_BROKER_TICK_MS": "0",
        "GRISTMILL_BROKER_CLIENT_TTL_MS": "x",
    }
    command = [part for part in broker.command() if part != broker.front and part != "--front"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment)
    assert done.returncode == 2
    for word in ("tick_ms", "client_ttl_ms", "front: missing"):
        assert word in done.stderr
