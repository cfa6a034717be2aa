"""The autopsy of an epoch: what every rank was doing when a verdict ended it, and which rank differs. Pure.

In an engine whose ranks compute together nearly all of them wait: for the one that does not come. So the ranks' *like*
processes are compared (those of one title, digits apart: every rank's ``Worker_TP3``):

1. a process that was stopped (state T or t) is why the others wait;
2. else the one that does not wait in a collective while others of its kind do. Of two ranks this is the only evidence;
3. else, of three or more, the one whose place in the code differs from that of all others.

Otherwise nobody is named, and the verdict says what each rank was doing. A process whose stack could not be had (it did
not answer in time) is no candidate, unless it sleeps where no signal reaches it (state D).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from launcher.model import CauseKind, Epoch, ProcessEvidence

#: Verdicts on processes that still run: what they were doing is the only evidence.
EXAMINED = frozenset({CauseKind.HANG, CauseKind.STALL, CauseKind.HEALTH, CauseKind.STOPPED})
#: Functions in which a process waits for other ranks: of torch.distributed, message queues and the reference engine.
WAITS = (
    r"all_?reduce|all_?gather|reduce_scatter|all_?to_?all|broadcast|barrier",
    r"^(?:_?(?:batch_)?i?(?:recv|send)(?:_\w+)?|receive|receive_\w+|wait|_?wait_\w+|synchronize|dequeue|acquire_read)$",
)
#: Frames of plumbing, which say nothing of what is done.
_PLUMBING = re.compile(
    r"^(?:wrapper|inner|_?wrapped_call_impl|_call_impl|__call__|__enter__|<lambda>|decorate_context)$"
)
_STDLIB = re.compile(r"\((?:selectors|threading|queue|socket|subprocess|ssl|concurrent/\w+|asyncio/\w+)\.py:")
DEPTH = 5  #: innermost frames, plumbing apart, that say whether a process waits for others
MOST_NAMED = 8  #: ranks that a verdict names


class Doing(Enum):
    """What a process was doing, as far as it decides anything."""

    STOPPED = "is stopped"
    STUCK = "is stuck in the kernel"
    WAITING = "waits"
    WORKING = "is in"
    UNKNOWN = "gave no stack"


@dataclass(frozen=True)
class Place:
    """Where one process was. ``where``: the function; ``asleep``: the kernel's name of what it sleeps in."""

    rank: int
    process: ProcessEvidence
    doing: Doing
    where: str = ""

    @property
    def words(self) -> str:
        """As the rest of a sentence that begins with "rank 3"."""
        p = self.process
        if self.doing is Doing.STOPPED:
            return f"is stopped (state {p.state})"
        if self.doing is Doing.STUCK:
            return f"is stuck in the kernel (state {p.state}{', ' + p.wchan if p.wchan else ''})"
        if self.doing is Doing.UNKNOWN:
            return "gave no stack"
        if self.doing is Doing.WAITING:
            return f"waits in `{self.where}`"
        if p.state == "R":
            return f"is in `{self.where}` (running)"
        return f"is in `{self.where}`{f' (asleep in the kernel: {p.wchan})' if p.wchan else ''}"


@dataclass(frozen=True)
class Autopsy:
    """What was found. ``rank``: the one that differs, if it is one; ``at``: monotonic seconds of the leader."""

    epoch: Epoch
    at: float
    cause: str
    size: int
    verdict: str
    rank: int | None
    evidence: Mapping[int, tuple[ProcessEvidence, ...]]

    @property
    def telling(self) -> dict[int, ProcessEvidence]:
        """The process of each rank that was compared, or the one with the longest stack."""
        role = Counter(_role(p) for found in self.evidence.values() for p in {_role(p): p for p in found}.values())
        told: dict[int, ProcessEvidence] = {}
        for rank, found in sorted(self.evidence.items()):
            if found:
                told[rank] = max(found, key=lambda p: (p.state in ("T", "t"), role[_role(p)], len(p.frames)))
        return told

    @property
    def text(self) -> str:
        """The whole of it, for a file and for people."""
        lines = [f"autopsy of epoch {self.epoch}", f"ended by: {self.cause}", f"verdict: {self.verdict}"]
        for rank in range(self.size):
            found = self.evidence.get(rank)
            lines.append("")
            lines.append(f"=== rank {rank}" + ("" if found else ": no evidence came from it"))
            for p in found or ():
                kernel = [f"state {p.state or '?'}"]
                kernel += [f"asleep in {p.wchan}"] if p.wchan else []
                kernel += [f"system call {p.syscall}"] if p.syscall else []
                lines.append(f"--- rank {rank}, process {p.pid} ({p.name}): {', '.join(kernel)}")
                lines += p.text or p.frames
        return "\n".join(lines) + "\n"


def examine(
    epoch: Epoch,
    at: float,
    cause: str,
    size: int,
    evidence: Mapping[int, Sequence[ProcessEvidence]],
    waits: Sequence[str] = (),
) -> Autopsy:
    """Compare the ranks. ``waits``: more patterns of functions in which a process waits for other ranks."""
    try:
        pattern = re.compile("|".join((*WAITS, *waits)), re.IGNORECASE)
    except re.error:  # of a plug-in's pattern
        pattern = re.compile("|".join(WAITS), re.IGNORECASE)
    places = [_place(rank, p, pattern) for rank, found in sorted(evidence.items()) for p in found]
    verdict, rank = _verdict(places)
    silent = [rank for rank in range(size) if not evidence.get(rank)]
    if silent:
        verdict = f"{verdict}; no evidence from {_ranks(silent)}" if places else "no rank gave evidence"
    kept = {rank: tuple(found) for rank, found in sorted(evidence.items())}
    return Autopsy(epoch, at, cause, size, verdict[:900], rank, kept)


