"""The settlement's own modules of tests lie beside them."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))
