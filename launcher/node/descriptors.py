"""Open files: how many this process may have, and which ports get how many of them.

A shell's or container's soft limit is often 1,024 while the hard limit is far higher. The agent raises its own; the
guard does not, and the guard starts the engine, so the engine's processes keep the limit that the pod was given.
"""

from __future__ import annotations

import resource
from dataclasses import dataclass

WANTED = 1 << 16
RESERVE = 64  #: for the agent's own: the guard's channel, /proc, health checks, files, libraries
MOST_VISITS = 2048  #: connections to the agent port at a time; most of them cost no more than a descriptor
MOST_GUESTS = 4096  #: connections to the group port that have not joined, beyond one for each member

_engines: tuple[int, int] | None = None


@dataclass(frozen=True)
class Shares:
    """Connections that each port may hold for peers that are not members (yet)."""

    visits: int  #: the agent port
    guests: int  #: the group port
    enough: bool  #: whether every member finds a descriptor as well


def raise_limit() -> int:
    """Raise this process's soft limit as far as the hard limit and ``WANTED`` allow. Returns the limit."""
    global _engines
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    _engines = _engines or (soft, hard)
    if soft == resource.RLIM_INFINITY:
        return WANTED
    most = WANTED if hard == resource.RLIM_INFINITY else min(hard, WANTED)
    if soft < most:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        except (OSError, ValueError):  # a sandbox that forbids it
            return soft
        return most
    return soft


def engine_limit() -> tuple[int, int]:
    """Soft and hard limit of the processes that the guard starts."""
    return _engines or resource.getrlimit(resource.RLIMIT_NOFILE)


def shares(limit: int, size: int, leads: bool) -> Shares:
    """Divide ``limit`` descriptors: the agent's own and the members' first, the rest to connections of non-members."""
    members = size if leads else 1
    left = limit - min(RESERVE, limit // 4) - members
    visits = min(MOST_VISITS, left // 2 if leads else left)
    guests = min(MOST_GUESTS + 2 * size, left - visits) if leads else 0
    return Shares(max(8, visits), max(8, guests), left >= 16)
