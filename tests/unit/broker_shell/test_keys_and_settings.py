"""The key file and the settings."""

import pathlib
import stat
import threading

import pytest

from gristmill.broker.keys import KEY_NAME, load_key
from gristmill.broker.settings import read_settings
from gristmill.wire.errors import RemoteError

NEEDED = {"state": "s", "front": "ipc:///f", "back": "ipc:///b", "ledger": "ipc:///l"}


def test_a_key_is_made_once_and_is_ours_alone(tmp_path: pathlib.Path) -> None:
    first = load_key(tmp_path / "new")
    path = tmp_path / "new" / KEY_NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert bytes.fromhex(path.read_text()) == first.encode()
    assert load_key(tmp_path / "new") == first
    assert [one.name for one in path.parent.iterdir()] == [KEY_NAME]


def test_starts_at_once_agree_on_one_key(tmp_path: pathlib.Path) -> None:
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(load_key(tmp_path).encode())) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_key_that_others_can_read_is_refused(tmp_path: pathlib.Path, mode: int) -> None:
    load_key(tmp_path)
    (tmp_path / KEY_NAME).chmod(mode)
    with pytest.raises(RemoteError, match=f"{mode:04o}") as caught:
        load_key(tmp_path)
    assert caught.value.code == "UNAUTHORISED" and "chmod 600" in caught.value.hint


@pytest.mark.parametrize("text", ["", "zz" * 32, "ab" * 31, "ab" * 40])
def test_a_file_that_is_no_key_is_refused(tmp_path: pathlib.Path, text: str) -> None:
    path = tmp_path / KEY_NAME
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(RemoteError, match="64 hex"):
        load_key(tmp_path)


def test_settings_come_from_the_line_then_the_environment_then_defaults() -> None:
    environ = {"GRISTMILL_BROKER_TICK_MS": "7", "GRISTMILL_BROKER_FRONT": "ipc:///other"}
    settings = read_settings(NEEDED, environ)
    assert (settings.front, settings.tick_ms, settings.drain_messages) == ("ipc:///f", 7, 64)


def test_all_bad_settings_are_named_at_once() -> None:
    environ = {"GRISTMILL_BROKER_TICK_MS": "0", "GRISTMILL_BROKER_CLIENT_TTL_MS": "soon"}
    with pytest.raises(RemoteError) as caught:
        read_settings({}, environ)
    for word in ("tick_ms", "client_ttl_ms", "'soon'", "state: missing", "front: missing"):
        assert word in caught.value.message
