"""Row A20: who asks for more than its rate waits, is named in the log, and nobody else does."""

import collections
import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import msgspec
import pytest
import zmq
from grid_rig import free_port, gristmill, until
from nacl.signing import SigningKey

from gristmill.broker import principals
from gristmill.cli.grid import Grid
from gristmill.client import Client
from gristmill.client.errors import GridError
from gristmill.wire import client as wc
from gristmill.wire import limits
from gristmill.wire import worker as ww
from gristmill.wire.curve import be_client
from gristmill.wire.errors import EXIT_POLICY, EXIT_USAGE
from gristmill.wire.frames import encode
from gristmill.wire.keys import BROKER_KEY, load_key
from gristmill.wire.registry import Limits
from gristmill.wire.tokens import parse_token

BITES_S = 5.0  #: from a change of a limit to when it holds; alone it takes 0.2 s
WAIT_S_MAX = 5.0  #: an honest round trip beside a flood; alone it takes milliseconds


@pytest.fixture
def keyed(own_grid: Callable[..., Grid]) -> Grid:
    """Clients and workers come by TCP, with keys."""
    ports = [f"tcp://127.0.0.1:{free_port()}" for _ in range(2)]
    return own_grid(workers=1, slots=1, front=ports[0], back=ports[1])


#: asks as fast as it goes, in a process of its own; whatever is answered is not heeded
FLOOD = """
import sys, zmq
from gristmill.wire import client as say
from gristmill.wire.curve import be_client
from gristmill.wire.errors import EXIT_POLICY, EXIT_USAGE
from gristmill.wire.frames import encode
from gristmill.wire.limits import PROTOCOL
from gristmill.wire.tokens import parse_token

address, token, server = sys.argv[1:]
dealer = zmq.Context().socket(zmq.DEALER)
be_client(dealer, parse_token(token).key, server)
dealer.connect(address)
dealer.send(encode(say.Hello(PROTOCOL, b"n" * 16, "", "3.11", "test")))
session = say.decode_broker.decode(dealer.recv_multipart()[0]).session
asked = encode(say.Ask(session, 1, "jobs"))
while True:
    if dealer.poll(1000, zmq.POLLOUT):
        dealer.send(asked)
    while dealer.poll(0):
        dealer.recv_multipart()
"""


def limit(grid: Grid, token: str, **fields: int) -> None:
    """What the registry does: the principals are replaced whole."""
    path, public = grid.state / "broker" / principals.FILE_NAME, parse_token(token).public
    rows = principals.read(path)
    changed = [
        msgspec.structs.replace(row, limits=Limits(**fields)) if row.public == public else row
        for row in rows
    ]
    assert changed != rows
    principals.write(path, changed)


@contextlib.contextmanager
def peer(grid: Grid, key: SigningKey, address: str = "") -> Iterator["zmq.Socket[bytes]"]:
    """A bare connection of a known key."""
    server = load_key(grid.state / "broker" / BROKER_KEY).verify_key.encode().hex()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 0)
    be_client(dealer, key, server)
    dealer.connect(address or grid.address)
    try:
        yield dealer
    finally:
        dealer.close()
        context.term()


def lines_of(grid: Grid, word: str, name: str = "broker") -> list[str]:
    return [line for line in grid.log(name).read_text().splitlines() if word in line]


def no_flood(lines: list[str]) -> None:
    """At most one line about a refusal a second (its time stands first)."""
    seconds = collections.Counter(line[:19] for line in lines if "refused at" in line)
    assert max(seconds.values()) <= 2, seconds  # a second of ours may lie in two of the clock


def test_a20_who_is_over_its_rate_waits_and_loses_nothing(keyed: Grid) -> None:
    token, told = keyed.token("local"), []
    limit(keyed, token, requests_per_s=40, requests_burst=30)
    with Client(
        keyed.address, token=token, trust="fleet", environment=sys.executable, warn=told.append
    ) as client:
        values = client.map(lambda x: x + 1, range(3_000), tier="batch")
        assert list(values) == list(range(1, 3_001))
        began, asked = time.monotonic(), 80
        for _ in range(asked):
            client.jobs(limit=1)
        took = time.monotonic() - began
        assert took > (asked - 30) / 40 / 2, "it was held to its rate"
        limit(keyed, token, requests_per_s=100_000)
        until("it is as fast as it likes", lambda: _rate(client) > 200, 10.0)
    assert len([one for one in told if "at its rate of 40 requests a second" in one]) <= 3
    assert told and "waits and goes on by itself" in told[0]
    lines = lines_of(keyed, "RATE_LIMITED")
    assert lines and parse_token(token).public in lines[0]
    no_flood(lines)


def _rate(client: Client) -> float:
    began = time.monotonic()
    for _ in range(20):
        client.jobs(limit=1)
    return 20 / (time.monotonic() - began)


