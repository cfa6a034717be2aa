"""Process trees as the kernel tells them: who descends from whom, known by (pid, start time), never by name.

An engine renames itself, double-forks, calls setsid, overwrites its command line and environment; what it cannot forge
is its parent, its session and its start time in ``/proc/PID/stat``. The guard is PID 1 or a child subreaper, so what
loses its parent falls to the guard and stays a descendant.

Read by the guard and by the agent. Little may be imported: one scan of a few hundred processes
costs milliseconds, and the guard does many while it kills.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

PROC = "/proc"
PF_EXITING = 0x4  #: of the flags in /proc/PID/stat (include/linux/sched.h)

#: A process for good: pid and start time (clock ticks after boot). A pid alone is reused.
Key = tuple[int, int]


class Proc(NamedTuple):
    """One line of ``/proc/PID/stat``, as far as it matters here (proc_pid_stat(5))."""

    pid: int
    ppid: int
    group: int  #: process group
    session: int
    start_time: int  #: clock ticks after boot
    state: str  #: R S D T t Z X I
    comm: str  #: at most 15 bytes, and the process may write what it likes: for people only
    ticks: int = 0  #: CPU time used, user and system, in clock ticks
    threads: int = 1
    stack: int = 0  #: where its stack begins: kept by a fork, placed anew by an exec; 0 where that is not shown

    @property
    def key(self) -> Key:
        return (self.pid, self.start_time)

    @property
    def gone(self) -> bool:
        """A zombie that only waits to be reaped. One whose main thread ended but whose others run is not gone."""
        return self.state in "ZXx" and self.threads <= 1

    @property
    def stopped(self) -> bool:
        """Stopped by a signal (T). Not one that a debugger holds (t): CONT would not move it."""
        return self.state == "T"


class Table(NamedTuple):
    """All processes of one scan. A scan is not atomic; ``torn`` says that this one may have missed something."""

    procs: Mapping[int, Proc]
    torn: bool = False

    def below(self, roots: Iterable[int]) -> tuple[Proc, ...]:
        """What descends from the pids in ``roots``, parents before children, the roots themselves left out."""
        children: dict[int, list[Proc]] = {}
        for proc in self.procs.values():
            children.setdefault(proc.ppid, []).append(proc)
        found: dict[int, Proc] = {}
        waiting = list(roots)
        for pid in waiting:  # grows while it is walked
            for child in children.get(pid, ()):
                if child.pid not in found:
                    found[child.pid] = child
                    waiting.append(child.pid)
        return tuple(found.values())


def descendants(root_pid: int, proc: str = PROC) -> tuple[Proc, ...]:
    """What descends from ``root_pid`` now, parents before children, zombies too, ``root_pid`` itself left out."""
    return scan(proc).below([root_pid])


def start_time(pid: int, proc: str = PROC) -> int | None:
    """When ``pid`` started, in clock ticks after boot; None if there is no such process."""
    found = read(pid, proc)
    return found.start_time if found else None


def scan(proc: str = PROC, tries: int = 3) -> Table:
    """Read every process, again (at most ``tries`` times) when processes came or went under our hands."""
    for _ in range(tries):
        table = _scan_once(proc)
        if not table.torn:
            break
    return table


def _scan_once(proc: str) -> Table:
    procs: dict[int, Proc] = {}
    torn = False
    for entry in os.listdir(proc):
        if entry.isdigit():
            found = read(int(entry), proc)
            if found is None:
                torn = True  # it ended between listing and reading; a child that it had just made is not in the list
            else:
                procs[found.pid] = found
    # A parent that is not in the table ended after its child was read: the child has a new parent by now, and a walk
    # down from that one would miss it. 0 is the kernel, or a parent outside this PID namespace.
    torn = torn or any(p.ppid and p.ppid not in procs for p in procs.values())
    return Table(procs, torn)


def beginning(path: str, most: int = 4096) -> bytes:
    """The first bytes of a file in /proc; none if it cannot be read: its process has ended, or is not ours."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, most)
    except OSError:  # ESRCH: it ended after the open
        return b""
    finally:
        os.close(fd)


