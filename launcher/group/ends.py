"""Decide which rank of an epoch failed first, from evidence that does not depend on whose report arrived first.

When one rank fails, its neighbours fail because of it within milliseconds, and their reports may overtake its own. So
the leader keeps every end of the epoch, with

    interval    the end happened between `since` and `until` on the leader's clock (clock.py). The interval is widened
                by the observer's own scheduling delay and by the uncertainty of its clock offset
    how         a signal from outside, an exit code of its own, or exit code 0
    last lines  if they blame a peer ("connection reset by peer", "lost the rank after, rank 2") before anything else
                went wrong, this rank is a victim, whenever it ended. A process closes its connections some time before
                its end can be seen (it prints a traceback, frees GPU memory), so a victim may end first
    told        our own stop had reached it before it ended. Then it explains nothing, unless it was already printing
                a traceback of its own and all others blame a peer

`Grade` ranks the kinds of evidence; within a grade the earlier end comes first. Where intervals overlap and nobody's
last lines name one of the ranks, the cause says "probably" and lists the other candidates. `Ends.judge` depends only on
the set of ends. The order of arrival counts only for ends that have no time of their own, such as lost launchers.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from launcher.model import TOLD_TO_STOP, Cause, CauseKind

#: An end explains the others only if it began no later than this many seconds after the leader heard of the first one.
WINDOW = 1.0
MOST_PER_RANK = 4
MOST_KEPT = 64  #: ranks whose ends are kept when the epoch is over
SAYING = ", saying: "  #: precedes an engine's own words
LONGEST_LINE = 200  #: characters of the line that describes a rank's end
MOST_BECAUSE = 16  #: ranks listed as having ended because of the cause
BOTH_LINES = 100  #: last lines shown of each candidate when the first one is uncertain


class Blame(IntEnum):
    """Whether the last lines of a process blame a peer for its end."""

    NONE = 0
    AFTER = 1  #: they blame a peer, but something else went wrong before
    FIRST = 2  #: a lost peer is the first thing that went wrong


class Grade(IntEnum):
    """The lower the grade, the better an end explains the others."""

    OOM = 0
    HIT = 1  #: killed by a signal, never started, or ended with its launcher
    LOST = 2  #: lost or frozen, or ended in an unknown way
    GUARD = 3  #: killed by its guard at the deadline
    CODE = 4  #: exited by itself
    ZERO = 5  #: exited with 0, but before the ranks that blame a peer for their own end
    MIXED = 6  #: exited by itself and blames a peer, but something else went wrong first
    STOPPED = 7  #: our stop had reached it, but its own trouble had begun before
    VICTIM = 8  #: exited by itself and blames a peer first
    FOLLOWED = 9  #: exited with 0: such an end is more often a consequence than a cause
    OTHER = 10


_GRADE = {
    CauseKind.OOM: Grade.OOM,
    CauseKind.SIGNALLED: Grade.HIT,
    CauseKind.SPAWN: Grade.HIT,
    CauseKind.AGENT: Grade.HIT,
    CauseKind.STOPPED: Grade.LOST,
    CauseKind.LOST: Grade.LOST,
    CauseKind.UNCLEAN: Grade.GUARD,
    CauseKind.LEADER: Grade.GUARD,  # its guard killed it at the deadline, which broke the neighbours' connections
    CauseKind.EXITED: Grade.CODE,
    CauseKind.DIED: Grade.CODE,
}
#: Verdicts on processes that were still running. The stop that follows ends them, so their ends explain nothing.
_VERDICTS = (CauseKind.HEALTH, CauseKind.HANG, CauseKind.STALL, CauseKind.TIMEOUT)
_BY_ITSELF = (CauseKind.EXITED, CauseKind.DIED)  #: a process exited by itself, or nobody knows how it ended
_TIMED = (*_BY_ITSELF, CauseKind.SIGNALLED, CauseKind.OOM)  #: ends of processes, whose time is known
#: Exit codes of signals that a process raises itself. An abort by a collective's watchdog may be a neighbour's fault.
_FROM_WITHIN = frozenset(
    128 + number
    for number in (
        *(signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL),
        *(signal.SIGFPE, signal.SIGTRAP, signal.SIGSYS),
    )
)

#: How engines say that a peer is gone: messages of the kernel, Python, gloo, NCCL, torch and the reference engine.
_PEER = re.compile(
    r"""connection\ (?:was\ |is\ )?(?:likely\ )?(?:reset|closed|lost|aborted|broken|dropped)\b | broken\ pipe
    | connection(?:reset|aborted)error | brokenpipeerror
    | (?:reset|closed|shut\ down|shutdown|hung\ up)\ by\ (?:the\ )?(?:remote\ )?peer
    | \bremote\ (?:process|peer|rank|host|end|side|node)\b.{0,40}\b(?:exit|clos|gone|lost|died|dead|disconnect)
    | \bpeers?\b.{0,40}\b(?:gone|lost|died|dead|failed|exited|closed|disconnect|unreachable|left)
    | \b(?:lost|losing)\b.{0,24}\b(?:rank|peer|worker|connection|neighbou?r|node)s?\b
    | \brank\ ?\d+\b.{0,24}\b(?:is\ gone|gone|lost|died|dead|disconnected|exited|unreachable|failed)\b
    | \bto\ rank\ \d+:\ (?:broken|connection)
    | ncclremoteerror | socket\ (?:was\ )?closed | end\ of\ file\ from | unexpected\ eof | store.{0,40}shut\ ?down
    """,
    re.IGNORECASE | re.VERBOSE,
)
#: Matches a line that reports an error. A log level alone ("ERROR 11-28") is no evidence; a traceback's last line is.
_RAISED = re.compile(r"(?:Error|Exception|Interrupt)\b")
_TROUBLE = (
    *("fatal", "panic", "segfault", "assert failed", "assertion failed", "core dumped", "aborted", "killed"),
    *("out of memory", "illegal instruction", "bus error"),
)
#: Every line that blames a peer contains one of these in lower case. They are a fast filter: _PEER is slow and
#: tracebacks are long.
_HINTS = ("connection", "pipe", "peer", "remote", "lost", "losing", "rank", "socket", "end of file", "eof", "shut")
_BEGUN = "Traceback (most recent call last)"
_RANK = re.compile(r"\brank[ =#]?(\d+)\b", re.IGNORECASE)
_ADDRESS = re.compile(r"[0-9a-fA-F:.]*[0-9a-fA-F]+[:.][0-9a-fA-F:.]*[0-9a-fA-F]")


def blames_peer(line: str) -> bool:
    """Whether a line says that a peer is gone."""
    lower = line.lower()
    return any(hint in lower for hint in _HINTS) and _PEER.search(line) is not None


def is_trouble(line: str) -> bool:
    """Whether a line says that something went wrong."""
    lower = line.lower()
    return _RAISED.search(line) is not None or any(word in lower for word in _TROUBLE)


def blame(tail: Sequence[str]) -> Blame:
    """Whether the last lines report a lost peer, and whether anything else went wrong before it."""
    trouble = False
    for line in tail:
        if blames_peer(line):
            return Blame.AFTER if trouble else Blame.FIRST
        trouble = trouble or is_trouble(line)
    return Blame.NONE


def in_trouble(tail: Sequence[str]) -> bool:
    """Whether these lines show trouble of the process's own, before any lost peer."""
    own = any(_BEGUN in line or is_trouble(line) for line in tail)
    return own and blame(tail) is not Blame.FIRST


