from __future__ import annotations

import sys
from pathlib import Path

# The run these tests look at is made by a module beside them, which the tests of the commands use too.
sys.path.insert(0, str(Path(__file__).parent))
