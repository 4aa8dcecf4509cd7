"""Who may speak to a broker, and the table of what may be said by whom."""

import os
import pathlib
from typing import get_args

import msgspec
import pytest
from nacl.signing import SigningKey

from gristmill.broker.front import VERBS, Verb, check_right
from gristmill.broker.principals import (
    PORTS,
    Principals,
    add_node,
    make_token,
    parse_allow,
    read,
    write,
)
from gristmill.wire import client as say
from gristmill.wire.curve import curve_public
from gristmill.wire.errors import RemoteError
from gristmill.wire.registry import SCOPES, Principal, Role, State
from gristmill.wire.tokens import new_token, parse_token

NOW = 1_800_000_000_000


def public_of(number: int) -> str:
    return SigningKey(bytes([number]) * 32).verify_key.encode().hex()


def principal(number: int, role: Role = "client", state: State = "active") -> Principal:
    return Principal(public_of(number), role, f"n{number}", "ann", state, scopes=["read"])


# ---------------------------------------------------------------- the verb table

#: role and scopes to what it may say besides HELLO: the whole table, written out
MAY: dict[tuple[Role, tuple[str, ...]], str] = {
    ("operator", ()): "Submit Parcel CloseUpload Subscribe Credit Unsubscribe Cancel Steer Ask"
    " DrainWorker ReleaseNode Operate Buy Purchase OnChain Ping Goodbye",
    ("client", SCOPES): "Submit Parcel CloseUpload Subscribe Credit Unsubscribe Cancel Steer Ask"
    " Buy Purchase OnChain Ping Goodbye",
    ("client", ("submit",)): "Submit Parcel CloseUpload Cancel Steer Ping Goodbye",
    ("client", ("read",)): "Subscribe Credit Unsubscribe Ask Ping Goodbye",
    ("client", ("pay",)): "Buy Purchase OnChain Ping Goodbye",
    ("client", ()): "Ping Goodbye",
    ("portal", ()): "Subscribe Credit Unsubscribe Ask Ping Goodbye",
    ("worker", SCOPES): "",
    ("ledger", SCOPES): "",
    ("broker", SCOPES): "",
}


def test_every_verb_has_its_row() -> None:
    assert set(VERBS) | {say.Hello} == set(get_args(say.ClientMessage))
    assert {role for role, _ in MAY} == set(get_args(Role))
    assert {verb.scope for verb in VERBS.values()} <= {"", *SCOPES}


@pytest.mark.parametrize(("role", "scopes"), MAY)
def test_every_cell_is_as_it_is_written(role: Role, scopes: tuple[str, ...]) -> None:
    allowed = set(MAY[role, scopes].split())
    for kind, verb in VERBS.items():
        if kind.__name__ in allowed:
            check_right(kind.__name__, verb, role, frozenset(scopes))
        else:
            with pytest.raises(RemoteError, match=kind.__name__) as caught:
                check_right(kind.__name__, verb, role, frozenset(scopes))
            assert caught.value.code == "FORBIDDEN"


def test_a_token_without_the_scope_is_told_which_it_needs() -> None:
    with pytest.raises(RemoteError, match="needs a token with the scope 'pay'; this one has read"):
        check_right("Buy", Verb("", "pay"), "client", frozenset({"read"}))


# ---------------------------------------------------------------- principals


def test_who_may_connect_where(tmp_path: pathlib.Path) -> None:
    roles: list[Role] = list(get_args(Role))
    write(tmp_path / "principals", [principal(at, role) for at, role in enumerate(roles)])
    found = Principals(tmp_path)
    for at, role in enumerate(roles):
        key = curve_public(public_of(at))
        for port in ("front", "back", "other", ""):
            expected = public_of(at) if role in PORTS.get(port, ()) else ""
            assert found.who(port, key) == expected, (role, port)
    assert found.who("front", curve_public(public_of(99))) == ""
    assert found.who("front", b"") == ""


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("pending", "NODE_PENDING"), ("rejected", "NODE_REFUSED"),
        ("quarantined", "NODE_PENDING"), ("banned", "NODE_REFUSED"), ("expired", "KEY_EXPIRED"),
        ("revoked", "KEY_REVOKED"), ("active", ""), ("draining", ""),
    ],
)  # fmt: skip
def test_what_each_state_is_told(tmp_path: pathlib.Path, state: State, code: str) -> None:
    write(tmp_path / "principals", [principal(1, "worker", state)])
    found = Principals(tmp_path)
    assert found.who("back", curve_public(public_of(1))), "it may connect, to be told"
    if not code:
        assert found.admit(public_of(1), NOW).state == state
        return
    with pytest.raises(RemoteError, match="'n1'") as caught:
        found.admit(public_of(1), NOW)
    assert caught.value.code == code


def test_every_state_is_told_something() -> None:
    pairs = test_what_each_state_is_told.pytestmark[0].args[1]  # type: ignore[attr-defined]
    told = {state for state, _ in pairs}
    assert told | {"approved"} == set(get_args(State)), "who is approved may come for a canary"


