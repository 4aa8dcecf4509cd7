"""Key files: made once, ours alone, refused when they are not."""

import pathlib
import stat
import threading

import pytest

from gristmill.wire.errors import RemoteError
from gristmill.wire.keys import BROKER_KEY, load_key


def test_a_key_is_made_once_and_is_ours_alone(tmp_path: pathlib.Path) -> None:
    first = load_key(tmp_path / "new" / BROKER_KEY)
    path = tmp_path / "new" / BROKER_KEY
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert bytes.fromhex(path.read_text()) == first.encode()
    assert load_key(tmp_path / "new" / BROKER_KEY) == first
    assert [one.name for one in path.parent.iterdir()] == [BROKER_KEY]


def test_starts_at_once_agree_on_one_key(tmp_path: pathlib.Path) -> None:
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(load_key(tmp_path / BROKER_KEY).encode()))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_key_that_others_can_read_is_refused(tmp_path: pathlib.Path, mode: int) -> None:
    load_key(tmp_path / BROKER_KEY)
    (tmp_path / BROKER_KEY).chmod(mode)
    with pytest.raises(RemoteError, match=f"{mode:04o}") as caught:
        load_key(tmp_path / BROKER_KEY)
    assert caught.value.code == "UNAUTHORISED" and "chmod 600" in caught.value.hint


@pytest.mark.parametrize("text", ["", "zz" * 32, "ab" * 31, "ab" * 40])
def test_a_file_that_is_no_key_is_refused(tmp_path: pathlib.Path, text: str) -> None:
    path = tmp_path / BROKER_KEY
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(RemoteError, match="64 hex"):
        load_key(tmp_path / BROKER_KEY)


def test_a_credential_stands_in_for_the_file(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """systemd gives it an access list, which shows as rights of a group that nobody has."""
    handed, state = tmp_path / "credentials", tmp_path / "state"
    given = load_key(handed / BROKER_KEY)
    own = load_key(state / BROKER_KEY)
    (handed / BROKER_KEY).chmod(0o440)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(handed))
    assert load_key(state / BROKER_KEY) == given != own
    assert load_key(state / "other.key") not in (given, own), "only a credential of the same name"
    assert (state / "other.key").exists() and not (handed / "other.key").exists()
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    assert load_key(state / BROKER_KEY) == own
