"""Output: from the processes' pipes to the launcher's own stdout and stderr, which threads write, and to the agent.

A pipe without a reader, a terminal on Ctrl-S, a full disk: a write may block for ever. The guard puts bytes into a
bounded queue; one thread a file takes them out. Only ``os.write`` may happen on those threads: the guard forks while
they run, and the child inherits whatever lock they would hold (see ``children.fork``).
"""

from __future__ import annotations

import _thread
import os
import select
import signal
import time
from collections import deque

from launcher.guard.agent_process import OUTPUT_BOUND, AgentProcess
from launcher.guard.channel import Dropped, Output
from launcher.guard.children import Child, Pipe

#: Bytes that may wait for one file.
LIMIT = 4 << 20
#: What one read from an engine's pipe yields at most; a Linux pipe holds that much.
CHUNK = 1 << 16
#: Reads in a row from one pipe.
MOST_READS = 16
#: How long an engine waits for a reader that falls behind, and how much such a reader has to take in that time.
PATIENCE, PROGRESS = 1.0, 1 << 20
#: How long a line of ours waits for an engine to end the line that it has begun: a large one comes in several reads.
UNFINISHED = 0.1


class Writer:
    """A bounded queue to a file descriptor, emptied by a thread that starts with the first bytes."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._queue: deque[bytes] = deque()
        self._wake = _thread.allocate_lock()
        self._wake.acquire()
        self._runs = False
        # Each counter has one thread that writes it: no lock.
        self._put = 0  # the guard
        self._taken = 0  # the thread
        self._refused = 0  # the guard
        self._failed = 0  # the thread
        self._full_since: float | None = None
        self._mark = 0
        self._midline = False  #: what was queued last is the beginning of a line
        self._lines: list[bytes] = []  #: ours, that wait for the end of that line
        self.due = float("inf")  #: when they wait no more; monotonic

    @property
    def waiting(self) -> int:
        """Bytes in the queue."""
        return self._put - self._taken

    @property
    def dropped(self) -> int:
        """Bytes that were never written, since the beginning."""
        return self._refused + self._failed

    def put(self, data: bytes, *, force: bool = False) -> None:
        """Queue an engine's ``data``, or drop it when the queue is full. ``force``: last words, at most a pipe's worth.

        Lines of ours that wait go in after the line that the engine has begun.
        """
        if self._lines and b"\n" in data:
            end = data.index(b"\n") + 1
            self._queue_up(data[:end], force)
            self.settle()
            data = data[end:]
        self._queue_up(data, force)

    def say(self, lines: bytes, now: float) -> None:
        """Queue whole lines of the launcher's own, never in the middle of an engine's line.

        While the engine has begun one they wait for its end, ``UNFINISHED`` seconds at most; then it is broken.
        """
        if self._midline:
            if not self._lines:
                self.due = now + UNFINISHED
            self._lines.append(lines)
            if sum(map(len, self._lines)) > CHUNK:
                self.settle()
        else:
            self._queue_up(lines, False)

    def mind(self, now: float) -> None:
        """Lines that have waited long enough go in."""
        if self._lines and now >= self.due:
            self.settle()

    def settle(self) -> None:
        """Lines that wait go in now, after a line end if the engine has not written one."""
        lines, self._lines = self._lines, []
        self.due = float("inf")
        if lines:
            self._queue_up((b"\n" if self._midline else b"") + b"".join(lines), False)

    def _queue_up(self, data: bytes, force: bool) -> None:
        if not data:
            return
        if self.waiting + len(data) > LIMIT and not force:
            self._refused += len(data)
            return
        self._midline = not data.endswith(b"\n")
        self._queue.append(data)
        self._put += len(data)
        if not self._runs:
            self._runs = self._start()  # or with the next bytes: no thread can be had at the moment
        if self._wake.locked():  # only this thread releases, so it cannot be released twice
            self._wake.release()

    def holds(self, now: float) -> bool:
        """Whether engines should wait before they are read on: the queue is full, but its reader keeps up.

        What reads at 1 MiB/s or more gets every byte, at its own pace. What reads more slowly, or not at all, holds an
        engine up for a second at a time and then loses output.
        """
        if self.waiting + CHUNK <= LIMIT:
            if self.waiting < LIMIT // 2:
                self._full_since = None
            return False
        if self._full_since is None or self._taken - self._mark >= PROGRESS:
            self._full_since = now
            self._mark = self._taken
        return now - self._full_since < PATIENCE

    def flush(self, idle: float, total: float) -> None:
        """Wait until the queue is empty, nothing moved for ``idle`` seconds, or ``total`` seconds passed."""
        self.settle()
        end = time.monotonic() + total
        taken, moved = self._taken, time.monotonic()
        while self.waiting and time.monotonic() < min(end, moved + idle):
            time.sleep(0.001)
            if self._taken != taken:
                taken, moved = self._taken, time.monotonic()

    def _start(self) -> bool:
        # A thread inherits the mask: signals are the main thread's, which wakes by them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            _thread.start_new_thread(self._run, ())
        except (RuntimeError, MemoryError):  # EAGAIN: the pod's or the user's limit of threads
            return False
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return True

    def _run(self) -> None:
        while True:
            self._wake.acquire()
            while self._queue:
                data = self._queue.popleft()
                self._write(data)
                self._taken += len(data)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:  # our stdout was made non-blocking: the flag is shared with all who have it
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()
            except OSError:  # EPIPE: the reader is gone for good; ENOSPC: perhaps later
                self._failed += len(view)
                return


def writers() -> tuple[Writer, Writer]:
    """For stdout and stderr; one and the same where both are one file, so that the order of writes is kept."""
    out = Writer(1)
    try:
        same = os.path.sameopenfile(1, 2)
    except OSError:
        same = False
    return out, (out if same else Writer(2))


class Relay:
    """Passes on what processes write: to the launcher's own stdout and stderr, and to the agent.

    Nothing here blocks. While our own stdout is full and its reader keeps up, the processes' pipes are not read, so
    that the processes wait; otherwise output is dropped, and the agent hears how much.
    """

    def __init__(self, agent: AgentProcess, poll: select.poll) -> None:
        self._agent = agent
        self._poll = poll
        self._writers = writers()
        self._pipes: dict[int, tuple[Child, Pipe]] = {}
        self._reported = [0, 0]  #: of each writer's dropped bytes, those that the agent knows of
        self._held = False  #: processes wait for the reader of our stdout

    def add(self, child: Child) -> None:
        for pipe in child.pipes.values():
            self._pipes[pipe.fd] = (child, pipe)

    def __contains__(self, fd: int) -> bool:
        return fd in self._pipes

    def drain(self, fd: int, *, last: bool = False, reads: int = 1) -> None:
        """Read what a process wrote. ``last``: it has ended, so all that is still in the pipe, and past any bound."""
        child, pipe = self._pipes[fd]
        for _ in range(MOST_READS if last else reads):
            try:
                data = os.read(fd, CHUNK)
            except BlockingIOError:
                return
            self._pass_on(child, pipe, data, last)
            if not data:
                if pipe.polled:
                    self._poll.unregister(fd)
                os.close(fd)
                del self._pipes[fd], child.pipes[fd]
                return

    def drain_all(self) -> None:
        """Read what all processes have written so far, even if they wait for the reader of our stdout."""
        for fd in list(self._pipes):
            self.drain(fd, reads=MOST_READS)

    def _pass_on(self, child: Child, pipe: Pipe, data: bytes, last: bool) -> None:
        child.remember(data)
        if data and not child.capture:
            self._writers[pipe.stream - 1].put(data, force=last)
        text = pipe.text.decode(data, final=not data)
        if text and not self._agent.report(Output(child.id, pipe.stream, text), OUTPUT_BOUND):
            self._agent.dropped += len(data)

    def update(self, now: float) -> None:
        """Poll the pipes that may be read now, and report what was dropped."""
        for writer in self._writers:
            writer.mind(now)
        held = [writer.holds(now) for writer in self._writers]
        self._held = any(held)
        for fd, (child, pipe) in self._pipes.items():
            wanted = child.capture or not held[pipe.stream - 1]
            if wanted and not pipe.polled:
                self._poll.register(fd, select.POLLIN)
            elif pipe.polled and not wanted:  # events=0 would not do: poll reports a hang-up all the same
                self._poll.unregister(fd)
            pipe.polled = wanted
        for index, writer in enumerate(dict.fromkeys(self._writers)):
            if writer.dropped > self._reported[index] and self._agent.has_room:
                self._agent.report(Dropped(index + 1, writer.dropped - self._reported[index]))
                self._reported[index] = writer.dropped
        if self._agent.dropped and self._agent.has_room:
            self._agent.report(Dropped(0, self._agent.dropped))
            self._agent.dropped = 0

    def due(self, now: float) -> list[float]:
        """When ``update`` has something to do without an event."""
        return [*(writer.due for writer in self._writers if writer.due < float("inf")), *([now + 0.005] * self._held)]

    def say(self, stream: int, text: str) -> None:
        """Write lines of the launcher's own to stdout (1) or stderr (2)."""
        self._writers[stream != 1].say(text.encode("utf-8", "backslashreplace"), time.monotonic())

    def flush(self) -> None:
        """Wait for our own readers, 3 s at most."""
        for writer in self._writers:
            writer.flush(idle=1.0, total=3.0)

    def finish(self) -> None:
        """All processes are dead: read what is left in their pipes, and flush."""
        for fd in list(self._pipes):
            self.drain(fd, last=True)
        self.flush()
