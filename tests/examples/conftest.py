from __future__ import annotations

import sys
from pathlib import Path

# The examples themselves, and rows of made-up shards.
sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
sys.path.insert(0, str(Path(__file__).parents[1] / "provenance"))
