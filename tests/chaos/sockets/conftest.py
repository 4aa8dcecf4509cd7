"""Hostile and unlucky peers at the real sockets of real processes."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # for sockets_*, in importlib mode
