"""The registry: who may speak on this grid, and how nodes are enrolled."""
