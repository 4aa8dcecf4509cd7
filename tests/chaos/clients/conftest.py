"""Clients whose broker dies, and clients that are away themselves."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # for chaos_client_*, in importlib mode
