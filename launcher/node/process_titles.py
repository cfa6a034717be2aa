"""Tells the engine's own processes from helpers that they fork: who has given itself a name, and who inherited one.

Engines name the processes that they cannot serve without (setproctitle: ``VLLM::Worker_TP0``). A child carries its
parent's name until it execs or names itself, and from fork to exec may pass seconds on a busy machine: a compiler that
a worker starts looks like the worker. So a name counts only where the process must have taken it itself:

- the full title (``/proc/PID/cmdline``; ``comm`` is cut at 15 bytes) is one that none of its ancestors was ever seen
  with. Real workers may be forks that never exec; they name themselves, and a later scan sees it.
- or it has exec'd since the fork. An exec places the stack anew, a fork keeps the parent's (``startstack`` in
  ``/proc/PID/stat``; 0 where the kernel does not show it).

A process whose ancestors are gone when it is first seen may have inherited from any process of the epoch.

Not told apart: a fork whose parent took its latest name between the fork and the first scan of either. Nor is a worker
found that is forked and bears its parent's very title on purpose.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from launcher.node.tree import PROC, Key, Proc, beginning, read

LONGEST = 64  #: bytes of a title that count


class _Seen:
    """What is known of one process: what it was seen with, and what any of its ancestors was."""

    def __init__(self) -> None:
        self.titles: set[str] = set()
        self.stacks: set[int] = set()
        self.titles_above: set[str] = set()
        self.stacks_above: set[int] = set()


class Titles:
    """The titles of one epoch's processes, from scan to scan."""

    def __init__(self, proc: str = PROC) -> None:
        self._proc = proc
        self._seen: dict[Key, _Seen] = {}
        self._all = _Seen()

    def own(self, procs: Sequence[Proc], names: Sequence[str], roots: Iterable[int]) -> dict[Key, str]:
        """The processes that have given themselves a title which begins with one of ``names``, and that title.

        ``procs``: a scan, parents before children. ``roots``: the pids of those whose parent is the guard by rights.
        """
        prefixes = tuple(names)
        kept: dict[Key, _Seen] = {}
        own: dict[Key, str] = {}
        for p, above in self._with_parents(procs, set(roots), kept):
            one = kept[p.key] = self._seen.get(p.key) or _Seen()
            if above is not None:
                one.titles_above |= above.titles | above.titles_above
                one.stacks_above |= above.stacks | above.stacks_above
            one.stacks.add(p.stack)
            self._all.stacks.add(p.stack)
            titled = None if p.gone or not p.comm.startswith(prefixes) else self._title(p, prefixes)
            if titled is None:
                continue
            title, stack = titled
            has_execed = stack != 0 and stack not in one.stacks_above
            if has_execed or title not in one.titles_above:
                own[p.key] = title
            one.titles.add(title)
            self._all.titles.add(title)
        self._seen = kept
        return own

    def _with_parents(
        self, procs: Sequence[Proc], roots: set[int], kept: dict[Key, _Seen]
    ) -> Iterator[tuple[Proc, _Seen | None]]:
        """Each process with what is known of its parent; last come those whose parent is gone and what they started."""
        keys = {p.pid: p.key for p in procs}
        rooted: set[int] = set()
        orphaned = []
        for p in procs:
            if p.pid in roots or p.ppid in rooted:
                rooted.add(p.pid)
                yield p, kept[keys[p.ppid]] if p.ppid in rooted else None
            else:
                orphaned.append(p)
        for p in orphaned:
            if p.ppid in keys and keys[p.ppid] in kept:
                yield p, kept[keys[p.ppid]]
            else:
                yield p, None if p.key in self._seen else self._all

    def _title(self, p: Proc, prefixes: tuple[str, ...]) -> tuple[str, int] | None:
        """The full title and the stack of a process that still bears one of the names; None: look again later."""
        title = _command_line(p.pid, self._proc)
        now = read(p.pid, self._proc)  # after the command line: between two looks it may have exec'd
        if now is None or now.gone or now.key != p.key or not now.comm.startswith(prefixes):
            return None
        if not title and now.state not in "ZX":  # empty in the middle of an exec; also when the main thread has ended
            return None
        return (title if title.startswith(prefixes) else now.comm), now.stack


def _command_line(pid: int, proc: str) -> str:
    return beginning(f"{proc}/{pid}/cmdline", LONGEST).rstrip(b"\0 ").decode("utf-8", "replace")
