"""Content-addressed blobs: large inputs, results and logs, by their sha-256."""
