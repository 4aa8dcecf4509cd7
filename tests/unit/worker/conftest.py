"""Modules that tests here share: worker_rig."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
