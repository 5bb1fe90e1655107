"""What the tools that measure speed share: rows that take turns, floors, sweeps, tables, a page, goals."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:  # lmkit as it stands in this checkout, installed or not
    sys.path.append(str(ROOT))
