"""Notices at once when a process deep in the engine's tree exits that the engine cannot serve without.

The guard reaps what it started itself. A worker's worker is reaped by the engine, which may take ten seconds to notice
or may never. A pidfd becomes readable the moment its process exits, whoever its parent is. Engines name the processes
that count (``Process.vital``); others, such as compile workers, may come and go.

How a process ended tells whether it was killed itself or went down with another. Since Linux 6.15, PIDFD_GET_INFO says
so even after the parent has reaped it. Older kernels show it in /proc while the process is a zombie, which may be too
short to be seen: then the cause stays unknown. (waitid(P_PIDFD) works for one's own children only; the guard alone has
any, and orphans become its children.)

A process and its parent often end together, in either order. Either the process was killed, and its parent noticed
within a millisecond and exits too; or the parent ended first and took it along, by a signal or by PR_SET_PDEATHSIG. In
the second case the guard reaps it as an orphan and reports that.

A helper that a process of the engine forks bears its name until it has exec'd: ``process_titles`` leaves it out. An
exit with 0 is no evidence while the parent runs on: the parent is the first to miss a worker that the engine needs.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import select
import signal
import struct
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from launcher.node import tree
from launcher.node.process_titles import Titles
from launcher.node.tree import Key, Proc, ending

NO_PIDFD = -1
HOLD = 0.1  #: seconds in which a better word than ours may come: the guard's, or a stop
#: They ask a process to end: an engine that goes down sends them to its own.
ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
#: include/uapi/linux/pidfd.h: _IOWR(0xFF, 11, struct pidfd_info), its first 64 bytes; the exit code is the last word.
PIDFD_GET_INFO, PIDFD_INFO_EXIT, INFO_BYTES, EXIT_CODE_AT = 0xC040FF0B, 1 << 3, 64, 60


@dataclass(frozen=True)
class End:
    """How a watched process ended. ``status``: what wait(2) would tell; None: unknown.

    ``along``: its parent took it along, or may have done so. ``age``: seconds since it ended, at least.
    ``parent_lives``: the process of the engine that started it runs on.
    """

    pid: int
    name: str
    status: int | None
    along: bool
    age: float
    parent_lives: bool = False

    @property
    def killed(self) -> bool:
        """By a signal, and not by one that asks."""
        return was_killed(self.status)


def was_killed(status: int | None) -> bool:
    """Whether a wait status tells of a signal that does not ask."""
    return status is not None and os.WIFSIGNALED(status) and os.WTERMSIG(status) not in ASKING


class _Watched:
    """One process; ``parent`` as it was when it was last seen: its pid, and its key if it is one of the engine's."""

    def __init__(self, fd: int, name: str, stack: int, parent: int, parent_key: Key | None) -> None:
        self.fd, self.name, self.stack, self.parent, self.parent_key = fd, name, stack, parent, parent_key
        self.ending_since: float | None = None
        self.reaped_by_guard = False


