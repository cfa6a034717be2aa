"""Ports that change with the epoch, so that a process of one epoch never reaches a process of the next.

A frozen machine can thaw after the next epoch has begun; its engine then dials a port on which nothing listens.
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
    """One of ``slots`` ports from ``base`` on, a different one for each epoch; epoch 1 gets ``base`` itself.

    Args:
        footprint: the ports that the engine uses, counted from the one returned.
        taken: ports that are in use otherwise; a slot that overlaps one is skipped.

    Raises:
        ConfigError: every slot overlaps a taken port or exceeds 65535.
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
    """The ports that the settings assign, without the master port."""
    return frozenset({settings.group_port, settings.agent_port, settings.ray_port, *more})
