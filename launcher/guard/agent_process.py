"""The guard's side of the agent: its process, its socket, and what is known of its predecessors."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

from launcher.common.text import signal_name
from launcher.guard import children
from launcher.guard.channel import BadFrame, Frames, Handoff, Report, encode
from launcher.node import tree

#: Bytes of reports that may wait for the agent; beyond the first, output is dropped; beyond the second, signals too.
OUTPUT_BOUND, SIGNAL_BOUND = 1 << 20, 4 << 20
#: An agent that dies within so many seconds of its start counts as quick; so many in a row end the guard.
QUICK, QUICK_DEATHS = 1.0, 5
#: The newest predecessors that an agent is told of.
MOST_REPLACED = 64
#: Exit code for a bug of ours (``errors.ExitCode``; the enum is too heavy for the guard).
SOFTWARE = 70


class AgentProcess:
    """The guard's side of the agent: its process, its socket, and what is known of its former lives."""

    def __init__(self, main: Callable[[int], int], poll: select.poll) -> None:
        self.pid: int | None = None
        self.fd = -1
        self.code = 0  #: how the last one ended: its exit code, or 128 + the signal
        self.restarts = False  #: whether one that a signal killed is followed by another
        self.replaces: list[str] = []
        self.last_epoch = ""
        self.handoff: Handoff | None = None
        self.restart_at: float | None = None
        self.quick_deaths = 0
        self.last_death = ""
        self.heard_at = 0.0
        self.dropped = 0  #: bytes of output that it was not told
        self._main = main
        self._poll = poll
        self._started_at = 0.0
        self._unsent = bytearray()
        self._frames = Frames()

    def start(self) -> None:
        """Fork it. It gets a session of its own, so that Ctrl-C and Ctrl-Z at a terminal reach only the guard."""
        import _socket

        ours, theirs = (end.detach() for end in _socket.socketpair())
        try:
            pid = children.fork()
        except OSError:
            os.close(ours)
            os.close(theirs)
            raise
        if pid == 0:
            self._live(theirs)
        os.close(theirs)
        os.set_blocking(ours, False)
        self.pid, self.fd = pid, ours
        self.restart_at = None
        self.handoff = None
        self.dropped = 0
        self._unsent, self._frames = bytearray(), Frames()
        self._started_at = self.heard_at = time.monotonic()
        self._poll.register(ours, select.POLLIN)

    def _live(self, fd: int) -> NoReturn:
        code = SOFTWARE
        try:
            os.setsid()
            for other in map(int, os.listdir("/proc/self/fd")):
                if other > 2 and other != fd:
                    with contextlib.suppress(OSError):  # the one that listed them
                        os.close(other)
            for number in (signal.SIGPIPE, signal.SIGXFSZ):  # as every Python program expects
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            _set_variable("LAUNCHER_PREVIOUS_AGENT", self.last_death)
            _set_variable("LAUNCHER_REPLACES", ",".join(self.replaces[-MOST_REPLACED:]))
            _set_variable("LAUNCHER_LAST_EPOCH", self.last_epoch)
            code = self._main(fd)
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(AttributeError, OSError, ValueError):  # None, broken or closed
                    stream.flush()
            os._exit(code & 0xFF)

    def ended(self, status: int) -> bool:
        """It was reaped. Whether a signal ended it."""
        lived = time.monotonic() - self._started_at
        self._close()
        pid, self.pid = self.pid, None
        if not os.WIFSIGNALED(status):
            self.code = os.WEXITSTATUS(status)
            return False
        number = os.WTERMSIG(status)
        self.code = 128 + number
        self.last_death = f"killed by signal {number} ({signal_name(number)}) {lived:.1f} s after its start, pid {pid}"
        self.quick_deaths = self.quick_deaths + 1 if lived < QUICK else 0
        return True

    @property
    def backoff(self) -> float:
        """Seconds before the next start: none after a life of some length, then 0.1, 0.2, 0.4, 0.8."""
        return 0.1 * 2 ** (self.quick_deaths - 1) if self.quick_deaths else 0.0

    @property
    def has_room(self) -> bool:
        return self.fd >= 0 and len(self._unsent) < OUTPUT_BOUND // 2

    def report(self, report: Report, bound: int | None = None) -> bool:
        """Queue a report, or drop it when more than ``bound`` bytes wait already and return False. Never blocks."""
        if self.fd < 0:
            return True
        if bound is not None and len(self._unsent) > bound:
            return False
        waited = bool(self._unsent)
        self._unsent += encode(report)
        if not waited:
            self.flush()
        return True

    def flush(self) -> None:
        """Write what the socket takes, and have the loop come back for the rest."""
        try:
            while self._unsent and self.fd >= 0:
                del self._unsent[: os.write(self.fd, bytes(self._unsent[: 1 << 16]))]
        except BlockingIOError:
            pass
        except OSError:  # it closed its end, or died and is about to be reaped
            self._unsent.clear()
        if self.fd >= 0:
            self._poll.modify(self.fd, select.POLLIN | (select.POLLOUT if self._unsent else 0))

    def receive(self) -> list[Any]:
        """The orders that have arrived. An agent that talks nonsense is killed, and dealt with when it is reaped."""
        orders: list[Any] = []
        while self.fd >= 0:
            try:
                data = os.read(self.fd, 1 << 16)
            except BlockingIOError:
                break
            except ConnectionResetError:
                data = b""
            if not data:  # it exits, or has closed its end and works on in silence: the lease holds it
                self._close()
                break
            self.heard_at = time.monotonic()
            try:
                orders += self._frames.feed(data)
            except BadFrame:
                self._close()
                if self.pid is not None:
                    tree.send(self.pid, signal.SIGKILL)
        return orders

    @property
    def unread(self) -> bool:
        """Whether something was sent that it has not read: here, or in the kernel's buffer."""
        if self._unsent or self.fd < 0:
            return True
        import fcntl
        import struct
        import termios

        try:
            (waiting,) = struct.unpack("i", fcntl.ioctl(self.fd, termios.TIOCOUTQ, b"\0\0\0\0"))
        except OSError:  # a kernel that cannot say: its silence has to do
            return True
        return bool(waiting)

    def _close(self) -> None:
        if self.fd >= 0:
            self._poll.unregister(self.fd)
            os.close(self.fd)
            self.fd = -1


def _set_variable(name: str, value: str) -> None:
    """Set a variable for the agent. One that the launcher itself inherited means nothing and is removed."""
    if value:
        os.environ[name] = value
    else:
        os.environ.pop(name, None)
