import gc
import itertools
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import msgspec
import numpy
import pytest
from client_test_peer import wait_until  # type: ignore[import-not-found]

from gristmill.client import (
    BrokerUnavailable,
    Client,
    GridError,
    JobFailed,
    OutOfMemory,
    UnpicklableError,
)
from gristmill.client import map as maps
from gristmill.client.blobs import THREADS, Blobs
from gristmill.client.encode import SLOW_SOURCE_S
from gristmill.client.errors import grid_error
from gristmill.client.pickling import dump_function
from gristmill.wire import client as wire
from gristmill.wire.limits import FRAME_BYTES_MAX
from gristmill.wire.values import BlobRef, encode_ref


def test_values_come_in_order(client: Client, peer: Any) -> None:
    assert list(client.map(lambda n: n * n, range(5000))) == [n * n for n in range(5000)]


def test_several_iterables_are_zipped(client: Client, peer: Any) -> None:
    assert list(client.map(pow, [1, 2, 3], itertools.count(1))) == [1, 4, 27]


def test_an_empty_input_ends_at_once(client: Client, peer: Any) -> None:
    assert list(client.map(abs, [])) == []
    assert list(client.map(abs, iter(()))) == []
    assert [job.state for job in peer.jobs.values()] == ["done", "done"]


@pytest.mark.parametrize(
    ("source", "codec"),
    [
        (range(50_000), "range"),
        ([1.5, 2.5], "d"),
        ([1, -7], "q"),
        ([(1, "a"), (2, "b")], "t:(is)"),
        ([None, "a", 3], "m"),
        ([{"a": (1,)}], "p"),
        (numpy.arange(6.0).reshape(3, 2), "r"),
        ([numpy.int32(4), numpy.int32(5)], "r"),
    ],
)
def test_inputs_travel_in_the_cheapest_way(
    client: Client, peer: Any, source: Any, codec: str
) -> None:
    returned = list(client.map(lambda value: value, source))
    assert all(numpy.array_equal(a, b) for a, b in zip(returned, source, strict=True))
    assert {parcel[2] for parcel in peer.jobs[1].parcels} == {codec}


def test_the_first_parcel_is_small_and_none_is_over_its_limit(client: Client, peer: Any) -> None:
    texts = ["x" * 1000] * 3000
    assert list(client.map(len, texts)) == [1000] * 3000
    counts = [count for _, count, _ in peer.jobs[1].parcels]
    assert counts[0] <= 16 and sum(counts) == 3000  # the peer checks the bytes of each


def test_memory_is_flat_on_an_endless_generator(client: Client, make_peer: Any) -> None:
    make_peer(is_echo=True)
    pulled = 0

    def endless() -> Iterator[int]:
        nonlocal pulled
        for pulled in itertools.count():  # noqa: UP028 - the test reads it
            yield pulled

    values = iter(client.map(lambda value: value, endless()))
    assert list(itertools.islice(values, 20_000)) == list(range(20_000))
    assert pulled < 20_000 + 140_000
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    assert next(itertools.islice(values, 200_000, None)) == 220_000
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 8 << 20


def test_nothing_is_read_or_sent_before_the_first_next(client: Client, peer: Any) -> None:
    def forbidden() -> Iterator[int]:
        raise AssertionError("read too early")
        yield 1

    client.map(abs, forbidden())
    assert not peer.jobs


def test_the_window_bounds_what_is_read_ahead(client: Client, peer: Any) -> None:
    read: list[int] = []

    def source() -> Iterator[int]:
        for number in range(1000):
            read.append(number)
            yield number

    values = client.map(lambda n: n, source(), window=10)
    for expected in range(300):
        assert next(values) == expected
        assert len(read) <= expected + 1 + 10
    values.close()


def test_a_slow_source_is_sent_on_as_it_comes(client: Client, peer: Any) -> None:
    def source() -> Iterator[int]:
        yield 1
        wait_until(lambda: peer.jobs and peer.jobs[1].done, 5)
        yield 2

    def waits_for_each() -> Iterator[int]:
        for number in source():
            time.sleep(0.006)  # slower than SLOW_SOURCE_S: what this is about
            yield number

    assert list(client.map(lambda n: n, waits_for_each())) == [1, 2]


def test_unordered_values_are_all_there(client: Client, peer: Any) -> None:
    values = list(client.map(lambda n: n, range(3000), ordered=False))
    assert sorted(values) == list(range(3000))


def fails_at_three(number: int) -> int:
    if number == 3:
        raise LookupError("three")
    return number


