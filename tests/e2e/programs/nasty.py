"""An engine that does not want to die: one process (or more) for each kind named on its command line.

    nasty.py FIFO KIND [KIND...]

Every process of the tree holds FIFO open for writing, and writes one byte to it when it is as nasty as it gets: who
reads it knows when all are ready (ready bytes: one a kind and one for the root), and by the end of file that the last
of them is dead. That needs no name, no environment and no /proc. Nothing here lives longer than LIFE seconds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

LIFE = 60.0
FORKS = 150
END = time.monotonic() + LIFE


def sleep_on() -> None:
    while time.monotonic() < END:
        time.sleep(1)
    os._exit(0)


def ready() -> None:
    os.write(FIFO, b"r")


def rename() -> None:
    """What setproctitle does: a new name, and the memory of the command line and the environment overwritten."""
    ctypes.CDLL(None).prctl(15, b"kworker/0:1", 0, 0, 0)  # PR_SET_NAME
    with open("/proc/self/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    for start, end in ((45, 46), (47, 48)):
        ctypes.memset(int(fields[start]), ord("x"), int(fields[end]) - int(fields[start]) - 1)


def orphan() -> None:
    """Double fork."""
    if os.fork():
        os._exit(0)


def session() -> None:
    os.setsid()


def stopped() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ready()
    os.kill(os.getpid(), signal.SIGSTOP)


def stubborn() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)


def demon() -> None:
    """All of it: an orphan in a new session that ignores TERM, executes something else with no environment."""
    stubborn()
    orphan()
    os.setsid()
    orphan()
    ready()
    os.execve("/bin/sleep", ["[kthreadd]", str(int(LIFE))], {})


def storm() -> None:
    """Forks as fast as it can, up to FORKS processes."""
    stubborn()
    ready()
    for _ in range(FORKS):
        if os.fork() == 0:
            sleep_on()
        time.sleep(0.001)


def hopper() -> None:
    """Forks and ends: it has a new pid all the time."""
    stubborn()
    ready()
    while time.monotonic() < END:
        if os.fork():
            os._exit(0)


def far_hopper() -> None:
    """The same, and every one is the leader of a new session: no group and no session to catch it by."""
    stubborn()
    ready()
    while time.monotonic() < END:
        if os.fork():
            os._exit(0)
        os.setsid()
        time.sleep(0.002)


def flood() -> None:
    """Writes without end."""
    stubborn()
    ready()
    while time.monotonic() < END:
        os.write(1, b"x" * 65536)


def headless() -> None:
    """Its main thread has ended: /proc calls it a zombie, and the other thread works on."""
    stubborn()

    def work() -> None:
        time.sleep(0.05)
        ready()
        sleep_on()

    threading.Thread(target=work).start()
    ctypes.CDLL(None).syscall(60 if os.uname().machine == "x86_64" else 93, 0)  # exit of this thread only


KINDS = {
    kind.__name__: kind
    for kind in (rename, orphan, session, stopped, stubborn, demon, storm, hopper, far_hopper, flood, headless)
}
SELF_READY = {stopped, demon, storm, hopper, far_hopper, flood, headless}

if __name__ == "__main__":
    FIFO = os.open(sys.argv[1], os.O_WRONLY)
    os.set_inheritable(FIFO, True)
    for name in sys.argv[2:]:
        kind = KINDS[name]
        if os.fork() == 0:
            kind()
            if kind not in SELF_READY:
                ready()
            sleep_on()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    if "NASTY_ROOT_LEAVES" in os.environ:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    else:
        stubborn()
    ready()
    sleep_on()
