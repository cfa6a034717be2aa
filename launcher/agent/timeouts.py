"""How long the agent waits for its group, by settings and by whether the platform restarts pods."""

from __future__ import annotations

import math

from launcher.group.lease import Terms
from launcher.model import Identity
from launcher.settings import Settings

JOIN_TIMEOUT = 1800.0  #: seconds, where no platform restarts the pods
LINGER_MORE = 15.0  #: seconds, over 1.5 leases, for a lost rank to end its engine and to connect again


def join_timeout(settings: Settings, identity: Identity) -> float | None:
    """Seconds for the first gathering; None: no limit."""
    if settings.join_timeout is not None:
        return settings.join_timeout or None
    return None if identity.waits_forever else JOIN_TIMEOUT


def rejoin_timeout(settings: Settings, identity: Identity) -> float | None:
    """Seconds for a leader that is gone after an epoch; None: the platform restarts it, so there is no limit."""
    return None if identity.waits_forever else join_timeout(settings, identity)


def linger(settings: Settings, identity: Identity) -> float:
    """Seconds that the leader of a group that has given up stays for ranks that are away, to tell them why.

    0 where the platform restarts the leader, which then tells them, and where no restart is allowed, because then a
    rank that has lost its leader exits by itself.
    """
    if identity.waits_forever or not settings.max_restarts:
        return 0.0
    return min(Terms(settings.lease).linger + LINGER_MORE, join_timeout(settings, identity) or math.inf)
