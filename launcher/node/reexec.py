"""How the launcher starts a Python module of its own in another process."""

from __future__ import annotations

import sys
from pathlib import Path


def python() -> str:
    """What takes ``-m launcher.x``: this interpreter, or in the self-contained folder (``images/``) that folder's own.

    There the interpreter runs without site-packages and would not find the launcher by itself.
    """
    own = Path(__file__).resolve().parents[2] / "bin" / "python"
    return str(own) if sys.flags.isolated and sys.flags.no_site and own.exists() else sys.executable
