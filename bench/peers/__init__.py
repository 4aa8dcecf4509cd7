"""Other grids and pools in the same scenarios as ours, each in a virtual environment of its own."""
