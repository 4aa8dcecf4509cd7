"""The code that runs inside a jail, in the job's own Python: keep it small and light to import."""
