"""Ports that move with the epoch, so that a process of an earlier one can't meet a process of the next.

A frozen machine can thaw into the next epoch (DESIGN, "one epoch"); its engine then knocks at a port where nobody is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from launcher.errors import ConfigError
from launcher.model import Epoch
from launcher.settings import Settings


def of_epoch(
    base: int,
    epoch: Epoch,
    *,
    footprint: Sequence[int] = (0,),
    stride: int = 1,
    slots: int = 16,
    taken: Collection[int] = (),
) -> int:
    """One of ``slots`` ports from ``base`` on, another for each epoch; epoch 1 has ``base`` itself.

    Args:
        footprint: the ports that the engine uses, counted from the one returned.
        taken: ports that are somebody else's; a slot that touches one is passed over.
    Raises:
        ConfigError: every slot touches a taken port or lies beyond 65535.
    """
    free = [
        port
        for port in (base + slot * stride for slot in range(slots))
        if all(port + step <= 65535 and port + step not in taken for step in footprint)
    ]
    if not free:
        raise ConfigError(
            f"no free port for the engine from {base} on: {', '.join(map(str, sorted(taken)))} are taken",
            "give another --master-port, and keep --port, --group-port, --agent-port and --ray-port away from it",
        )
    return free[(epoch.n - 1) % len(free)]


def taken(settings: Settings, *more: int) -> frozenset[int]:
    """The ports that the settings give away, less the master port."""
    return frozenset({settings.group_port, settings.agent_port, settings.ray_port, *more})