class Vital:
    """Watches processes by pidfd. ``ended`` is called once for each that ends while it is watched.

    ``roots`` gives the pids of the processes that the guard started for the engine and that have not been reaped.
    """

    def __init__(self, ended: Callable[[End], None], roots: Callable[[], Iterable[int]]) -> None:
        self._ended = ended
        self._roots = roots
        self.polls = False  #: there is no pidfd here: ends are noticed by the next look at the tree
        self._titles = Titles()
        self._watched: dict[Key, _Watched] = {}
        self._held: dict[int, tuple[End, float, asyncio.TimerHandle, Key | None]] = {}

    def see(self, procs: Iterable[Proc], names: Sequence[str]) -> None:
        """A look at the tree, parents before children: those that have named themselves so are watched from now on.

        What is watched stays watched when it takes another name; not when it became another program.
        """
        procs, prefixes = tuple(procs), tuple(names)
        keys = {p.pid: p.key for p in procs}
        own = self._titles.own(procs, names, self._roots()) if names else {}
        if self.polls:
            there = {p.key for p in procs if not p.gone}
            for key in [k for k, one in self._watched.items() if one.fd == NO_PIDFD and k not in there]:
                self._gone(key)
        for p in procs:
            one = self._watched.get(p.key)
            if one is None:
                if p.key in own:
                    self._watch(p, own[p.key], keys.get(p.ppid))
                continue
            one.parent, one.parent_key, one.name = p.ppid, keys.get(p.ppid), own.get(p.key, one.name)
            has_execed = 0 not in (one.stack, p.stack) and one.stack != p.stack
            if has_execed and names and not p.gone and not p.comm.startswith(prefixes):
                self._close(p.key)

    def _watch(self, p: Proc, title: str, parent_key: Key | None) -> None:
        try:
            fd = os.pidfd_open(p.pid)
        except ProcessLookupError:
            return
        except (OSError, AttributeError):
            # gVisor, a kernel before 5.3, or a Python that was built without (python-build-standalone was).
            fd, self.polls = NO_PIDFD, True
        if tree.start_time(p.pid) != p.start_time:  # the pid was given out anew since the scan
            _close(fd)
            return
        self._watched[p.key] = _Watched(fd, title, p.stack, p.ppid, parent_key)
        if fd != NO_PIDFD:
            asyncio.get_running_loop().add_reader(fd, self._gone, p.key)

    def forget(self) -> None:
        """The engine is being stopped: ends mean nothing from now on.

        Those that came before are told, also of processes that have begun to end and are not done with it: to give back
        a GPU's memory may take them seconds, and their neighbours' connections broke long before.
        """
        for key, one in list(self._watched.items()):
            if _over(one.fd, key):
                self._gone(key)
            elif ending(key[0]):
                one.ending_since = one.ending_since or time.monotonic()  # a stop may be ordered twice
            else:
                self._close(key)
        for pid in [pid for pid, (end, *_) in self._held.items() if end.status == 0]:
            self._tell(pid, along=True)
        self._titles = Titles()

    def settle(self) -> None:
        """Nothing of the engine is left, and all of the guard's words are heard: what is still held is told."""
        for key, one in list(self._watched.items()):
            if _over(one.fd, key):
                self._gone(key)
            else:
                self._close(key)
        for pid in list(self._held):
            self._tell(pid, along=False)

    def orphaned(self, pid: int) -> None:
        """The guard has reaped it: its parent was gone before."""
        if pid in self._held:
            self._tell(pid, along=True)
        for key, one in self._watched.items():
            one.reaped_by_guard |= key[0] == pid  # the guard was faster than our own look

    def _gone(self, key: Key) -> None:
        one = self._watched[key]
        since, status = one.ending_since, _how(one.fd, key[0])
        self._close(key)
        now = time.monotonic()
        orphan = ending(one.parent)
        along = orphan or any(ending(root) for root in self._roots())
        end = End(key[0], one.name, status, along, 0.0 if since is None else now - since)
        if status == 0 and not along:
            pass  # it ended in good order, and hardly for itself: a better word may be on its way
        elif status is not None and not end.killed:
            self._ended(end)
            return
        elif not orphan or one.reaped_by_guard:
            self._ended(replace(end, along=orphan))
            return
        timer = asyncio.get_running_loop().call_later(HOLD, self._tell, key[0], False)
        self._held[key[0]] = (end, now, timer, one.parent_key)

    def _tell(self, pid: int, along: bool) -> None:
        end, since, timer, parent = self._held.pop(pid)
        timer.cancel()
        parent_lives = parent is not None and tree.start_time(parent[0]) == parent[1] and not ending(parent[0])
        age = end.age + time.monotonic() - since
        self._ended(replace(end, along=along, age=age, parent_lives=parent_lives))

    def _close(self, key: Key) -> None:
        fd = self._watched.pop(key).fd
        if fd != NO_PIDFD:
            asyncio.get_running_loop().remove_reader(fd)
        _close(fd)


def _close(fd: int) -> None:
    if fd != NO_PIDFD:
        os.close(fd)


def _over(fd: int, key: Key) -> bool:
    if fd == NO_PIDFD:
        return tree.start_time(key[0]) != key[1] or _zombie(key[0]) is not None
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _how(fd: int, pid: int) -> int | None:
    """The wait status of a process that has ended. It may be reaped between two looks, so the first is tried again."""
    told = told_by_pidfd(fd)
    if told is None:
        told = _zombie(pid)
    return told_by_pidfd(fd) if told is None else told


def told_by_pidfd(fd: int) -> int | None:
    """What the kernel keeps with the pidfd once the process is reaped."""
    if fd == NO_PIDFD:
        return None
    info = bytearray(INFO_BYTES)
    struct.pack_into("Q", info, 0, PIDFD_INFO_EXIT)
    try:
        fcntl.ioctl(fd, PIDFD_GET_INFO, info)
    except OSError:  # a kernel before 6.13, or one before 6.15 of a process that is gone
        return None
    (told,) = struct.unpack_from("Q", info)
    return struct.unpack_from("i", info, EXIT_CODE_AT)[0] if told & PIDFD_INFO_EXIT else None


def _zombie(pid: int) -> int | None:
    """The wait status of a zombie: the last field of its stat line (proc_pid_stat(5), exit_code)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return int(fields[-1]) if fields[:1] == [b"Z"] else None