def test_an_exception_is_raised_at_its_place(client: Client, peer: Any) -> None:
    values = client.map(fails_at_three, range(6))
    assert [next(values) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(LookupError, match="three") as caught:
        next(values)
    assert "fails_at_three" in str(caught.value.__cause__)
    assert any("j1/3" in note and "attempt 1" in note for note in caught.value.__notes__)
    assert list(values) == []


def test_exceptions_can_be_values(client: Client, peer: Any) -> None:
    values = list(client.map(fails_at_three, range(6), return_exceptions=True))
    assert values[:3] + values[4:] == [0, 1, 2, 4, 5]
    assert isinstance(values[3], LookupError)


def test_another_outcome_is_a_typed_error_with_its_limit(client: Client, peer: Any) -> None:
    def bursts(number: int) -> None:
        import client_test_peer

        raise client_test_peer.Ends(
            client_test_peer.Outcome.OOM,
            client_test_peer.Failure("too much", limit=1 << 30, peak=1 << 30, suggested=3 << 29),
        )

    with pytest.raises(OutOfMemory) as caught:
        list(client.map(bursts, [1]))
    assert (caught.value.limit, caught.value.suggested, caught.value.index) == (1 << 30, 3 << 29, 0)
    assert any('limit 1 GiB, peak 1 GiB; try memory="1536M"' in n for n in caught.value.__notes__)


def test_breaking_out_cancels_the_rest(client: Client, peer: Any) -> None:
    for value in client.map(lambda n: n, itertools.count()):
        if value == 5:
            break
    wait_until(lambda: peer.jobs[1].state == "cancelled")


def test_control_c_leaves_the_job_and_says_how_to_come_back(
    client: Client, peer: Any, told: list[str]
) -> None:
    def source() -> Iterator[int]:
        yield from range(20)
        wait_until(lambda: peer.jobs and peer.jobs[1].done >= 16)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(client.map(lambda n: n, source()))
    wait_until(lambda: peer.jobs[1].state == "done")
    assert peer.count(wire.Cancel) == 0
    assert "gristmill wait j1" in told[-1] and 'client.results("j1")' in told[-1]
    assert list(client.results("j1")) == list(range(peer.jobs[1].count))


def test_control_c_in_the_body_of_the_loop_leaves_the_job_too(
    address: str, peer: Any, told: list[str]
) -> None:
    # The loop's iterator is dropped before the ``with`` sees the exception.
    with pytest.raises(KeyboardInterrupt):
        with Client(address, timeout=3, warn=told.append) as client:
            for value in client.map(lambda n: n, range(3000)):
                if value == 5:
                    raise KeyboardInterrupt
    wait_until(lambda: peer.jobs[1].state == "done")
    assert peer.count(wire.Cancel) == 0
    assert "gristmill wait j1" in told[-1]


def test_results_of_a_job_can_be_read_again_and_elsewhere(
    client: Client, peer: Any, address: str
) -> None:
    assert list(client.map(lambda n: -n, range(2000))) == [-n for n in range(2000)]
    assert list(client.results("j1")) == [-n for n in range(2000)]
    with Client(address, timeout=3) as other:
        assert list(other.job(1).results()) == [-n for n in range(2000)]
        with pytest.raises(GridError) as caught:
            list(other.results("j99"))
    assert caught.value.code == "UNKNOWN_JOB"


def test_a_refused_submission_is_raised_with_its_code(client: Client, peer: Any) -> None:
    peer.submit_refusal = ("QUOTA", "10 jobs of at most 10")
    with pytest.raises(GridError, match="10 jobs") as caught:
        list(client.map(abs, [1]))
    assert caught.value.code == "QUOTA" and caught.value.exit_code == 5


def test_a_job_that_ends_as_a_whole_is_an_error(client: Client, peer: Any) -> None:
    peer.is_holding = True
    values = client.map(lambda n: n, range(3))
    number = values.job
    client.cancel(number)
    with pytest.raises(JobFailed) as caught:
        list(values)
    assert caught.value.code == "CANCELLED" and "j1 is cancelled" in str(caught.value)


def test_nobody_answers(address: str) -> None:
    with Client(address, timeout=0.3) as client:
        began = time.monotonic()
        with pytest.raises(BrokerUnavailable) as caught:
            client.jobs()
        assert 0.25 < time.monotonic() - began < 5
    assert caught.value.exit_code == 3
    assert address in str(caught.value) and "gristmill up" in str(caught.value)


def test_bad_options_are_named_at_the_call(client: Client, peer: Any) -> None:
    with pytest.raises(GridError, match=r"memory.*lots.*timeout") as caught:
        client.map(abs, [1], memory="lots", timeout="soon")
    assert caught.value.code == "INVALID_SPEC"
    with pytest.raises(TypeError, match="no option memori"):
        client.map(abs, [1], memori="1G")  # type: ignore[call-arg]
    with pytest.raises(GridError, match="retries is 1000"):
        client.map(abs, [1], retries=1000)


def test_an_input_that_cannot_travel_is_named(client: Client, peer: Any) -> None:
    with pytest.raises(UnpicklableError, match=r"input 1 of this parcel.*generator"):
        list(client.map(abs, [1, (n for n in [0])]))
    assert dump_function(abs)


def test_lost_results_are_asked_for_again(client: Client, make_peer: Callable[..., Any]) -> None:
    peer = make_peer()
    peer.drop_results = 2
    assert list(client.map(lambda n: n, range(9000))) == list(range(9000))
    assert peer.count(wire.Subscribe) >= 2


def test_lost_parcels_are_said_again(client: Client, make_peer: Callable[..., Any]) -> None:
    peer = make_peer()
    lost = [3, 5]

    def swallow(message: Any) -> bool:
        if isinstance(message, wire.Parcel) and lost and peer.count(wire.Parcel) == lost[0]:
            lost.pop(0)
            return True
        return False

    peer.on_message = swallow
    assert list(client.map(lambda n: n, ["x"] * 9000)) == ["x"] * 9000
    assert not lost


def test_a_small_credit_is_never_passed(client: Client, make_peer: Callable[..., Any]) -> None:
    make_peer(credit_bytes=10_000)  # the peer asserts it
    assert list(client.map(len, ["x" * 100] * 5000)) == [100] * 5000


def test_a_session_that_ran_out_is_made_again(client: Client, peer: Any) -> None:
    first = list(client.map(lambda n: n, range(10)))
    peer.forget_sessions()
    assert list(client.map(lambda n: n, range(10))) == first
    assert peer.count(wire.Hello) >= 2


def test_a_map_goes_on_after_the_broker_was_away(
    address: str, make_peer: Callable[..., Any], told: list[str]
) -> None:
    first = make_peer()
    with Client(address, timeout=0.5, warn=told.append) as client:
        values = client.map(lambda n: n, range(100_000), chunk=1000)
        assert next(values) == 0
        first.stop()
        read = [0]
        import threading

        reader = threading.Thread(target=lambda: read.extend(values))
        reader.start()
        wait_until(lambda: any("has not answered" in line for line in told))
        second = make_peer(jobs=first.jobs)
        reader.join(20)
        assert read == list(range(100_000))
        assert second.jobs is first.jobs
    assert any("is back" in line for line in told)


def test_dry_run_and_commands_make_the_spec(client: Client, peer: Any) -> None:
    dry = client.dry_run(abs, memory="2G", cpus=1.5, tier="strict", cap=2.5, labels={"gpu": "a"})
    limits = dry.spec.limits
    assert (limits.memory_bytes, limits.cpus_milli) == (2 << 30, 1500)
    assert dry.spec.cap_ucredits == 2_500_000 and dry.spec.python.startswith("3.")
    assert dry.spec.environment  # over ipc the client's own interpreter
    command = client.dry_run(argv=["echo", "{}"], timeout="5m").spec
    assert command.kind == "command" and command.limits.wall_ms == 300_000
    with pytest.raises(TypeError, match="list of words"):
        client.run("echo hi")


def test_large_inputs_are_put_several_at_a_time_and_sent_in_order(
    client: Client, peer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each parcel leaves once its own input is in the store, whichever got there first."""
    begun: list[tuple[BlobRef, Future[BlobRef]]] = []
    sent: list[tuple[bytes, bool]] = []

    def begin(body: bytes) -> tuple[BlobRef, "Future[BlobRef]"]:
        reference, future = BlobRef(f"{len(begun):064x}", len(body)), Future[BlobRef]()
        begun.append((reference, future))
        if len(begun) % 3 == 0:  # the last of three is there first
            for _, each in reversed(begun[-3:]):
                each.set_result(reference)
        return reference, future

    def send(upload: int, count: int, codec: str, frame: bytes) -> None:
        is_stored = [future.done() for ref, future in begun if encode_ref(ref) == frame]
        sent.append((frame, is_stored == [True]))

    monkeypatch.setattr(client, "_begin_store", begin)
    monkeypatch.setattr(client._link, "send_parcel", send)
    stream = client.map(len, [bytes(FRAME_BYTES_MAX + 1)] * 9)._stream
    stream._submit()
    assert stream._top_up(5) and len(begun) == 5 and len(sent) == 3, "two wait for the store"
    assert stream._top_up(4) and len(begun) == 9
    stream._top_up(1)
    assert sent == [(encode_ref(reference), True) for reference, _ in begun]
    stream.close()


def test_large_inputs_wait_for_the_store_up_to_so_many_bytes(
    client: Client, peer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_the_way, most = 0, 0

    def begin(body: bytes) -> tuple[BlobRef, "Future[BlobRef]"]:
        nonlocal on_the_way, most
        future, reference = Future[BlobRef](), BlobRef("", len(body))

        def end() -> None:
            nonlocal on_the_way
            on_the_way -= len(body)
            future.set_result(reference)

        on_the_way += len(body)
        most = max(most, on_the_way)
        threading.Timer(0.02, end).start()
        return reference, future

    size = 4 * FRAME_BYTES_MAX
    monkeypatch.setattr(maps, "PUT_BYTES_AHEAD", 3 * size)
    monkeypatch.setattr(client, "_begin_store", begin)
    monkeypatch.setattr(client._link, "send_parcel", lambda *given: None)
    stream = client.map(len, [bytes(size)] * 9)._stream
    stream._submit()
    stream._top_up(10)
    assert on_the_way == 0 and most < 4 * size
    stream.close()


def test_a_slow_source_holds_nothing_back_that_is_in_the_store(
    client: Client, peer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[bytes] = []

    def begin(body: bytes) -> tuple[BlobRef, "Future[BlobRef]"]:
        future = Future[BlobRef]()
        threading.Timer(0.02, lambda: future.set_result(BlobRef("", 0))).start()
        return BlobRef("", len(body)), future

    def source() -> Iterator[bytes]:
        for number in range(3):
            assert len(sent) == number, "asked for the next one first"
            time.sleep(2 * SLOW_SOURCE_S)
            yield bytes(FRAME_BYTES_MAX + 1)

    monkeypatch.setattr(client, "_begin_store", begin)
    monkeypatch.setattr(client._link, "send_parcel", lambda *given: sent.append(given[-1]))
    stream = client.map(len, source())._stream
    stream._submit()
    stream._top_up(9)
    assert len(sent) == 3
    stream.close()


def test_an_input_that_the_store_refuses_ends_the_map(
    client: Client, peer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(body: bytes) -> tuple[BlobRef, "Future[BlobRef]"]:
        future = Future[BlobRef]()
        future.set_exception(grid_error("STORE_FULL", "no room"))
        return BlobRef("", len(body)), future

    monkeypatch.setattr(client, "_begin_store", begin)
    with pytest.raises(GridError, match="no room"):
        list(client.map(len, [bytes(FRAME_BYTES_MAX + 1)]))


def test_equal_inputs_are_put_once_and_a_client_may_close_meanwhile() -> None:
    class Store:
        puts = 0
        is_free = threading.Event()

        def put(self, grant: str, body: bytes, digest: str) -> BlobRef:
            Store.puts += 1
            assert Store.is_free.wait(20)
            return BlobRef(digest, len(body))

    class Ours(Blobs):
        def _store(self, address: str) -> Any:
            return Store()

    class Grants:
        def ask(self, message: wire.Ask) -> wire.Answer:
            grant = wire.GrantAnswer("grant", "unix:///x", 1 << 60)
            return wire.Answer(1, msgspec.Raw(msgspec.msgpack.encode(grant)))

    blobs = Ours(Grants())  # type: ignore[arg-type]
    begun = [blobs.begin_put(b"the same") for _ in range(6)]
    others = [blobs.begin_put(b"%d" % number) for number in range(THREADS)]
    wait_until(lambda: Store.puts == THREADS)
    blobs.close()
    Store.is_free.set()
    assert {future.result(20) for _, future in begun} == {begun[0][0]} and Store.puts == THREADS
    for _, future in others[:-1]:
        future.result(20)
    for late in (
        lambda: others[-1][1].result(20),  # it waited for its turn
        lambda: blobs.begin_put(b"later"),
        lambda: blobs.begin_get(BlobRef("0" * 64, 1)),
        lambda: blobs.put(b"later"),
    ):
        with pytest.raises(GridError, match="the client is closed"):
            late()
    wait_until(lambda: not blobs._begun)  # a future is told before what is called at its end
