"""The worker agent: takes leases from a broker, runs them in jails, meters and reports."""
