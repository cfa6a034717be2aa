"""Where a user's files go: home and cache folders, as most libraries find them."""

from __future__ import annotations

import os
from collections.abc import Mapping


def home(environ: Mapping[str, str]) -> str:
    """HOME without a trailing slash, else what the password file says; / for a user who is not in it."""
    found = environ.get("HOME") or os.path.expanduser("~")
    return found.rstrip("/") if found.startswith("/") else ""


def cache_home(environ: Mapping[str, str]) -> str:
    return environ.get("XDG_CACHE_HOME") or f"{home(environ)}/.cache"
