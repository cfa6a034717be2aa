"""The guard's signals: which it catches, and how their order of arrival is kept."""

from __future__ import annotations

import os
import signal

#: They ask the launcher to end.
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
#: Answers to system calls of one's own: ignored.
_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTTIN, signal.SIGTTOU)
#: Faults of the process that gets them.
_FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS)
_UNCATCHABLE = (signal.SIGKILL, signal.SIGSTOP)


def catch() -> int:
    """Have every signal that can be forwarded written to a pipe, in the order of arrival; its read end."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for number in signal.valid_signals():
        if number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        elif number in _FAULTS:
            signal.signal(number, signal.SIG_DFL)
        elif number not in _UNCATCHABLE:
            signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return read_end