def named(tail: Sequence[str], own: int, addresses: Mapping[str, int]) -> frozenset[int]:
    """Ranks named, by address or by number, in the lines that blame a peer; ``own`` is the speaker's rank."""
    found = set()
    for line in filter(blames_peer, tail):
        found |= {int(number) for number in _RANK.findall(line)}
        for word in _ADDRESS.findall(line):
            host = word if word in addresses else word.rpartition(":")[0]
            if host in addresses:
                found.add(addresses[host])
    return frozenset(found - {own})


@dataclass(frozen=True)
class RankEnd:
    """How a rank's process or launcher ended, between ``since`` and ``until`` on the leader's clock."""

    cause: Cause
    since: float
    until: float
    told: bool = False  #: our own stop had reached it before it ended

    @property
    def rank(self) -> int:
        return self.cause.rank

    @property
    def timed(self) -> bool:
        return self.cause.kind in _TIMED

    @property
    def own_lines(self) -> tuple[str, ...]:
        """The last lines from before it was told to stop."""
        tail = self.cause.tail
        return tail[: tail.index(TOLD_TO_STOP)] if TOLD_TO_STOP in tail else tail

    @property
    def grade(self) -> Grade:
        cause, grade = self.cause, _GRADE.get(self.cause.kind, Grade.OTHER)
        if self.told:
            return Grade.STOPPED if cause.code and in_trouble(self.own_lines) else Grade.OTHER
        if cause.kind is CauseKind.DIED and cause.code is None:
            return Grade.LOST  # possibly killed by a signal: only an older kernel cannot tell
        if grade is Grade.CODE and cause.code == 0:
            return Grade.FOLLOWED
        if grade is Grade.CODE or (cause.kind is CauseKind.SIGNALLED and cause.code in _FROM_WITHIN):
            blames = blame(self.own_lines)
            return (grade, Grade.MIXED, Grade.VICTIM)[blames]
        return grade


