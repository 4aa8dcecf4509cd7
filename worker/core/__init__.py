"""The worker's decisions: pure data and functions, ``step(state, event, now_ms) -> effects``."""
