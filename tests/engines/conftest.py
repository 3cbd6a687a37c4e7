from __future__ import annotations

import sys
from pathlib import Path

# Work for workers is imported by name, in other processes too; they take over the paths of this one.
sys.path.insert(0, str(Path(__file__).parent))
