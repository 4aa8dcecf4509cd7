"""The registry's decisions: pure; see table.py for the states of a node."""
