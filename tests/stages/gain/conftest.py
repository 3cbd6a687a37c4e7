from __future__ import annotations

import sys
from pathlib import Path

# Rows of made-up shards, and small test sets of pictures and texts.
sys.path.insert(0, str(Path(__file__).parents[2] / "provenance"))
sys.path.insert(0, str(Path(__file__).parents[1] / "evaluate"))
