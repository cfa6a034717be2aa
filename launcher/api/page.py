"""The page at ``/``: one HTML file beside this module, and a policy that lets it do nothing but ask this pod.

The page is the same for everybody: what it shows comes from /status, which decides who may see what. Nothing here is
imported or read before somebody asks for the page.
"""

from __future__ import annotations

import base64
import hashlib
import pkgutil
import re
from functools import cache

FILE = "page.html"
_POLICY = (
    "default-src 'none'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)


@cache
def load() -> tuple[str, str]:
    """The page and its Content-Security-Policy. Raises OSError."""
    data = pkgutil.get_data("launcher.api", FILE)  # in a folder or in a zip
    if data is None:
        raise OSError(f"the loader of launcher.api cannot read {FILE}")
    text = data.decode()
    return text, "; ".join((*_POLICY, f"script-src {_hash(text, 'script')}", f"style-src {_hash(text, 'style')}"))


def _hash(text: str, tag: str) -> str:
    """The source expression that admits the page's one element of this kind."""
    (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.S)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
