"""The boards of tests/board are in reach of tests here."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "board"))
