"""The broker: keeps jobs, leases them to workers, delivers results; one process, one journal."""
