"""The one place where what the user said is held against what the deciding source says."""

from __future__ import annotations

from launcher.errors import ConfigError
from launcher.identity import names
from launcher.identity.source import Found, Pod


def check_settings(pod: Pod) -> None:
    """Contradictions among the user's own words, before any source is asked."""
    s = pod.settings
    if s.leader:
        names.check(s.leader, s.said("leader"))
    seen: dict[str, int] = {}
    for index, peer in enumerate(s.peers):
        names.check(peer, s.said("peers"))
        key = peer.rstrip(".").lower()
        if key in seen:
            raise ConfigError(
                f"{s.said('peers')} names {peer} twice, as rank {seen[key]} and as rank {index}",
                "name each pod once, the leader first",
            )
        seen[key] = index
    if s.peers and s.size is not None and s.size != len(s.peers):
        raise ConfigError(
            f"{s.said('size')} contradicts {s.said('peers')}, which names {len(s.peers)} pods",
            "leave out --size, or name as many peers",
        )
    if s.peers and s.leader and not names.alike(s.leader, s.peers[0]):
        raise ConfigError(
            f"{s.said('leader')} contradicts {s.said('peers')}, whose first name {s.peers[0]} is rank 0",
            "leave out --leader, or name the leader first in --peers",
        )


def check(pod: Pod, source: str, found: Found) -> None:
    """Raise ConfigError where the source is wrong in itself or against an explicit value."""
    s = pod.settings
    overrule = f"leave it out and let {source} decide, or give --rank, --size and --leader together to overrule it"
    if s.rank is not None and s.rank != found.rank:
        raise ConfigError(f"{s.said('rank')} contradicts rank {found.rank} from {found.rank_from}", overrule)
    if pod.wanted_size is not None and pod.wanted_size != found.size:
        raise ConfigError(f"{pod.wanted_size_said} contradicts size {found.size} from {found.size_from}", overrule)
    leader, said = pod.wanted_leader
    if leader and not names.alike(leader, found.leader):
        raise ConfigError(f"{said} contradicts leader {found.leader} from {found.leader_from}", overrule)
    if found.rank >= found.size:
        raise ConfigError(
            f"rank {found.rank} from {found.rank_from} is out of range: the group has {found.size} "
            f"{'pod' if found.size == 1 else 'pods'} ({found.size_from}), ranks 0 to {found.size - 1}",
            found.fix or "correct the rank or the size",
        )