class Ends:
    """All ends of one epoch that the leader has heard of."""

    def __init__(self, addresses: Mapping[str, int]) -> None:
        self.addresses = dict(addresses)  #: member address -> rank; an address that two ranks share is useless
        self.all: list[RankEnd] = []
        self._grades: list[Grade] = []  # of `all`, cached: a grade takes a scan of all the end's lines
        self._count: dict[int, int] = {}
        self.heard_at: float | None = None  #: when the first end was heard
        self._decided_at: float | None = None  # when a verdict on running processes was heard, and the stop began

    def add(self, end: RankEnd, now: float) -> None:
        """Record an end that was heard ``now``."""
        if self.heard_at is None and not end.told:
            self.heard_at = now
        if self._decided_at is None and end.cause.kind in _VERDICTS:
            self._decided_at = now
        self._count[end.rank] = self._count.get(end.rank, 0) + 1
        if self._count[end.rank] <= MOST_PER_RANK:
            self.all.append(end)
            self._grades.append(end.grade)

    def lost(self, rank: int) -> bool:
        """Whether a rank's launcher was lost and nobody knows how."""
        return any(end.rank == rank and end.cause.kind is CauseKind.LOST for end in self.all)

    def explain(self, rank: int, died: Cause) -> None:
        """Replace "lost" by how that rank's launcher really died."""
        for at, end in enumerate(self.all):
            if end.rank == rank and end.cause.kind is CauseKind.LOST:
                self.all[at] = replace(end, cause=replace(died, tail=died.tail or end.cause.tail))
                self._grades[at] = self.all[at].grade

    @property
    def of_each_rank(self) -> tuple[RankEnd, ...]:
        """One end of each rank, the one that explains the most. For people."""
        best: dict[int, tuple[Grade, RankEnd]] = {}
        for grade, end in zip(self._grades, self.all, strict=True):
            if end.rank not in best or grade < best[end.rank][0]:
                best[end.rank] = grade, end
        return tuple(best[rank][1] for rank in sorted(best)[:MOST_KEPT])

    def judge(self) -> Cause:
        """The first end, as far as the evidence goes."""
        assert self.all and self.heard_at is not None
        last = self.heard_at + WINDOW
        grades = {id(end): grade for end, grade in zip(self.all, self._grades, strict=True)}
        found = [end for end in self.all if grades[id(end)] is not Grade.OTHER or not end.told]
        found = self._before_the_verdict(_without_followers(found), grades)
        found = [end for end in found if end.since <= last or end.told] or found
        victims = [end.until for end in found if grades[id(end)] is Grade.VICTIM]
        for end in found:  # a rank that exited with 0 before the first one that blames a peer was that peer
            zero = end.cause.kind is CauseKind.EXITED and grades[id(end)] is Grade.FOLLOWED
            if zero and victims and end.since <= min(victims):
                grades[id(end)] = Grade.ZERO
        first = min(found, key=lambda end: (grades[id(end)], end.until))  # a tie goes to the one heard first
        rivals = self._beside(first, [end for end in found if grades[id(end)] is grades[id(first)]])
        first, *rivals = self._named([first, *rivals])
        rivals += _against(first, found, grades)
        silent = _silently_before(first, found, grades)
        if silent and first.rank not in self._names:
            first, *rivals = _earliest_first(first, rivals, silent)
        return self._in_words(first, [end for end in rivals if end.rank != first.rank])

    def _before_the_verdict(self, found: list[RankEnd], grades: Mapping[int, Grade]) -> list[RankEnd]:
        """After a verdict on running processes, leave out the ends that our own stop caused on other ranks.

        A stop reaches one rank after another, and a process that loses its neighbour may end before our TERM arrives.
        An end that only may have preceded the verdict counts if it was hit from outside or shows trouble of its own.
        """
        decided = self._decided_at
        if decided is None:
            return found

        def led_to_it(end: RankEnd) -> bool:
            if end.cause.kind in _VERDICTS:
                return True
            if end.told:
                return False  # whatever trouble it had, the verdict came first
            if end.until <= decided:
                return True
            grade = grades[id(end)]
            own = grade <= Grade.GUARD or (grade is Grade.CODE and in_trouble(end.own_lines))
            return end.since <= decided and own

        return [end for end in found if led_to_it(end)]

    def _beside(self, first: RankEnd, equals: list[RankEnd]) -> list[RankEnd]:
        """Ends of the same grade on other ranks that may have been earlier."""
        return [
            end for end in equals if end.timed and first.timed and end.rank != first.rank and end.since <= first.until
        ]

    def _named(self, candidates: list[RankEnd]) -> list[RankEnd]:
        """The candidates that another rank's last lines name, or all if none is named. The likeliest comes first."""
        if len(candidates) > 1:
            names = self._names
            chosen = [end for end in candidates if end.rank in names]
            # An observer without CPU time was most likely woken by the end itself, so the end is nearer to `since`.
            candidates = sorted(chosen or candidates, key=lambda end: end.since)
            candidates = [candidates[0], *self._beside(candidates[0], candidates[1:])]
        return candidates

    @property
    def _names(self) -> frozenset[int]:
        """Ranks that another rank's last lines blame."""
        return frozenset().union(*(named(e.own_lines, e.rank, self.addresses) for e in self.all))

    def _in_words(self, first: RankEnd, rivals: list[RankEnd]) -> Cause:
        """The cause, with the other candidates and the ranks that ended because of it."""
        others: dict[int, RankEnd] = {}
        for end in self.all:
            if end.rank != first.rank and not end.told:
                others.setdefault(end.rank, end)
        because = [in_a_line(others[rank]) for rank in sorted(others)[:MOST_BECAUSE]]
        if len(others) > MOST_BECAUSE:
            because.append(f"and {len(others) - MOST_BECAUSE} more")
        ranks = tuple(dict.fromkeys(end.rank for end in rivals))[:MOST_BECAUSE]
        cause = replace(first.cause, rivals=ranks, because=tuple(because))
        shown = next((end for end in rivals if end.cause.tail), None)
        if shown is not None:
            header = f"it may have been {shown.cause}; its last lines:"
            cause = replace(cause, tail=(*cause.tail[-BOTH_LINES:], header, *shown.cause.tail[-BOTH_LINES:]))
        return cause


