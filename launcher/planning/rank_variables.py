"""Variables for one role.

A StatefulSet has one pod template, so every pod gets the variables meant for only the leader or only the workers, under
a longer name: ``LAUNCHER_LEADER_ENV_X`` becomes ``X`` on rank 0, ``LAUNCHER_WORKER_ENV_X`` on the other ranks. The
launcher reads none of its own options from them: those must be equal on all ranks.
"""

from __future__ import annotations

from collections.abc import Mapping

LEADER, WORKER = "LAUNCHER_LEADER_ENV_", "LAUNCHER_WORKER_ENV_"


def is_for_one_role(name: str) -> bool:
    """Whether a variable has such a name."""
    return name.startswith((LEADER, WORKER))


def environment(environ: Mapping[str, str], rank: int) -> dict[str, str]:
    """The environment of ``rank``'s engine: its role's variables under their short names, no long names."""
    prefix = WORKER if rank else LEADER
    own = {name[len(prefix) :]: value for name, value in environ.items() if name.startswith(prefix)}
    return {**{name: value for name, value in environ.items() if not is_for_one_role(name)}, **own}
