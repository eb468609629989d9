"""Where the repository is, and the folder with optional data."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("GLEAD_SHARED") or ROOT / "../shared").resolve()