def in_a_line(end: RankEnd) -> str:
    """A rank's end and the line of its output that explains it best."""
    peer = next((line for line in reversed(end.own_lines) if blames_peer(line)), "")
    word = peer or (end.cause.tail[-1] if end.cause.tail else "")
    text = f"{replace(end.cause, rivals=())}"
    return f"{text[:120]}{SAYING}{word.strip()[:66]}" if word else text[:LONGEST_LINE]


def _without_followers(heard: Sequence[RankEnd]) -> list[RankEnd]:
    """Drop the ends that an earlier end of the same rank explains better.

    These are a lost launcher that had already reported why its engine ended and left to start over, and a process that
    ended in an unknown way after another had exited: its root may have exited first and taken it along.
    """
    kept: list[RankEnd] = []
    before: dict[int, list[Cause]] = {}
    for end in heard:
        own, cause = before.setdefault(end.rank, []), end.cause
        left = cause.kind is CauseKind.LOST and any(c.kind not in _BY_ITSELF for c in own)
        unknown = cause.kind is CauseKind.DIED and cause.code is None
        if not left and not (unknown and any(c.kind is CauseKind.EXITED for c in own)):
            kept.append(end)
        own.append(cause)
    return kept


def _silently_before(first: RankEnd, found: Sequence[RankEnd], grades: Mapping[int, Grade]) -> list[RankEnd]:
    """Exits with 0 that may have preceded ``first``, if that is an exit with a code that shows no trouble of its own.

    An engine may exit with 0 unexpectedly and so make its neighbours exit with a code. They say so if they print
    anything at all; with silent engines nobody knows.
    """
    if grades[id(first)] is not Grade.CODE or in_trouble(first.own_lines):
        return []
    zeros = [e for e in found if e.cause.kind is CauseKind.EXITED and grades[id(e)] in (Grade.ZERO, Grade.FOLLOWED)]
    return sorted((e for e in zeros if e.since <= first.until), key=lambda e: e.since)


def _earliest_first(first: RankEnd, rivals: list[RankEnd], silent: list[RankEnd]) -> list[RankEnd]:
    """The likeliest first. An exit with 0 comes first only if its whole interval is earlier: most are consequences."""
    earliest, *others = silent
    if earliest.since < first.since and earliest.until < first.until:
        return [earliest, first, *rivals, *others]
    return [first, *rivals, *silent]


def _against(first: RankEnd, found: Sequence[RankEnd], grades: Mapping[int, Grade]) -> list[RankEnd]:
    """The earliest end of weaker evidence that certainly preceded ``first``: the evidence points both ways."""
    if grades[id(first)] is Grade.STOPPED:
        return sorted((e for e in found if not e.told), key=lambda e: e.until)[:1]
    doubtful = {Grade.HIT: (Grade.CODE,), Grade.CODE: (Grade.MIXED,), Grade.MIXED: (Grade.VICTIM,)}
    lower = doubtful.get(grades[id(first)], ()) if first.timed else ()
    before = [e for e in found if grades[id(e)] in lower and e.timed and e.until < first.since]
    return sorted(before, key=lambda e: e.until)[:1]
