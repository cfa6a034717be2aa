"""How a drain divides a pod's grace: part of it for the last requests, the rest for stopping the engine.

Rank 0 is stopped first, because it serves; the others follow when it has stopped or takes too long.
"""

from __future__ import annotations

LEADER_GRACE = 0.8  #: of what is left of the grace: how long rank 0 may take to stop before it is killed
LEADER_ALONE = 0.6  #: of what is left when the drain is over: after that the others are stopped too
STOP_RESERVE = 0.5  #: seconds of the grace reserved for the launcher after the engine's stop
LEAST_STOP_GRACE = 0.2  #: seconds


def stop_share(left: float) -> float:
    """The part of the grace kept for stopping: a quarter, from 1 to 10 s, but never more than half of it."""
    return min(left / 2, max(1.0, min(10.0, left / 4)))
