"""Process helpers: log, exit, rename, leave a daemon."""

from __future__ import annotations

import os
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def log(rank: int, line: str) -> None:
    """Write one line to standard output in a single write."""
    try:
        os.write(1, f"reference rank {rank}: {line}\n".encode("utf-8", "backslashreplace"))
    except OSError:
        return  # nobody reads the output any more; a server goes on


def end(code: int) -> NoReturn:
    """Exit at once, without the interpreter's cleanup."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def rename(title: str) -> None:
    """Set the process's name and command line to ``title`` and wipe the environment that the kernel shows.

    Workers of real engines do this with setproctitle, which overwrites the environment: a search for an epoch's
    processes by command line or by a variable in /proc/PID/environ finds nothing.
    """
    try:
        with open("/proc/self/comm", "w") as comm:
            comm.write(title[:15])
        with open("/proc/self/stat") as stat:
            numbers = stat.read().rpartition(")")[2].split()
        arg_start, arg_end, env_start, env_end = (int(n) for n in numbers[45:49])  # fields 48 to 51 of proc(5)
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            for start, stop, text in ((env_start, env_end, b""), (arg_start, arg_end, title.encode())):
                memory.seek(start)
                memory.write(text[: stop - start - 1].ljust(stop - start, b"\0"))
    except (OSError, ValueError):
        return  # not supported or not allowed by the kernel: keep the name


def leave_daemon(title: str) -> int:
    """Fork a daemon into its own session and return its pid. It ignores SIGTERM."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        os.waitpid(child, 0)
        pid = int(os.read(reader, 16))
        os.close(reader)
        return pid
    os.setsid()
    daemon = os.fork()
    if daemon:
        os.write(writer, b"%d" % daemon)
        os._exit(0)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.closerange(3, 4096)  # close the rank's sockets, keep its output
    rename(title)
    while True:
        time.sleep(3600)
