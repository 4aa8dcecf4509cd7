"""Hostile and unlucky peers at the real sockets of real processes."""

import importlib.util
import pathlib
import sys

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))  # for sockets_*, in importlib mode
sys.path.insert(0, str(HERE.parent / "leases"))  # for lease_rig: the bills of a real grid

# The light peers and the broker process of tests/integration/broker, under a name of their own.
_found = importlib.util.spec_from_file_location(
    "sockets_peers", HERE.parents[1] / "integration" / "broker" / "conftest.py"
)
assert _found and _found.loader
_peers = importlib.util.module_from_spec(_found)
sys.modules["sockets_peers"] = _peers
_found.loader.exec_module(_peers)

broker = _peers.broker
