"""``--rank --size --leader``, or ``--peers``: the user says it all. For anything that no other source knows."""

from __future__ import annotations

from launcher.errors import ConfigError
from launcher.identity import names
from launcher.identity.source import Found, Pod


def look(pod: Pod) -> Found | str:
    if pod.settings.peers:
        return _by_peers(pod)
    return _by_rank(pod)


def _by_rank(pod: Pod) -> Found | str:
    s = pod.settings
    if s.rank is None:
        return "--rank is not given"
    if s.size is None:
        return f"{s.said('rank')} is given without --size"
    if s.size > 1 and not s.leader:
        return f"{s.said('rank')} and {s.said('size')} are given without --leader"
    return Found(
        rank=s.rank,
        rank_from=s.said("rank"),
        size=s.size,
        size_from=s.said("size"),
        leader=s.leader or pod.name,
        leader_from=s.said("leader") if s.leader else "this pod's own name",
        name=pod.name,
        why=f"{s.said('rank')}, {s.said('size')}" + (f", {s.said('leader')}" if s.leader else ""),
        fix="ranks count from 0: give --rank 0 to size - 1",
    )


def _by_peers(pod: Pod) -> Found | str:
    s = pod.settings
    own = _own_places(pod)
    if s.rank is not None:
        rank, rank_from = s.rank, s.said("rank")
        if own and rank not in own and rank < len(s.peers):
            raise ConfigError(
                f"{s.said('rank')} is {s.peers[rank]} in {s.said('peers')}, but this pod is {_own_names(pod)}, "
                f"which is number {own[0]} there (from 0)",
                "leave out --rank, or correct the order of --peers; it must be the same on every pod",
            )
    elif len(own) == 1:
        rank, rank_from = own[0], f"this pod's place in {s.said('peers')}"
    elif own:
        raise ConfigError(
            f"{s.said('peers')} names this pod ({_own_names(pod)}) more than once: "
            + ", ".join(f"{s.peers[i]} (rank {i})" for i in own),
            "give --rank too",
        )
    else:
        return f"{s.said('peers')} does not name this pod ({_own_names(pod)}), and --rank is not given"
    return Found(
        rank=rank,
        rank_from=rank_from,
        size=len(s.peers),
        size_from=f"{s.said('peers')} ({len(s.peers)} names)",
        leader=s.peers[0],
        leader_from=f"the first of {s.said('peers')}",
        name=pod.name,
        why=f"{s.said('peers')}, rank from {rank_from}",
        peers=s.peers,
        fix="ranks count from 0: give --rank 0 to size - 1, or name more peers",
    )


def _own(pod: Pod) -> tuple[str, ...]:
    address = pod.settings.address or pod.text("POD_IP")
    return tuple(dict.fromkeys(n for n in (pod.text("POD_NAME"), pod.hostname, address) if n))


def _own_names(pod: Pod) -> str:
    return ", ".join(_own(pod))


def _own_places(pod: Pod) -> tuple[int, ...]:
    """Where this pod is in ``--peers``: by a name that is equal, else by one that is equal up to the domain."""
    for match in (names.same, names.alike):
        places = [i for i, peer in enumerate(pod.settings.peers) if any(match(peer, own) for own in _own(pod))]
        if places:
            return tuple(places)
    return ()
