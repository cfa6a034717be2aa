"""One pod, no network, no coordination: what is left where no source knows of a group.

Only where the user did not ask for one. ``--size 2`` and no rank anywhere is an error that says what was looked for.
"""

from __future__ import annotations

from launcher.errors import ConfigError, NoIdentityError
from launcher.identity.source import Found, Pod
from launcher.model import SourceReport


def look(pod: Pod, others: tuple[SourceReport, ...]) -> Found:
    """``others`` are the reports of the sources before this one, for the error text."""
    s = pod.settings
    size = pod.wanted_size
    if size is not None and size > 1:
        raise NoIdentityError(
            f"{pod.wanted_size_said}, but nothing tells {_what_is_missing(pod)}; looked for:\n"
            + "\n".join(f"    {r.name}: {r.why}" for r in others),
            "give --rank, --size and --leader (or --peers) on each pod, or run in a StatefulSet, LeaderWorkerSet, "
            "Indexed Job or Slurm step",
        )
    if size is None and s.rank is not None and s.rank > 0:
        raise ConfigError(
            f"{s.said('rank')} is given without --size, and nothing else tells the size of the group",
            "give --size and --leader too",
        )
    if size is None and s.leader:
        raise ConfigError(
            f"{s.said('leader')} is given without --rank and --size, and nothing else tells them",
            "give --rank and --size too, or leave out --leader to run alone",
        )
    return Found(
        rank=0,
        rank_from="being alone",
        size=1,
        size_from="being alone",
        leader=s.leader or pod.name,
        leader_from="this pod's own name",
        name=pod.name,
        why="no other source applies, and no --size greater than 1 is given" if size is None else pod.wanted_size_said,
    )


def _what_is_missing(pod: Pod) -> str:
    if pod.settings.rank is None:
        return "this pod's rank"
    return "where rank 0 is" if pod.settings.rank else "by which name the others know this pod, rank 0"
