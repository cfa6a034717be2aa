"""Variables for one role. A StatefulSet has one pod template, so what only the leader (or only a worker) should see is
given to all pods under a longer name: ``LAUNCHER_LEADER_ENV_X`` is ``X`` on rank 0, ``LAUNCHER_WORKER_ENV_X`` on the
other ranks. The launcher's own options are not read from them: they must be alike on all ranks.
"""

from __future__ import annotations

from collections.abc import Mapping

LEADER, WORKER = "LAUNCHER_LEADER_ENV_", "LAUNCHER_WORKER_ENV_"


def is_for_one_role(name: str) -> bool:
    """Whether a variable is one of these."""
    return name.startswith((LEADER, WORKER))


def environment(environ: Mapping[str, str], rank: int) -> dict[str, str]:
    """The environment of ``rank``'s engine: its role's variables by their own names, no role's by the longer ones."""
    prefix = WORKER if rank else LEADER
    own = {name[len(prefix) :]: value for name, value in environ.items() if name.startswith(prefix)}
    return {**{name: value for name, value in environ.items() if not is_for_one_role(name)}, **own}