def _place(rank: int, process: ProcessEvidence, waits: re.Pattern[str]) -> Place:
    if process.state in ("T", "t"):
        return Place(rank, process, Doing.STOPPED)
    frames = [frame for frame in process.frames if not _PLUMBING.match(_function(frame))]
    if not frames:
        return Place(rank, process, Doing.STUCK if process.state == "D" else Doing.UNKNOWN)
    waiting = next((f for f in map(_function, frames[:DEPTH]) if waits.search(f)), None)
    if waiting is not None:
        return Place(rank, process, Doing.WAITING, waiting)
    own = next((frame for frame in frames if not _STDLIB.search(frame)), frames[0])
    return Place(rank, process, Doing.WORKING, _function(own))


def _function(frame: str) -> str:
    return frame.partition(" ")[0]


def _role(process: ProcessEvidence) -> str:
    return re.sub(r"\d+", "", process.name)


def _verdict(places: Sequence[Place]) -> tuple[str, int | None]:
    stopped = [place for place in places if place.doing is Doing.STOPPED]
    roles = _roles(places)
    if stopped:
        own = {_role(place.process) for place in stopped}
        beside = next((like for like in roles if _role(like[0].process) in own), roles[0] if roles else [])
        return _sentence(stopped, beside), _only(stopped)
    for like in roles:
        differing = _not_waiting(like)
        if differing:
            return _sentence(differing, like), _only(differing)
    for like in roles:
        differing = _in_another_place(like)
        if differing:
            return _sentence(differing, like), _only(differing)
    shown = roles[0] if roles else sorted(places, key=lambda p: p.doing is not Doing.WORKING or p.process.state != "R")
    return _sentence([], shown) if shown else "no rank gave evidence", None


def _roles(places: Sequence[Place]) -> list[list[Place]]:
    """Like processes of two or more ranks: those that are on the most ranks first, of these those that wait."""
    by_role: dict[str, list[Place]] = {}
    for place in places:
        by_role.setdefault(_role(place.process), []).append(place)
    found = [like for like in by_role.values() if len({place.rank for place in like}) > 1]
    return sorted(found, key=lambda like: (-len({p.rank for p in like}), -_count(like, Doing.WAITING)))


def _count(places: Iterable[Place], doing: Doing) -> int:
    return sum(place.doing is doing for place in places)


def _not_waiting(like: Sequence[Place]) -> list[Place]:
    """Those that do not wait while others do; empty if they are most of them, and so nothing is told apart."""
    waiting = _count(like, Doing.WAITING)
    differing = [place for place in like if place.doing in (Doing.WORKING, Doing.STUCK)]
    return differing if waiting and len(differing) <= waiting else []


def _in_another_place(like: Sequence[Place]) -> list[Place]:
    """Of three or more, the one that is not where all others are."""
    known = [place for place in like if place.doing is not Doing.UNKNOWN]
    places = Counter((place.doing, place.where) for place in known)
    if len(known) < 3 or len(places) != 2:
        return []
    rare, count = places.most_common()[-1]
    return [place for place in known if (place.doing, place.where) == rare] if count == 1 else []


def _only(places: Sequence[Place]) -> int | None:
    ranks = {place.rank for place in places}
    return ranks.pop() if len(ranks) == 1 else None


def _sentence(differing: Sequence[Place], others: Sequence[Place]) -> str:
    """Such as ``rank 3 is in `forward`, the other 7 wait in `all_reduce` ``."""
    parts = []
    named: dict[int, Place] = {}
    for place in differing:
        named.setdefault(place.rank, place)
    for rank, place in list(named.items())[:MOST_NAMED]:
        parts.append(f"rank {rank} {place.words}")
    if len(named) > MOST_NAMED:
        parts.append(f"and {len(named) - MOST_NAMED} more")
    rest: dict[int, Place] = {}
    for place in others:
        if place.rank not in named:
            rest.setdefault(place.rank, place)
    groups: dict[str, list[int]] = {}
    for rank, place in rest.items():
        key = f"`{place.where}`" if place.doing in (Doing.WAITING, Doing.WORKING) else ""
        groups.setdefault(f"{place.doing.name} {key}", []).append(rank)
    for ranks in groups.values():
        place = rest[ranks[0]]
        if len(ranks) == 1:
            parts.append(f"rank {ranks[0]} {place.words}")
            continue
        who = f"the other {len(ranks)}" if named and len(groups) == 1 else _ranks(ranks)
        parts.append(f"{who} {_plural(place)}")
    return ", ".join(parts)


def _plural(place: Place) -> str:
    return {
        Doing.STOPPED: "are stopped",
        Doing.STUCK: "are stuck in the kernel",
        Doing.WAITING: f"wait in `{place.where}`",
        Doing.WORKING: f"are in `{place.where}`",
        Doing.UNKNOWN: "gave no stack",
    }[place.doing]


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:MOST_NAMED]))
    more = f" and {len(ranks) - MOST_NAMED} more" if len(ranks) > MOST_NAMED else ""
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}{more}"
