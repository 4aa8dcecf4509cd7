"""Faults on real processes. Modules that several folders here share start with ``chaos_``."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # for chaos_*, in importlib mode