def test_a_key_ends_at_its_time(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "principals", [msgspec.structs.replace(principal(1), expires_ms=NOW)])
    found = Principals(tmp_path)
    found.admit(public_of(1), NOW - 1)
    with pytest.raises(RemoteError) as caught:
        found.admit(public_of(1), NOW)
    assert caught.value.code == "KEY_EXPIRED"
    with pytest.raises(RemoteError) as caught:
        found.admit(public_of(2), NOW)
    assert caught.value.code == "UNAUTHORISED"


def test_changes_are_told_once_and_new_keys_at_once(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "principals"
    found = Principals(tmp_path)
    assert found.look() == set()
    write(path, [principal(1), principal(2)])
    assert found.who("front", curve_public(public_of(1))), "without a look"
    assert found.look() == {public_of(1), public_of(2)}
    assert found.look() == set()
    write(path, [principal(1), msgspec.structs.replace(principal(2), scopes=[], version=2)])
    assert found.look() == {public_of(2)}
    write(path, [principal(2)])
    assert found.look() == {public_of(1), public_of(2)}
    os.unlink(path)
    assert found.look() == {public_of(2)} and found.find(public_of(2)) is None


@pytest.mark.parametrize("line", [b"no json", b"[]", b"\xff", b'["00","client","n","t","active"]'])
def test_a_file_that_makes_no_sense_changes_nothing(
    tmp_path: pathlib.Path, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "principals"
    write(path, [principal(1)])
    found = Principals(tmp_path)
    found.look()
    path.write_bytes(path.read_bytes() + line + b"\n")
    assert found.look() == set() and found.find(public_of(1)) is not None
    assert f"{path}, line 2" in caplog.text
    with pytest.raises(RemoteError, match="line 2"):
        read(path)
    write(path, [])
    assert found.look() == {public_of(1)}


# ---------------------------------------------------------------- tokens


def test_a_token_is_a_key_that_only_its_holder_has(tmp_path: pathlib.Path) -> None:
    text = make_token(tmp_path, "ann", is_operator=False)
    token = parse_token(f"  {text}\n")
    (made,) = read(tmp_path / "principals")
    assert (made.public, made.name, made.tenant) == (token.public, token.name, "ann")
    assert made.role == "client" and set(made.scopes) == set(SCOPES)
    secret = token.key.encode().hex()
    assert secret not in (tmp_path / "principals").read_text()
    assert secret not in repr(token) and secret not in str(made)
    assert (tmp_path / "principals").stat().st_mode & 0o777 == 0o600
    add_node(tmp_path, "mill", public_of(3))
    add_node(tmp_path, "mill", public_of(3))
    assert [one.role for one in read(tmp_path / "principals")] == ["client", "worker"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "gm_",
        "gm_a_b_c",
        "gm_ann_" + "0" * 64,
        "gm_A_" + "0" * 64 + "_" + "0" * 64,
        "x" * 10_000,
    ],
)
def test_what_is_no_token_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(RemoteError, match=f"the token of {len(text)} characters") as caught:
        parse_token(text)
    assert caught.value.code == "UNAUTHORISED"
    assert len(text) < 10 or text not in str(caught.value)


def test_a_key_that_is_elsewhere_is_not_made_anew(tmp_path: pathlib.Path) -> None:
    (tmp_path / "journal.db").touch()
    with pytest.raises(RemoteError, match="as a credential"):
        make_token(tmp_path, "ann", is_operator=False)
    assert not (tmp_path / "broker.key").exists()
    token = parse_token(make_token(tmp_path, "ann", False, public_of(5)))
    assert token.broker == public_of(5)


def test_principals_of_the_settings_are_there_whatever_the_file_says(
    tmp_path: pathlib.Path,
) -> None:
    fixed = [
        parse_allow(f"operator={public_of(1)}"),
        parse_allow(f"client:ann={public_of(2)}"),
        parse_allow(f"worker:mill={public_of(3)}"),
    ]
    assert [(one.role, one.name, one.tenant) for one in fixed] == [
        ("operator", "operator", "local"), ("client", "ann", "ann"), ("worker", "mill", "local"),
    ]  # fmt: skip
    found = Principals(tmp_path, fixed)
    assert found.admit(public_of(1), NOW).role == "operator"
    write(tmp_path / "principals", [principal(1, "client", "revoked"), principal(4)])
    assert found.look() >= {public_of(4)}
    assert found.admit(public_of(1), NOW).role == "operator"
    assert found.who("back", curve_public(public_of(3)))
    for bad in ("", "operator", f"operator:x={public_of(1)}", f"worker={public_of(1)}",
                f"king={public_of(1)}", "worker:mill=abc", "client:ann=" + "0" * 64):  # fmt: skip
        with pytest.raises(ValueError, match=r"lets nobody in|is no key"):
            parse_allow(bad)


@pytest.mark.parametrize("tenant", ["", "a/b", "a\n", "x" * 300])
def test_a_tenant_that_is_no_name(tmp_path: pathlib.Path, tenant: str) -> None:
    with pytest.raises(RemoteError, match="tenant is"):
        make_token(tmp_path, tenant, is_operator=False)


@pytest.mark.parametrize("name", ["", "A", "a_b", "a" * 41, "-a", "a b"])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(RemoteError, match="the token's name"):
        new_token(name, public_of(1))
