"""The command uses what any program may use of the client: no private part of it."""

import pathlib
import re

import gristmill.cli.main

ROOM = pathlib.Path(gristmill.cli.main.__file__).parent


def test_the_command_uses_public_methods_of_the_client_only() -> None:
    private = re.compile(r"\b(client|self\._client)\._[a-z]")
    found = [
        f"{path.name}:{number}: {line.strip()}"
        for path in sorted(ROOM.glob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if private.search(line)
    ]
    assert not found
