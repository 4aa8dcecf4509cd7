"""The broker without I/O: ``step`` is its only door, see step.py."""
