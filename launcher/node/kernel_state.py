"""What the kernel says that a process is doing, and how it is kept from leaving a core. Needs no ptrace.

Everything here is a guess where a kernel keeps it to itself (gVisor, hidepid, Yama): then it is empty. The guard
imports this when it examines an engine, so only the interpreter's own modules may enter.
"""

from __future__ import annotations

import contextlib
import os
import stat

from launcher.node.tree import PROC, beginning

MOST_APPENDED = 1 << 18  #: bytes
LONGEST = 100  #: characters of a title or of the kernel's words


def title(pid: int, comm: str, proc: str = PROC) -> str:
    """What a process calls itself: a title that it has written over its arguments (setproctitle), else ``comm``."""
    words = [word for word in beginning(f"{proc}/{pid}/cmdline").split(b"\0") if word]
    if len(words) != 1 or b"/" in words[0]:
        return comm
    return words[0].decode("utf-8", "replace").strip()[:LONGEST] or comm


def wchan(pid: int, proc: str = PROC) -> str:
    """The function of the kernel in which its main thread sleeps; empty where it does not, or nobody may know."""
    found = beginning(f"{proc}/{pid}/wchan").decode("ascii", "replace").strip()
    return "" if found == "0" else found[:LONGEST]


def syscall(pid: int, proc: str = PROC) -> str:
    """The number of the system call that its main thread is in, or ``running``; empty where nobody may know."""
    words = beginning(f"{proc}/{pid}/syscall").decode("ascii", "replace").split()
    return words[0][:LONGEST] if words else ""


def stderr_file(pid: int, proc: str = PROC) -> tuple[int, int] | None:
    """A process's standard error if it is a file: a descriptor to read it, and how long it is now."""
    try:
        fd = os.open(f"{proc}/{pid}/fd/2", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return None
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        os.close(fd)
        return None
    return fd, found.st_size


def appended(fd: int, since: int) -> str:
    """What a file has had added. Closes the descriptor."""
    try:
        return os.pread(fd, MOST_APPENDED, since).decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(fd)


def forbid_core(pid: int, proc: str = PROC) -> bool:
    """See to it that an abort of this process writes no core. False: it might, so it must not be aborted.

    A limit of 1 byte is the one that a core_pattern with a pipe heeds, too (core(5)); where the hard limit is 0 such a
    pipe gets a core all the same, which the filter leaves next to nothing of.
    """
    import resource

    filtered = False
    with contextlib.suppress(OSError), open(f"{proc}/{pid}/coredump_filter", "w") as file:
        file.write("0")
        filtered = True
    try:
        _, hard = resource.prlimit(pid, resource.RLIMIT_CORE)
        limit = 1 if hard == resource.RLIM_INFINITY else min(1, hard)
        resource.prlimit(pid, resource.RLIMIT_CORE, (limit, hard))
    except (OSError, ValueError):
        return False
    return limit == 1 or filtered
