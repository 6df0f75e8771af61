"""On the Python of a worker node only common and pilot run: leave out the tests that need the other programs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

_NEEDS_NEWER = re.compile(r"^\s*(?:from|import)\s+(?:server|harvester)\b", re.MULTILINE)

collect_ignore = [
    path.name
    for path in Path(__file__).parent.glob("test_*.py")
    if sys.version_info < (3, 11) and _NEEDS_NEWER.search(path.read_text(encoding="utf-8"))
]
