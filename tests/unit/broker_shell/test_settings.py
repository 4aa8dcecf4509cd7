"""The settings."""

import pytest

from gristmill.broker.settings import read_settings
from gristmill.wire.errors import RemoteError

NEEDED = {"state": "s", "front": "ipc:///f", "back": "ipc:///b", "ledger": "ipc:///l"}


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