def test_a20_bytes_have_a_rate_and_large_inputs_arrive(keyed: Grid) -> None:
    token = keyed.token("local")
    limit(keyed, token, bytes_per_s=2 << 20, bytes_burst=1 << 20)
    with Client(keyed.address, token=token, trust="fleet", environment=sys.executable) as client:
        inputs = [bytes([number % 251]) * (100 << 10) for number in range(40)]  # 4 MB
        began = time.monotonic()
        assert list(client.map(len, inputs, tier="batch", keep=False)) == [100 << 10] * 40
        assert time.monotonic() - began > 1.0


def test_a20_a_flood_of_one_key_delays_no_other(keyed: Grid, figures: Callable[..., None]) -> None:
    noisy, honest = keyed.token("loud"), keyed.token("local")
    server = load_key(keyed.state / "broker" / BROKER_KEY).verify_key.encode().hex()
    command = [sys.executable, "-P", "-c", FLOOD, keyed.address, noisy, server]
    with Client(keyed.address, token=honest) as client:

        def window(seconds: float) -> list[float]:
            times, until_s = [], time.monotonic() + seconds
            while time.monotonic() < until_s:
                began = time.monotonic()
                client.jobs(limit=1)
                times.append(1_000 * (time.monotonic() - began))
            return sorted(times)

        window(0.3)
        quiet = window(1.5)
        flood = subprocess.Popen(command)
        try:
            until("it floods", lambda: client.grid()["rate_limited"] > 1_000)
            before = client.grid()["rate_limited"]
            loud = window(1.5)
            refused = client.grid()["rate_limited"] - before
        finally:
            flood.kill()
            flood.wait()
    assert max(loud) < 1_000 * WAIT_S_MAX
    public = parse_token(noisy).public
    lines = lines_of(keyed, public)
    assert lines and "times=" in lines[-1]
    no_flood(lines)
    figures(
        quiet_ms_p50=round(quiet[len(quiet) // 2], 2), loud_ms_p50=round(loud[len(loud) // 2], 2),
        ratio_p50=round(loud[len(loud) // 2] / quiet[len(quiet) // 2], 2),
        quiet_ms_p99=round(quiet[int(len(quiet) * 0.99)], 2),
        loud_ms_p99=round(loud[int(len(loud) * 0.99)], 2), refused_meanwhile=refused,
    )  # fmt: skip


def test_a20_each_forgery_is_named_by_its_key_once_a_second(keyed: Grid) -> None:
    """At the front, at the back and at the ledger: garbage, another's session, what is not ours."""
    thief, mill = keyed.token("bob"), SigningKey.generate()
    principals.add_node(keyed.state / "broker", "mill", mill.verify_key.encode().hex())
    with Client(keyed.address, token=keyed.token("local")) as victim:
        victim.jobs()
        stolen = victim._link._core.session  # as if it had leaked
        with peer(keyed, parse_token(thief).key) as front:
            for _ in range(300):
                front.send(encode(wc.Ask(stolen, 1, "jobs")))
                front.send(b"\xff\xff\xff")
            until("they are refused", lambda: len(lines_of(keyed, "times=")) >= 1, 10.0)
        with peer(keyed, mill, keyed.back) as back:
            for _ in range(300):
                back.send(encode(ww.Goodbye(b"x" * 16, "forged")))
                back.send(b"\xff")
            until("these, too", lambda: lines_of(keyed, mill.verify_key.encode().hex()), 10.0)
        victim.jobs()  # it is here, and was not delayed
    told = lines_of(keyed, parse_token(thief).public)
    assert any("which has another key" in line or "MALFORMED" in line for line in told), told
    no_flood(told)
    no_flood(lines_of(keyed, mill.verify_key.encode().hex()))
    text = keyed.log("broker").read_text()
    assert text.count("Traceback") == 0


def test_a20_a_storm_of_hellos_of_one_worker_stops_no_other(keyed: Grid) -> None:
    mill = SigningKey.generate()
    public = mill.verify_key.encode().hex()
    principals.add_node(keyed.state / "broker", "mill", public)
    with (
        Client(keyed.address, token=keyed.token("local"), trust="fleet",
               environment=sys.executable) as client,
        peer(keyed, mill, keyed.back) as dealer,
    ):  # fmt: skip
        codes: collections.Counter[str] = collections.Counter()
        waits = []

        def read(patience_ms: int) -> None:
            while dealer.poll(patience_ms):
                answer = ww.decode_orders.decode(dealer.recv_multipart()[0])
                codes[getattr(answer, "code", "welcome")] += 1
                waits.append(getattr(answer, "retry_after_ms", 0))

        for number in range(400):
            hello = ww.Hello(
                limits.PROTOCOL, "mill", public, number.to_bytes(16), 1, 1_000, 1 << 30, 1 << 30,
                {}, ["batch"], ["2.7"], "proc", "test",
            )  # fmt: skip
            dealer.send(encode(hello))
            if number % 20 == 19:  # answers that a stranger does not read are dropped
                read(20)
        read(2_000)
        assert codes["RATE_LIMITED"] > 0 and codes["NAME_TAKEN"] < 200, codes
        assert max(waits) > 0 and codes["welcome"] >= 1
        assert list(client.map(lambda x: x, range(50), tier="batch")) == list(range(50))
        names = {one.name for one in client.workers()}
        assert "worker-0" in names
    no_flood(lines_of(keyed, public))


def test_a20_a_key_has_so_many_sessions_and_the_next_one_waits_for_room(keyed: Grid) -> None:
    token, told = keyed.token("local"), []
    limit(keyed, token, sessions_max=2)
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(Client(keyed.address, token=token))
        second = stack.enter_context(Client(keyed.address, token=token))
        assert first.jobs() == second.jobs() == []
        third = stack.enter_context(Client(keyed.address, token=token, warn=told.append))
        answered = threading.Event()
        thread = threading.Thread(target=lambda: (third.jobs(), answered.set()))
        thread.start()
        until("it is told to wait", lambda: told)
        assert "has 2 open sessions; the limit is 2" in told[0] and not answered.is_set()
        first.close()
        assert answered.wait(10.0), "there was room"
        thread.join()


def test_a20_a_tenant_has_so_many_unfinished_jobs_and_subtasks(keyed: Grid) -> None:
    """By the limits of the key that submits; another key of the same tenant has its own."""
    narrow, wide = keyed.token("local"), keyed.token("local")
    limit(keyed, narrow, jobs_max=2, subtasks_max=100)
    submit = ["submit", "--tier", "batch", "--", "sleep", "60"]
    for _ in range(2):
        assert gristmill(keyed, *submit, token=narrow).returncode == 0
    third = gristmill(keyed, *submit, token=narrow)
    assert third.returncode == EXIT_POLICY and "has 2 unfinished jobs of at most 2" in third.stderr
    assert gristmill(keyed, *submit, token=wide).returncode == 0
    options = {"trust": "fleet", "environment": sys.executable}
    with Client(keyed.address, token=wide, **options) as client:
        for job in client.jobs():
            client.cancel(job.job)
        until("they are gone", lambda: all(one.state == "cancelled" for one in client.jobs()))
    with Client(keyed.address, token=narrow, **options) as client:
        assert len(list(client.map(lambda x: x, range(100), tier="batch"))) == 100
        for inputs in (range(101), iter(range(101))):  # all at once, and as they come
            with pytest.raises(GridError) as caught:
                list(client.map(lambda x: x, inputs, tier="batch", chunk=200))
            assert caught.value.code == "QUOTA", caught.value
            assert "of at most 100" in str(caught.value)


def test_a20_an_operator_sees_and_changes_limits_and_why_names_them(keyed: Grid) -> None:
    token, operator = keyed.token("local"), keyed.token(is_operator=True)
    name = parse_token(token).name
    command = [sys.executable, "-P", "-m", "gristmill.broker", "--state", keyed.state / "broker"]
    changed = subprocess.run(
        [*command, "--limit", name, "bytes_per_s=64K,bytes_burst=64K"], capture_output=True,
        text=True, check=True, timeout=60,
    )  # fmt: skip
    assert changed.stdout == f"{name} of tenant local: bytes_per_s=65536, bytes_burst=65536\n"
    options = {"trust": "fleet", "environment": sys.executable}
    with Client(keyed.address, token=token, **options) as client:
        until("it holds", lambda: client.limits()[0].bytes_per_s == 65_536, BITES_S)
        (own,) = client.limits()
        assert (own.name, own.sessions, own.requests_per_s) == (name, 1, limits.REQUESTS_PER_S)
        slow = client.map(len, (bytes(60 << 10) for _ in range(12)), tier="batch", chunk=1)
        thread = threading.Thread(target=lambda: list(slow))
        thread.start()
        with Client(keyed.address, token=operator) as boss:
            rows = until(
                "it waits",
                lambda: [one for one in boss.limits() if one.name == name and one.wait_ms],
            )
            assert rows[0].refused and {one.role for one in boss.limits()} == {"client", "operator"}
            boss_rows = gristmill(keyed, "limits", token=operator)
            assert boss_rows.returncode == 0 and name in boss_rows.stdout, boss_rows.stderr
            mine = gristmill(keyed, "limits", "--json", token=keyed.token("bob"))
            assert '"gristmill/limits/1"' in mine.stdout and name not in mine.stdout
        with Client(keyed.address, token=keyed.token("local"), **options) as other:
            job = other.jobs()[0].job
            reasons = until(
                "why names it",
                lambda: [one for one in other.why(job).reasons if one.constraint == "rate"],
            )
            assert name in reasons[0].asked and "65,536 bytes a second" in reasons[0].nearest
            assert "gristmill limits" in reasons[0].change
        subprocess.run([*command, "--limit", name, ""], check=True, timeout=60)
        thread.join(60.0)
        assert not thread.is_alive()
    for words, told in (
        ([name, "speed=9"], "'speed=9'"),
        ([name, "bytes_per_s=-1"], "'bytes_per_s=-1'"),
        (["nobody", "jobs_max=1"], "no key is named 'nobody'; there are: "),
    ):
        bad = subprocess.run(
            [*command, "--limit", *words], capture_output=True, text=True, timeout=60, check=False
        )
        assert bad.returncode == EXIT_USAGE and told in bad.stderr, bad