def read(pid: int, proc: str = PROC) -> Proc | None:
    """One process, or None if it is not there (any more)."""
    data = beginning(f"{proc}/{pid}/stat")
    # The name stands in parentheses and may hold spaces and parentheses itself: the last one closes it.
    head, _, rest = data.rpartition(b")")
    fields = rest.split()
    if len(fields) < 20:
        return None
    return Proc(
        pid=pid,
        ppid=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        start_time=int(fields[19]),
        state=fields[0].decode("ascii", "replace"),
        comm=head.partition(b"(")[2].decode("utf-8", "replace"),
        ticks=int(fields[11]) + int(fields[12]),
        threads=int(fields[17]),
        stack=int(fields[25]) if len(fields) > 25 else 0,
    )


def ending(pid: int, proc: str = PROC) -> bool:
    """Whether a process has ended, or has begun to: its descriptors are closed before it becomes a zombie."""
    try:
        with open(f"{proc}/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return True
    return fields[0] in (b"Z", b"X") or bool(int(fields[6]) & PF_EXITING)


def kill(victims: Iterable[Proc], table: Table, groups: set[int]) -> None:
    """SIGKILL to every victim of a scan that was made just now.

    First to whole process groups: the kernel delivers that atomically against fork, so a process that forks and ends
    faster than we read cannot slip through between reading and killing. Only groups all of whose members are victims
    count; one that also holds another process is left to the single kills. ``groups`` is the caller's
    memory from one round to the next: a group may be seen once and then live on in members too short-lived to be read.
    """
    doomed = {victim.pid for victim in victims}
    strangers = [p for p in table.procs.values() if p.pid not in doomed and not p.gone]
    groups.update(table.procs[pid].group for pid in doomed)
    groups.difference_update([p.group for p in strangers], [p.pid for p in strangers])
    for group in groups:
        if group > 1:  # -1 would be everybody
            send(-group, signal.SIGKILL)
    for pid in doomed:
        send(pid, signal.SIGKILL)


def chase(is_victim: Callable[[Proc], bool], proc: str = PROC, rounds: int = 20) -> None:
    """SIGKILL to the newest processes, read and killed within microseconds instead of after a whole scan.

    For what forks and ends faster than a scan takes, each time in a new session: by the time a scan could act on it,
    it has another pid. ``/proc/loadavg`` ends with the pid that was given out last.
    """
    for _ in range(rounds):
        try:
            with open(f"{proc}/loadavg", "rb", buffering=0) as file:
                last = int(file.read(128).split()[-1])
        except (OSError, ValueError, IndexError):
            return
        for pid in (last, last - 1):
            found = read(pid, proc)
            if found and not found.gone and is_victim(found) and _is_process(pid, proc):
                send(pid, signal.SIGKILL)


def _is_process(pid: int, proc: str) -> bool:
    """Not a thread. Threads have numbers of the same kind, and a signal to one of the agent's would kill the agent."""
    try:
        with open(f"{proc}/{pid}/status", "rb", buffering=0) as file:
            return b"\nTgid:\t%d\n" % pid in file.read(1024)
    except OSError:
        return False


def descends(child: Proc, root_pid: int, proc: str = PROC) -> bool:
    """Whether one process descends from ``root_pid``, read upwards without a scan."""
    for _ in range(256):
        if child.ppid == root_pid:
            return True
        parent = read(child.ppid, proc) if child.ppid > 1 else None
        if parent is None:
            return False
        child = parent
    return False


def send(pid: int, number: int) -> None:
    """kill(2), for which a process that is gone (or belongs to another user by now) is no error."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def kill_tree_without_guard(
    recorded: Iterable[Key],
    *,
    guard: Key | None = None,
    cookie: str | None = None,
    bound: float = 5.0,
    proc: str = PROC,
) -> tuple[Proc, ...]:
    """Kill what an engine left when the guard was killed or is frozen; the agent's last resort. Blocks up to ``bound``.

    Without a guard, orphans get another parent, so descent alone does not find them. Killed again and again until none
    is left: the ``recorded`` processes, their descendants, the sessions that they lead, descendants of ``guard`` if it
    still exists (it is frozen), and what has ``LAUNCHER_COOKIE=cookie`` in its environment. The caller and the guard
    are spared. Returns what is still there after ``bound`` seconds.

    A process in a new session whose parents are gone and whose environment is overwritten is found only if it was
    recorded: so the agent records snapshots of the tree while the guard lives.
    """
    known = set(recorded)
    groups: set[int] = set()
    until = time.monotonic() + bound
    empty = 0
    pause = 0.001
    while True:
        table = scan(proc)
        if guard and (guard[0] not in table.procs or table.procs[guard[0]].key != guard):
            guard = None  # dead, and its pid may be anybody's
        victims = _orphans(table, known, guard, cookie, proc)
        # A scan is not atomic. But with a frozen guard nobody reaps: what forks and ends unseen leaves new zombies.
        restless = not known.issuperset(victim.key for victim in victims)
        known.update(victim.key for victim in victims)
        alive = tuple(victim for victim in victims if not victim.gone)
        empty = 0 if alive or restless else empty + 1
        if empty >= (5 if table.torn else 2):
            return ()
        kill(alive, table, groups)
        chase(_ours(_leaders(table, known), guard, proc), proc)
        if time.monotonic() > until:
            return alive
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def still_ours(recorded: Iterable[Key], living: Iterable[Proc], proc: str = PROC) -> dict[Key, None]:
    """What of ``recorded`` is still needed to find an engine's processes later, and the ``living`` themselves.

    One that has ended counts while its session has members: its pid is not given out anew before they are gone. After
    that it would be a stranger's.
    """
    ours = {p.key: p.session for p in living}
    sessions = set(ours.values())
    unseen = [key for key in recorded if key not in ours]  # ended, or missed by a scan, which is not atomic
    kept = [(pid, start) for pid, start in unseen if pid in sessions or start_time(pid, proc) == start]
    return dict.fromkeys((*kept, *ours))


def _orphans(table: Table, known: set[Key], guard: Key | None, cookie: str | None, proc: str) -> list[Proc]:
    procs = table.procs
    leaders = _leaders(table, known)
    found = {p.pid for p in procs.values() if p.key in known or p.session in leaders}
    if guard:
        found.update(p.pid for p in table.below([guard[0]]))
    if cookie:
        found.update(pid for pid in procs if _carries(pid, cookie, proc))
    found.update(p.pid for p in table.below(found))
    return [procs[pid] for pid in found - _spared(guard)]


def _leaders(table: Table, known: set[Key]) -> set[int]:
    """Sessions that are ours: a leader's pid is not reused while its session has members, so a dead leader counts."""
    return {pid for pid, _ in known if pid not in table.procs or table.procs[pid].key in known}


def _ours(leaders: set[int], guard: Key | None, proc: str) -> Callable[[Proc], bool]:
    spared = _spared(guard)

    def is_ours(p: Proc) -> bool:
        return p.pid not in spared and (p.session in leaders or (guard is not None and descends(p, guard[0], proc)))

    return is_ours


def _spared(guard: Key | None) -> set[int]:
    return {1, os.getpid(), *(guard or ())[:1]}


def _carries(pid: int, cookie: str, proc: str) -> bool:
    try:
        fd = os.open(f"{proc}/{pid}/environ", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        data = b""
        while chunk := os.read(fd, 1 << 17):
            data += chunk
    except OSError:
        return False
    finally:
        os.close(fd)
    return f"LAUNCHER_COOKIE={cookie}".encode() in data.split(b"\0")
