"""Who is there: the leader's notes on every rank, and how the members differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from launcher.group import messages as m
from launcher.group.lease import Contact


@dataclass
class Seat:
    """A rank that is present."""

    conn: int
    hello: m.Hello
    contact: Contact
    heard: float  #: when its hello came
    clean: bool = True  #: none of its engine's processes can be running
    joined: bool = False  #: takes part in the current epoch and has not said `stopped`
    member: bool = False  #: takes part in the current or the last epoch, stopped or not
    done: int = -2  #: -2: nothing; -1: prepared; k: stage k done
    told_stop: bool = False
    leaving: float | None = None  #: when the platform kills it
    report: m.Report | None = None
    moved: float = 0.0  #: when its activity last moved, less the seconds put off until then
    rival: Rival | None = None

    def __post_init__(self) -> None:
        self.print = hash((self.hello.size, *sorted(self.hello.fingerprint.items())))

    @property
    def clears(self) -> frozenset[str]:
        """Launchers of which nothing runs, once this one has answered on the connection of its hello."""
        return frozenset({self.hello.incarnation, *self.hello.replaces})

    @property
    def tail(self) -> tuple[str, ...]:
        """Its last lines of output, as far as the leader has heard."""
        return self.report.tail if self.report is not None else ()


@dataclass
class Rival:
    """A newcomer that claims a taken rank, until the incumbent answers or the challenge times out."""

    conn: int
    hello: m.Hello
    nonce: str
    heard: float  #: when its hello came
    until: float


def alike(seats: Iterable[Seat], size: int) -> bool:
    """Quick: all members are of one print, and of the leader's size."""
    prints = {(s.print, s.hello.size) for s in seats}
    return not prints or (len(prints) == 1 and prints.pop()[1] == size)


def differences(seats: Mapping[int, Seat], size: int) -> tuple[str, ...]:
    """What is not alike: ``rank 3: engine.version 0.32.0, group has 0.33.0``. Majority, then rank 0, is right."""
    prints = {r: {**s.hello.fingerprint, "size": str(s.hello.size)} for r, s in sorted(seats.items())}
    prints[0] = {**prints.get(0, {}), "size": str(size)}
    found = []
    for key in sorted({k for p in prints.values() for k in p}):
        values = [p.get(key, "absent") for p in prints.values()]
        if len(set(values)) == 1:
            continue
        leaders = prints[0].get(key, "absent")
        usual = max(dict.fromkeys([leaders, *values]), key=values.count)
        found += [
            f"rank {r}: {key} {p.get(key, 'absent')}, group has {usual}"
            for r, p in prints.items()
            if p.get(key, "absent") != usual
        ]
    return tuple(found)


def named(ranks: Iterable[int], most: int = 12) -> str:
    """``rank 3``, ``ranks 1, 2``, ``no rank``; of very many the first ``most``."""
    ranks = list(ranks)
    if not ranks:
        return "no rank"
    shown = ", ".join(str(r) for r in ranks[:most]) + (f" and {len(ranks) - most} more" if len(ranks) > most else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"
