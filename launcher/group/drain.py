"""How a drain divides a pod's grace: part of it for the last requests, the rest for stopping the engine.

Rank 0 is stopped first, because it serves; the others follow when it has stopped or takes too long.
"""

from __future__ import annotations

from launcher.model import Cause, CauseKind

LEADER_SHARE = 0.6  #: of what is left of the grace: after that rank 0 is killed, and the others are stopped
STOP_RESERVE = 0.5  #: seconds of the grace reserved for the launcher after the engine's stop
LAST_MOMENT = 0.1  #: seconds of the grace that are left when a pod on which nothing runs exits without a goodbye
LEAST_STOP_GRACE = 0.2  #: seconds


def stop_share(left: float) -> float:
    """The part of the grace kept for stopping: a quarter, from 1 to 10 s, but never more than half of it."""
    return min(left / 2, max(1.0, min(10.0, left / 4)))


def cause_of(rank: int) -> Cause:
    """Why an epoch ends of which a pod received SIGTERM."""
    return Cause(CauseKind.DRAIN, rank, "it received SIGTERM")
