"""The client dialogue as data: what happened in, what to send or tell out (docs/rfc/0002)."""
