import asyncio
import concurrent.futures
import importlib.metadata
import pathlib
import sys
import threading
from typing import Any

import pytest
from client_test_peer import wait_until  # type: ignore[import-not-found]

from gristmill.client import BrokerUnavailable, Client, GridError, UnpicklableError
from gristmill.client.future import Future, fail, settle
from gristmill.client.pickling import FunctionBytes
from gristmill.client.submitter import own_version
from gristmill.wire import client as wire


def test_its_release_is_the_one_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    assert own_version() == importlib.metadata.version("gristmill")
    (tmp_path / "gristmill_more-7.dist-info").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "absent"), str(tmp_path)])
    assert own_version() == "unknown"


def test_a_call_is_a_future(client: Client, peer: Any) -> None:
    future = client.submit(pow, 2, 5)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(5) == 32
    assert (future.job, future.index) == (1, 0)


def test_positional_and_keyword_arguments(client: Client, peer: Any) -> None:
    def told(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    assert client.submit(told).result(5) == ((), {})
    assert client.submit(told, 1, [2], a=3, b={"c": 4}).result(5) == (
        (1, [2]),
        {"a": 3, "b": {"c": 4}},
    )
    assert client.submit(int, "ff", base=16).result(5) == 255


def test_calls_of_one_function_share_a_job(client: Client, peer: Any) -> None:
    futures = [client.submit(lambda n: n + 1, n) for n in range(3000)]
    assert [future.result(10) for future in futures] == list(range(1, 3001))
    assert len(peer.jobs) == 1
    assert [future.index for future in futures] == list(range(3000))
    assert len(peer.jobs[1].parcels) < 3000  # what queued behind a busy link was put together


def test_other_options_are_another_job(client: Client, peer: Any) -> None:
    one = client.submit(abs, -1)
    two = client.with_options(memory="2G", name="big").submit(abs, -2)
    assert (one.result(5), two.result(5)) == (1, 2)
    assert one.job != two.job
    assert peer.jobs[two.job].spec.name == "big"


def test_exceptions_and_standard_waiting(client: Client, peer: Any) -> None:
    futures = [client.submit(lambda n: 1 / n, n) for n in (1, 0, 2)]
    done, pending = concurrent.futures.wait(futures, 10)
    assert not pending
    assert isinstance(futures[1].exception(), ZeroDivisionError)
    assert {f.result() for f in done if f is not futures[1]} == {1.0, 0.5}


def test_an_argument_that_cannot_travel_fails_its_own_future_only(
    client: Client, peer: Any
) -> None:
    futures = [client.submit(id, value) for value in (1, threading.Lock(), 2)]
    assert isinstance(futures[0].result(5), int) and isinstance(futures[2].result(5), int)
    with pytest.raises(UnpicklableError, match="lock"):
        futures[1].result(5)


def test_calls_from_many_threads_keep_their_own_values(client: Client, peer: Any) -> None:
    found: list[bool] = []

    def calls(start: int) -> None:
        values: list[Any] = [*range(start, start + 300), threading.Lock()]
        futures = [client.submit(abs, value) for value in values]
        found.append([f.result(60) for f in futures[:-1]] == values[:-1])
        found.append(isinstance(futures[-1].exception(60), UnpicklableError))

    threads = [threading.Thread(target=calls, args=(n * 1000,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found == [True] * 8


def test_work_that_runs_can_be_cancelled(client: Client, peer: Any) -> None:
    peer.is_holding = True
    future = client.submit(abs, -1)
    other = client.submit(abs, -2)
    wait_until(lambda: future.job)
    assert future.cancel() and future.cancelled()
    wait_until(lambda: peer.count(wire.Cancel))
    (cancel,) = [message for message in peer.seen if isinstance(message, wire.Cancel)]
    assert cancel.runs == [(0, 1)]
    peer.release()
    assert other.result(5) == 2
    with pytest.raises(concurrent.futures.CancelledError):
        future.result()
    assert not other.cancel()


def test_jobs_close_with_their_client(address: str, peer: Any) -> None:
    with Client(address, timeout=3) as client:
        assert client.submit(abs, -3).result(5) == 3
        assert peer.jobs[1].count == -1
    wait_until(lambda: peer.jobs[1].state == "done")
    assert peer.jobs[1].count == 1
    wait_until(lambda: peer.count(wire.Goodbye))


def test_a_closed_client_says_so(address: str, peer: Any) -> None:
    client = Client(address, timeout=3)
    peer.is_holding = True
    future = client.submit(abs, -3)
    wait_until(lambda: peer.jobs)
    client.close()
    with pytest.raises(BrokerUnavailable, match="closed before"):
        future.result(1)
    with pytest.raises(BrokerUnavailable, match="closed"):
        client.jobs()


def test_a_refused_job_fails_its_futures(client: Client, peer: Any) -> None:
    peer.submit_refusal = ("INSUFFICIENT_CREDITS", "5 available")
    with pytest.raises(GridError, match="5 available"):
        client.submit(abs, 1).result(5)


def test_a_job_at_rest_closes_and_the_next_call_opens_another(client: Client, peer: Any) -> None:
    assert client.submit(abs, -1).result(5) == 1
    (group,) = client._groups.values()
    group.close()
    wait_until(lambda: peer.jobs[1].state == "done")
    again = client.submit(abs, -2)
    assert again.result(5) == 2 and again.job == 2


FACTOR = 2


def test_functions_are_remembered_only_while_they_cannot_have_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    remembered = FunctionBytes()

    def scaled(n: int) -> int:
        return n * FACTOR

    one = remembered.of(scaled)
    assert remembered.of(scaled) is one
    monkeypatch.setitem(globals(), "FACTOR", 3)
    assert remembered.of(scaled) != one
    grown = [1]

    def lengths() -> int:
        return len(grown)

    short = remembered.of(lengths)
    grown.append(2)
    assert remembered.of(lengths) != short


def test_indices_and_ranges_become_the_fewest_runs() -> None:
    from gristmill.client.questions import _runs

    assert _runs([5, range(7, 100), 4, range(90, 110), range(0, 4, 2)]) == [
        (0, 1),
        (2, 1),
        (4, 2),
        (7, 103),
    ]
    assert _runs([3, 3, range(9, 9)]) == [(3, 1)]
    assert _runs([range(10**12)]) == [(0, 10**12)]


def test_a_future_is_a_lock_and_lists_only_once_it_is_watched() -> None:
    class Calls:
        def place(self, position: int) -> tuple[int, int]:
            return 7, position

        def cancel(self, position: int) -> None:
            asked.append(position)

    asked: list[int] = []
    quiet, watched, cancelled = (Future(Calls(), n) for n in range(3))
    told: list[Any] = []
    watched.add_done_callback(lambda future: told.append(future.result()))
    assert cancelled.cancel() and asked == [2]
    settle([(quiet, "a"), (watched, "b"), (cancelled, "c")])
    assert quiet.result() == "a" and "_condition" not in quiet.__dict__
    assert told == ["b"]
    with pytest.raises(concurrent.futures.CancelledError):
        cancelled.result()
    fail(quiet, ValueError("too late"))
    assert (quiet.result(), quiet.exception(), quiet.index) == ("a", None, 0)
    with pytest.raises(AttributeError, match="'Future' object has no attribute 'nothing'"):
        quiet.nothing  # noqa: B018


def test_each_way_to_wait_hears_of_futures_that_are_settled_meanwhile() -> None:
    class Calls:
        def place(self, position: int) -> tuple[int, int]:
            return 0, position

        def cancel(self, position: int) -> None:
            raise AssertionError("nobody cancels")

    futures = [Future(Calls(), n) for n in range(4000)]

    def give() -> None:
        for first in range(0, len(futures), 100):
            settle([(future, future.index) for future in futures[first : first + 100]])

    async def gather() -> list[int]:
        return await asyncio.gather(*map(asyncio.wrap_future, futures[2000:]))

    thread = threading.Thread(target=give)
    thread.start()
    completed = concurrent.futures.as_completed(futures[::7], timeout=60)
    assert sorted(future.result() for future in completed) == list(range(0, 4000, 7))
    assert asyncio.run(gather()) == list(range(2000, 4000))
    assert [future.result(60) for future in futures] == list(range(4000))
    assert not concurrent.futures.wait(futures, 60).not_done
    thread.join()
