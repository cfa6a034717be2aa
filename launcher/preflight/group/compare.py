"""Compares the pods of a group: which one is the odd one out, and in what. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from launcher.group.roster import named
from launcher.preflight.finding import Finding, fail, warn

SLOWEST = "the group runs at the pace of its slowest rank, or does not start at all"
NODE = "move the odd pod to a node like the others', or give all pods the same network attachment"
#: fact -> (its name for people, why it matters, what to do)
COMPARED: Mapping[str, tuple[str, str, str]] = {
    "gpu.count": ("GPUs", SLOWEST, "request the same number for all pods"),
    "gpu.model": ("GPU model", SLOWEST, "pin the pods to one kind of node (nodeSelector)"),
    "driver": ("driver", "different drivers bring different CUDA abilities", "use nodes of one driver version"),
    "rdma.kind": ("kind of RDMA", SLOWEST, NODE),
    "rdma.rails": ("RDMA rails", "NCCL builds its rings on the rails that all have", NODE),
    "rdma.rates": ("rate of the rails", SLOWEST, NODE),
    "rdma.layer": ("link layer", "InfiniBand and Ethernet do not reach each other", NODE),
    "rdma.mtu": ("MTU of the rails", "large packets are dropped on the way: collectives hang", NODE),
    "rdma.gids": (
        "GID version",
        "RoCE v1 and v2 do not reach each other",
        "set NCCL_IB_GID_INDEX on all pods or none",
    ),
    "mtu": ("MTU", "large packets are dropped on the way: connections stall", NODE),
    "shm": ("size of /dev/shm", "the smallest one decides", "give all pods the same emptyDir"),
    "memory.limit": ("memory limit", "the smallest one decides", "give all pods the same limit"),
    "torch.version": ("torch", "its collectives must be alike", "use one image"),
    "nccl.version": ("NCCL", "NCCL refuses ranks of another version", "use one image"),
    "model.config": (
        "config.json of the model",
        "the ranks would load different models",
        "mount the same model everywhere",
    ),
}
VERSION = ".version"  #: ends the facts of an engine's distributions; python.version is not one
_ANY_VERSION = ("ranks of different releases do not understand each other", "use one image")


def compared(name: str) -> tuple[str, str, str] | None:
    """A fact's name for people, why it matters and what to do; None: it is not compared."""
    if name in COMPARED:
        return COMPARED[name]
    called = name.removesuffix(VERSION)
    return (called, *_ANY_VERSION) if called not in (name, "", "python") else None


def odd_ones(facts: Mapping[int, Mapping[str, str]]) -> tuple[Finding, ...]:
    """Findings about the ranks that differ from the others, by fact. ``facts``: of every rank, by name.

    Of two ranks either may be the odd one, so the finding names both values. Ranks without any facts are left out (an
    older launcher, or one without preflight).
    """
    found = []
    others = {name for own in facts.values() for name in own if name not in COMPARED}
    for name in (*COMPARED, *sorted(others)):
        words = compared(name)
        if words is None:
            continue
        called, why, fix = words
        told = {rank: own.get(name, "") for rank, own in sorted(facts.items()) if own}
        values = Counter(told.values())
        if len(values) < 2:
            continue
        most = values.most_common()
        # The most common value; in a tie, that of the lowest rank.
        usual = most[0][0] if most[0][1] > most[1][1] else told[min(told)]
        odd = {rank: value for rank, value in told.items() if value != usual}
        what = f"{called}: {_listed(odd)}; {_others(len(told) - len(odd))} {usual or 'none'}"
        found.append((fail if name.endswith(VERSION) or name == "model.config" else warn)("group", what, why, fix))
    return tuple(found)


def _listed(odd: Mapping[int, str]) -> str:
    by_value: dict[str, list[int]] = {}
    for rank, value in odd.items():
        by_value.setdefault(value, []).append(rank)
    return ", ".join(f"{_have(ranks)} {value or 'none'}" for value, ranks in by_value.items())


def _have(ranks: list[int]) -> str:
    return f"{named(ranks, most=8)} {'has' if len(ranks) == 1 else 'have'}"


def _others(count: int) -> str:
    return "the other has" if count == 1 else f"the other {count} have"
