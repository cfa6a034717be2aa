"""LeaderWorkerSet: three variables that its webhook puts first into every container, over the user's own.

LWS_LEADER_ADDRESS is opaque, a DNS name or (under hash identity) an IP, and is never parsed. The pod's name says
nothing of the rank either: the leader of group 1 is called ``name-1``. Older releases lack some of the three
variables; what is missing may be said with ``--rank``, ``--size`` and ``--leader``.
"""

from __future__ import annotations

from launcher.errors import ConfigError
from launcher.identity.source import Found, Pod

LEADER, SIZE, INDEX = "LWS_LEADER_ADDRESS", "LWS_GROUP_SIZE", "LWS_WORKER_INDEX"


def look(pod: Pod) -> Found | str:
    if not any(pod.text(v) for v in (LEADER, SIZE, INDEX)):
        return f"{LEADER}, {SIZE} and {INDEX} are not set"
    s = pod.settings
    rank, rank_from = pod.number(INDEX), f"{INDEX}={pod.text(INDEX)}"
    if rank is None:
        rank, rank_from = s.rank, s.said("rank")
    size, size_from = pod.number(SIZE, least=1), f"{SIZE}={pod.text(SIZE)}"
    if size is None:
        size, size_from = pod.wanted_size, pod.wanted_size_said
    leader, leader_from = pod.text(LEADER), f"{LEADER}={pod.text(LEADER)}"
    if not leader:
        leader, leader_from = pod.wanted_leader
    if rank is None or size is None or not leader:
        raise _incomplete(pod, rank, size, leader)
    return Found(
        rank=rank,
        rank_from=rank_from,
        size=size,
        size_from=size_from,
        leader=leader,
        leader_from=leader_from,
        name=pod.name,
        why=f"{leader_from}, {size_from}, {rank_from}",
        waits_forever=True,
        fix="LeaderWorkerSet itself sets these variables: look for a container that sets LWS_* by hand",
    )


def _incomplete(pod: Pod, rank: int | None, size: int | None, leader: str) -> ConfigError:
    present = ", ".join(f"{v}={pod.text(v)}" for v in (LEADER, SIZE, INDEX) if pod.text(v))
    absent = {
        variable: flag
        for variable, flag, missing in (
            (LEADER, "--leader", not leader),
            (SIZE, "--size", size is None),
            (INDEX, "--rank", rank is None),
        )
        if missing
    }
    return ConfigError(
        f"this looks like a LeaderWorkerSet pod ({present}), but {' and '.join(absent)} "
        f"{'is' if len(absent) == 1 else 'are'} not set",
        "use LeaderWorkerSet v0.9 or later, which sets all three in every pod, or give "
        f"{' and '.join(absent.values())} (the rank is the label leaderworkerset.sigs.k8s.io/worker-index)",
    )
