"""Who may open the folder of a socket: its user, and where it is said so its group."""

import pathlib

import pytest

from gristmill.wire.errors import RemoteError
from gristmill.wire.socket import check_listen_address


@pytest.mark.parametrize(
    ("mode", "own", "group"),
    [(0o700, True, True), (0o750, False, True), (0o770, False, False), (0o705, False, False)],
)
def test_who_may_open_the_folder(tmp_path: pathlib.Path, mode: int, own: bool, group: bool) -> None:
    tmp_path.chmod(mode)
    for for_group, is_right in ((False, own), (True, group)):
        if is_right:
            check_listen_address(f"ipc://{tmp_path}/control", for_group=for_group)
        else:
            with pytest.raises(RemoteError, match="open to other users"):
                check_listen_address(f"ipc://{tmp_path}/control", for_group=for_group)
