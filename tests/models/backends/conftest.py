from __future__ import annotations

import sys
from pathlib import Path

# Small folders of transformers, and pictures, shared by the tests of what runs them.
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
