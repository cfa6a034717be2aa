"""Becoming another program: what is put right in a process before exec, and exec itself.

What a child of the guard does, and the launcher's own process when it hands off. Descriptors, signals and the mask
survive an exec, and an engine expects those of a fresh process. Nothing but the interpreter's own modules may enter.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from typing import NoReturn

#: Every signal that a process can do something about.
SIGNALS = tuple(int(number) for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP))


#: The launcher's own processes go before an engine's where CPU is short: beats must come in time, and cost little.
NICER = 10


def go_first() -> int:
    """Take a better nice value, where we may (CAP_SYS_NICE, or RLIMIT_NICE); returns the one that we came with.

    To be called before there are threads: each has a nice value of its own.
    """
    came_with = os.getpriority(os.PRIO_PROCESS, 0)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, max(-20, came_with - NICER))
    return came_with


def go_back(nice: int) -> None:
    """What is no process of the launcher's own gets the nice value that the launcher came with."""
    with contextlib.suppress(OSError):
        if os.getpriority(os.PRIO_PROCESS, 0) != nice:
            os.setpriority(os.PRIO_PROCESS, 0, nice)


def fill_standard_descriptors() -> None:
    """If the launcher was started with stdin, stdout or stderr closed, no file of ours may get their numbers."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


def mark_inherited_descriptors() -> None:
    """Whatever else our parent left open is not for an engine: close-on-exec, like all that Python opens."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2:
            with contextlib.suppress(OSError):  # the one that listed them
                os.set_inheritable(fd, False)


def forget_signals() -> None:
    """Every disposition back to its default, those that Python and our parent chose to ignore too."""
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """Output is seen as it is written: an engine in Python would keep it in a buffer."""
    return {"PYTHONUNBUFFERED": "1", **env}


def execute(argv: Sequence[str], env: Mapping[str, str]) -> NoReturn:
    """Look ``argv[0]`` up in the PATH of ``env`` and execute it. OSError of the most telling attempt."""
    program = argv[0]
    if "/" in program:
        os.execve(program, list(argv), env)
    telling: OSError | None = None
    for folder in env.get("PATH", os.defpath).split(":"):
        try:
            os.execve(os.path.join(folder or ".", program), list(argv), env)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:  # found there, but not executable: said if nothing better comes
            telling = telling or error
    raise telling or FileNotFoundError(2, "not found in PATH", program)


def engine(argv: Sequence[str], env: Mapping[str, str], cwd: str | None) -> tuple[int, str]:
    """Hand this process over, signals already at their defaults. Returns, if that failed, the exit code and why."""
    try:
        if cwd is not None:
            os.chdir(cwd)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        execute(argv, environment(env))
    except OSError as error:
        return 127 if isinstance(error, FileNotFoundError) else 126, f"exec of {argv[0]}: {error.strerror}"
