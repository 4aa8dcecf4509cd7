"""Suites are modules that every back-end's test imports; what they assert is told in full."""

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # for *_suite, in importlib mode
SUITES = ("chain_suite", "ledger_suite", "payment_suite", "statement_suite", "store_suite")
pytest.register_assert_rewrite(*SUITES)
