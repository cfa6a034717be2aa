"""Injected faults of a rank: timers on its reactor, armed at process start and when serving begins.

`hang_after` is handled in `chain.py`, `unhealthy_after` in `leader.py`, `ignore_term` in both classes of rank.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
from time import monotonic

from launcher.reference.options import Options
from launcher.reference.process import end, leave_daemon, log
from launcher.reference.reactor import Reactor

CHUNK = 16 << 20
TICK = 0.02


class Faults:
    """The faults of one rank; ``workers`` are the pids of its workers."""

    def __init__(self, options: Options, reactor: Reactor, workers: list[int]) -> None:
        self.options, self.reactor, self.workers = options, reactor, workers
        self.taken: list[bytes] = []
        self.mapped: list[mmap.mmap] = []
        self.lines = 0

    def started(self) -> None:
        """Arm faults that count from process start."""
        o = self.options
        if not o.faulty:
            return
        if o.crash_after is not None and o.crash_at == "startup":
            self.reactor.after(o.crash_after, self.crash)
        if o.fork_daemon:
            self._say(f"left daemon {leave_daemon('reference: daemon')}")
        if o.shm_bytes:
            self._leave_shared_memory()
        if o.memory_bytes:
            self.reactor.after(0, self._take_memory)
        if o.output_rate:
            self._print(monotonic())

    def serving(self) -> None:
        """Arm faults that count from the moment the chain is complete."""
        o = self.options
        if not o.faulty:
            return
        if o.crash_after is not None and o.crash_at == "serving":
            self.reactor.after(o.crash_after, self.crash)
        if o.exit_zero_after is not None:
            self.reactor.after(o.exit_zero_after, self._end_well)

    def crash(self) -> None:
        """Crash as configured, with a traceback like a real engine's."""
        o = self.options
        if o.crash_process == "worker":
            self._say("injected crash of a worker")
            os.kill(self.workers[0], o.crash_signal or signal.SIGKILL)
            return
        if o.crash_signal:
            self._say(f"injected crash by signal {o.crash_signal}")
            signal.signal(o.crash_signal, signal.SIG_DFL) if o.crash_signal not in (9, 19) else None
            os.kill(os.getpid(), o.crash_signal)
            return
        print(
            f'Traceback (most recent call last):\n  File "engine.py", line 1, in step\n'
            f"RuntimeError: injected crash of rank {o.rank}",
            file=sys.stderr,
        )
        end(o.crash_code)

    def _end_well(self) -> None:
        self._say("injected end with 0")
        end(0)

    def _leave_shared_memory(self) -> None:
        path = f"/dev/shm/reference-{self.options.rank}-{os.getpid()}"
        # mode 0600, as Python's multiprocessing and NCCL call shm_open(3)
        with open(path, "w+b", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.truncate(self.options.shm_bytes)
            os.posix_fallocate(file.fileno(), 0, self.options.shm_bytes)
            self.mapped.append(mmap.mmap(file.fileno(), self.options.shm_bytes))
        self._say(f"left {path}")

    def _take_memory(self) -> None:
        left = self.options.memory_bytes - sum(map(len, self.taken))
        if left > 0:
            self.taken.append(b"\1" * min(left, CHUNK))
            self.reactor.after(0, self._take_memory)
        else:
            self._say(f"took {self.options.memory_bytes} bytes")

    def _print(self, since: float) -> None:
        due = int((monotonic() - since) * self.options.output_rate) - self.lines
        if due > 0:
            text = "".join(
                f"reference rank {self.options.rank}: line {self.lines + i} of injected output\n" for i in range(due)
            )
            self.lines += due
            sys.stdout.write(text)
            sys.stdout.flush()
        self.reactor.after(TICK, lambda: self._print(since))

    def _say(self, line: str) -> None:
        log(self.options.rank, line)
