"""The guard lives as long as the pod: what it imports is memory that every pod pays for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HEAVY = "dataclasses inspect asyncio subprocess logging socket ssl click psutil http.client difflib"


def test_the_guard_imports_nothing_heavy() -> None:
    code = f"import sys, launcher.guard.guard; print(*sorted(set({HEAVY.split()}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ""
