"""The ``gristmill`` command, and ``Grid``: a whole grid of processes on this machine."""
