"""Starting a process as an engine wants it: own session, default signals, two pipes, and the reason if exec fails.

Between fork and exec runs Python, in a process that may have had writer threads (``output``). That is safe as long as
it takes no lock that such a thread can hold: those threads call nothing but ``os.write``, so it is only the allocator's
and the interpreter's own locks, which glibc and CPython put right in the child. Only the main thread forks.
"""

from __future__ import annotations

import codecs
import os
import signal
from collections.abc import Callable
from typing import NoReturn

from launcher.guard import execute
from launcher.guard.channel import Spawn
from launcher.node import tree

#: What is kept of a process's output for the report of its end.
TAIL = 16 << 10

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


class Pipe:
    """The guard's end of one output stream of a process."""

    def __init__(self, fd: int, stream: int) -> None:
        self.fd = fd
        self.stream = stream  #: 1 or 2
        self.polled = False  #: whether the guard's loop waits for it
        self.text = codecs.getincrementaldecoder("utf-8")("replace")  # a character may be cut by the end of a read


class Child:
    """A root: a process that the guard started by order."""

    def __init__(self, order: Spawn, pid: int, status: int, pipes: tuple[Pipe, Pipe]) -> None:
        self.id = order.id
        self.name = order.name
        self.capture = order.capture
        self.pid = pid
        self.start_time = tree.start_time(pid) or 0  # not reaped yet, so it is there, a zombie at worst
        self.status: int | None = status  #: read end of the pipe that tells how exec went; None: known
        self.pipes = {pipe.fd: pipe for pipe in pipes}  #: those still open
        self.failed = False  #: exec failed: NotStarted was reported, its end is not reported, its id is free
        self.told = False  #: a stop has sent it TERM or KILL
        self._tail = bytearray()

    @property
    def key(self) -> tree.Key:
        return (self.pid, self.start_time)

    @property
    def tail(self) -> str:
        return self._tail[-TAIL:].decode("utf-8", "replace")

    def remember(self, data: bytes) -> None:
        """Keep the end of what was written."""
        self._tail += data
        if len(self._tail) > 2 * TAIL + len(data):
            del self._tail[:-TAIL]


def start(order: Spawn, die_with: Callable[[], None] | None, nice: int | None = None) -> Child:
    """Fork, and execute ``order`` in the child, with ``nice`` if given. OSError when there is no process to begin with.

    Whether exec succeeds is read later from the child's ``status`` pipe: it is closed by exec, or tells the errno. The
    guard does not wait for it, for an image may be on a slow network file system.
    """
    env = execute.environment(order.env)
    opened: list[int] = []
    try:
        for _ in range(3):
            opened += os.pipe()
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        opened.append(null)
        out, out_end, err, err_end, status, status_end, _ = opened
        pid = fork()
        if pid == 0:
            _become(order, env, (null, out_end, err_end), status_end, die_with, nice)
    except OSError:
        _close(opened)
        raise
    _close([out_end, err_end, status_end, null])
    for fd in (out, err, status):
        os.set_blocking(fd, False)
    return Child(order, pid, status, (Pipe(out, 1), Pipe(err, 2)))


def fork() -> int:
    """Fork with all signals blocked, and let the child forget ours: they stay blocked there until it says so.

    Otherwise a signal that reaches the child before its dispositions are reset would be written to the guard's wakeup
    pipe and be taken for one of the guard's own.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, execute.SIGNALS)
    child = False
    try:
        pid = os.fork()
        child = pid == 0
    finally:
        if not child:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if child:
        execute.forget_signals()
    return pid


def _become(
    order: Spawn,
    env: dict[str, str],
    streams: tuple[int, ...],
    status: int,
    die_with: Callable[[], None] | None,
    nice: int | None,
) -> NoReturn:
    """In the child: never returns, whatever happens."""
    doing = "setsid"
    try:
        os.setsid()
        for number, fd in enumerate(streams):
            os.dup2(fd, number)  # all other descriptors are close-on-exec
        if die_with:
            die_with()
        if nice is not None:
            execute.go_back(nice)
        if order.cwd is not None:
            doing = f"chdir to {order.cwd}"
            os.chdir(order.cwd)
        doing = f"exec of {order.argv[0]}"
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        execute.execute(order.argv, env)
    except OSError as error:
        os.write(status, f"{error.errno} {doing}: {os.strerror(error.errno or 0)}".encode("utf-8", "replace"))
    except BaseException as error:  # a NUL byte in argv, an argv without a program: ValueError, IndexError
        os.write(status, f"22 {doing}: {error}".encode("utf-8", "replace"))
    finally:
        os._exit(127)


def verdict(data: bytes) -> tuple[int, str]:
    """errno and text of what the status pipe said."""
    number, _, text = data.decode("utf-8", "replace").partition(" ")
    return int(number), text


def adopt_orphans(adopt: bool = True) -> bool:
    """Become a child subreaper (PR_SET_CHILD_SUBREAPER), or cease to be one; False where the kernel refuses."""
    import ctypes

    return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(adopt), 0, 0, 0) == 0)


def dying_with_parent() -> Callable[[], None]:
    """What a child calls to be killed when the guard is: not needed under PID 1, with which the kernel kills all.

    ctypes is loaded here, before any fork, and only where it is needed: it costs the guard about half a MiB.
    """
    import ctypes

    guard = os.getpid()
    prctl = ctypes.CDLL(None).prctl

    def bind() -> None:
        prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != guard:  # it died before the kernel knew
            os._exit(127)

    return bind


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
