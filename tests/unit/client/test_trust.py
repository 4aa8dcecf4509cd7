"""The rule of docs/trust.md."""

import os
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from gristmill.client import Client, GridError, RemoteException, UnsafeResultError
from gristmill.client.outcomes import exception_for
from gristmill.wire.failure import Failure
from gristmill.wire.outcome import Outcome

WHERE = {"job": 1, "index": 0, "attempt": 1, "node": ""}


class Bomb:
    def __reduce__(self) -> Any:
        return os.putenv, ("GRISTMILL_BOMB", "went off")


@pytest.mark.parametrize(
    ("trust", "broker_says", "expected"),
    [
        ("auto", True, True), ("auto", False, False), ("fleet", False, True),
        ("none", True, False), ("fleet", True, True), ("none", False, False),
    ],
)  # fmt: skip
def test_who_is_trusted(
    address: str, make_peer: Callable[..., Any], trust: Any, broker_says: bool, expected: bool
) -> None:
    peer = make_peer(is_fleet_trusted=broker_says)
    with Client(address, trust=trust, timeout=3) as client:
        assert client.is_fleet_trusted is expected
        assert list(client.map(abs, [-1])) == [1]
        assert peer.jobs[1].spec.results == ("any" if expected else "safe")


def test_a_pickle_is_refused_where_the_fleet_is_not_trusted(
    address: str, make_peer: Callable[..., Any]
) -> None:
    make_peer(is_fleet_trusted=False, is_hostile=True)
    with Client(address, timeout=3) as client:
        with pytest.raises(UnsafeResultError, match="result 1 of job j1"):
            list(client.map(lambda n: {n}, [1]))
        with pytest.raises(UnsafeResultError):
            client.submit(lambda n: {n}, 1).result(5)
        with pytest.raises(GridError, match="does not trust its fleet"):
            client.map(abs, [1], results="any")


def test_plain_exceptions_come_from_the_table_only(
    address: str, make_peer: Callable[..., Any]
) -> None:
    make_peer(is_fleet_trusted=False)
    with Client(address, timeout=3) as client:
        with pytest.raises(ZeroDivisionError):
            list(client.map(lambda n: 1 / n, [0]))


@pytest.mark.parametrize("kind", ["os.system", "subprocess.CalledProcessError", "SystemExit", ""])
def test_no_name_is_looked_up(kind: str) -> None:
    bomb = pickle.dumps(Bomb())
    failure = Failure("boo", kind, "Traceback ...", bomb)
    error = exception_for(Outcome.ERROR, failure, None, WHERE, None)
    assert type(error) is RemoteException and error.kind == kind
    assert os.environ.get("GRISTMILL_BOMB") is None
    assert str(error.__cause__).strip().strip('"').strip() == "Traceback ..."


class OddError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("odd")
        self.one, self.two = one, two


def test_a_trusted_fleets_exception_is_itself_or_its_text() -> None:
    whole = Failure("m", "x.KeyError", "", pickle.dumps(KeyError("k")))
    error = exception_for(Outcome.ERROR, whole, None, WHERE, pickle.loads)
    assert type(error) is KeyError and error.args == ("k",)
    # Its own pickle cannot make it: two arguments, one kept.
    broken = Failure("odd", "mine.Odd", "", pickle.dumps(OddError(1, 2)))
    fallback = exception_for(Outcome.ERROR, broken, None, WHERE, pickle.loads)
    assert type(fallback) is RemoteException and "mine.Odd: odd" in str(fallback)
