"""The events besides messages that the state machines take, and the actions that both return: plain values.

`agent/` carries out the actions; messages are sent through `link.py`. A member's own events and actions are in
`member.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# ------------------------------------------------------------------------------------------------------- events


@dataclass(frozen=True)
class Closed:
    """A connection ended. ``why`` in words."""

    why: str = ""


@dataclass(frozen=True)
class Tick:
    """Time passed."""


@dataclass(frozen=True)
class Restart:
    """A person asks the leader for a new epoch (`launcher restart`). ``who``: where the request came from."""

    who: str = ""


# ------------------------------------------------------------------------------------------------------ actions


@dataclass(frozen=True)
class Send:
    """Send a message."""

    conn: int
    message: Any


@dataclass(frozen=True)
class SendAll:
    """Send one message to many: encoded once."""

    conns: tuple[int, ...]
    message: Any


@dataclass(frozen=True)
class Hang:
    """Close a connection."""

    conn: int


@dataclass(frozen=True)
class Note:
    """A line for the log: ``event`` in a few words, with fields."""

    event: str
    fields: Mapping[str, object] = field(default_factory=dict)
    level: str = "info"
