"""The guard: what the pod starts. It forks the agent, runs what the agent orders, and outlives it to clean up.

PID 1 in a container, a child subreaper elsewhere: whatever loses its parent falls to it, so everything that an engine
ever makes stays a descendant and can be found and killed. It is the only caller of wait and the only one that starts
processes. It decides nothing about the group; it holds the promises that must hold without a healthy agent:

- the agent dies by a signal: the tree is killed at once; then a new agent is forked (``Policy``), or exit 128 + n;
- the agent exits with a code: the tree is killed, and the guard exits with that code;
- the deadline passes (``Deadline``): the tree is killed and nothing is started until the agent sets a new one;
- the agent is frozen: nothing in it is waited for. When a signal asked the launcher to end, the agent has not read it
  for 10 s and the tree is dead, the guard exits with 128 + n.

No network, no asyncio, no subprocess, no logging and no click may enter, nor anything that can block: every descriptor
is non-blocking but the launcher's own stdout and stderr, which only the threads of ``output`` touch.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Collection
from typing import Any, NoReturn

from launcher.common.text import signal_name
from launcher.guard import children, execute, output
from launcher.guard.channel import (
    BadFrame,
    Deadline,
    Deliver,
    Dropped,
    Exited,
    Frames,
    Guarding,
    Handoff,
    Incarnation,
    Kill,
    LeaseExpired,
    NotStarted,
    Orphaned,
    Output,
    Ping,
    Policy,
    Pong,
    Remember,
    Report,
    Say,
    SignalReceived,
    Spawn,
    Started,
    Stop,
    Stopped,
    encode,
)
from launcher.guard.children import Child, Pipe
from launcher.guard.stopping import Phase, Stopping
from launcher.node import tree
from launcher.node.lateness import Lateness

#: Reports that wait for the agent; beyond the first, output is dropped; beyond the second, signals too.
OUTPUT_BOUND, SIGNAL_BOUND = 1 << 20, 4 << 20
#: An agent that dies this soon after its start counts as quick; so many in a row end the guard.
QUICK, QUICK_DEATHS = 1.0, 5
#: Until an agent that could not be forked is tried again.
FORK_PAUSE = 1.0
#: How long an agent may leave a request to end unread before the guard ends without it.
FROZEN = 10.0
#: Signals that ask the launcher to end.
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
#: Not reported: SIGCHLD is the guard's own; SIGPIPE, SIGXFSZ, SIGTTIN and SIGTTOU are answers to one's own system calls
#: and are ignored; the others name a fault of the process that gets them.
_OWN = (signal.SIGCHLD,)
_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTTIN, signal.SIGTTOU)
_FAULTS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS)
_UNCATCHABLE = (signal.SIGKILL, signal.SIGSTOP)
#: Earlier agents that an agent is told of, the newest.
MOST_REPLACED = 64
SOFTWARE = 70


def run(agent_main: Callable[[int], int]) -> NoReturn:
    """Guard ``agent_main``, which gets its end of the channel (``GuardChannel(fd)``) in a forked process.

    Ends the process: with the agent's exit code, with 128 + n when a signal ended the agent, with 70 for a bug.
    ``agent_main`` may be called again after a crash, in a fresh fork: nothing of the former agent is in memory.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream:  # None where the descriptor is closed
            stream.flush()  # or the agent would print it again
    code = SOFTWARE
    guard = Guard(agent_main)
    try:
        code = guard.run()
    except BaseException:  # a bug: better no engine than one that nobody guards
        guard.kill_everything()
        import traceback

        traceback.print_exc()
    os._exit(code)


class Guard:
    """The loop and its state. Everything happens on the main thread."""

    def __init__(self, agent_main: Callable[[int], int]) -> None:
        self._nice = execute.go_first()
        execute.fill_standard_descriptors()
        execute.mark_inherited_descriptors()
        self._pid = os.getpid()
        self._init = self._pid == 1
        self._die_with = None if self._init else children.dying_with_parent()
        if not self._init:
            children.adopt_orphans()
        self._poll = select.poll()
        self._wakeup = _catch_signals()
        self._poll.register(self._wakeup, select.POLLIN)
        self._writers = output.writers()
        self._agent = Agent(agent_main, self._poll)
        self._code: int | None = None  #: set: the loop ends
        self._ending: int | None = None  #: the agent ended: exit with this when the tree is dead
        self._children: dict[int, Child] = {}  #: by pid, in order of start
        self._pipes: dict[int, tuple[Child, Pipe]] = {}
        self._statuses: dict[int, Child] = {}
        self._reaped = 0
        self._stops: list[tuple[float, Stopping]] = []  #: when its next tick is due
        self._lease: float | None = None
        self._expired = False  #: the lease passed and no new one was set
        self._lease_kill = False  #: and the tree is not yet known to be dead
        self._asked: int | None = None  #: the first signal that asked the launcher to end
        self._next_look = 0.0
        self._unread_since = 0.0
        self._held = False  #: engines wait for a reader of our stdout that keeps up
        self._told_dropped = [0, 0]
        self._lateness = Lateness()

    def run(self) -> int:
        """Fork the agent and guard it until something says how to exit."""
        self._start_agent()
        gc.enable()
        while self._code is None:
            self._turn()
        return self._leave(self._code)

    def _turn(self) -> None:
        found = self._poll.poll(self._timeout() * 1000)
        self._lateness.mark()
        for fd, event in found:
            if fd == self._wakeup:
                self._read_signals()
            elif fd == self._agent.fd:
                self._serve_agent(event)
            elif fd in self._pipes:
                self._drain(fd)
            elif fd in self._statuses:
                self._learn_exec(self._statuses[fd])
        now = time.monotonic()
        self._mind_lease(now)
        self._mind_stops(now)
        self._mind_agent(now)
        self._mind_output(now)

    def _timeout(self) -> float:
        """Seconds until something is due without an event."""
        now = time.monotonic()
        due = [at for at, _ in self._stops]
        due += [writer.due for writer in self._writers if writer.due < float("inf")]
        if self._lease is not None and not self._expired:
            due.append(self._lease)
        if self._agent.restart_at is not None:
            due.append(self._agent.restart_at)
        if self._asked is not None and self._ending is None:
            due.append(self._next_look)
        if self._held:
            due.append(now + 0.005)
        # poll counts in milliseconds, in an int, and Python rounds up
        return min(3600.0, max(0.0, min(due) - now)) if due else 3600.0

    # ------------------------------------------------------------------------------------------------- signals

    def _read_signals(self) -> None:
        reap = False
        with contextlib.suppress(BlockingIOError):
            while numbers := os.read(self._wakeup, 4096):
                for number in numbers:
                    if number in _OWN:
                        reap = True
                    else:
                        self._received(number)
        if reap:
            self._reap()

    def _received(self, number: int) -> None:
        if number in _ENDING and self._asked is None:
            self._asked, self._unread_since = number, time.monotonic()
        self._agent.report(SignalReceived(number), SIGNAL_BOUND)

    def _reap(self) -> None:
        """Collect every process that has ended: roots, the agent, and orphans that nobody here ever heard of."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._reaped += 1
            if pid == self._agent.pid:
                self._agent_ended(status)
            elif pid in self._children:
                self._root_ended(self._children[pid], status)
            else:
                self._agent.report(Orphaned(pid), OUTPUT_BOUND)

    def _root_ended(self, child: Child, status: int) -> None:
        noticed, doubt = time.monotonic(), self._lateness.seconds()
        if child.status is not None:
            self._learn_exec(child)
        for fd in list(child.pipes):
            self._drain(fd, last=True)
        del self._children[child.pid]
        self._hasten_stops()
        if child.failed:
            return
        killed = os.WIFSIGNALED(status)
        code = None if killed else os.WEXITSTATUS(status)
        number = os.WTERMSIG(status) if killed else None
        self._agent.report(Exited(child.id, code, number, child.tail, child.told, noticed, doubt))

    # --------------------------------------------------------------------------------------------------- output

    def _drain(self, fd: int, *, last: bool = False) -> None:
        """Read what a process wrote. ``last``: it has ended, so all that is still in the pipe, and past any bound."""
        child, pipe = self._pipes[fd]
        for _ in range(16 if last else 1):
            try:
                data = os.read(fd, output.CHUNK)
            except BlockingIOError:
                return
            self._pass_on(child, pipe, data, last)
            if not data:
                if pipe.polled:
                    self._poll.unregister(fd)
                os.close(fd)
                del self._pipes[fd], child.pipes[fd]
                return

    def _pass_on(self, child: Child, pipe: Pipe, data: bytes, last: bool) -> None:
        child.remember(data)
        if data and not child.capture:
            self._writers[pipe.stream - 1].put(data, force=last)
        text = pipe.text.decode(data, final=not data)
        if text and not self._agent.report(Output(child.id, pipe.stream, text), OUTPUT_BOUND):
            self._agent.dropped += len(data)

    def _mind_output(self, now: float) -> None:
        """Let engines wait while our own stdout is full and its reader keeps up; tell the agent what was dropped."""
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
            if writer.dropped > self._told_dropped[index] and self._agent.has_room:
                self._agent.report(Dropped(index + 1, writer.dropped - self._told_dropped[index]))
                self._told_dropped[index] = writer.dropped
        if self._agent.dropped and self._agent.has_room:
            self._agent.report(Dropped(0, self._agent.dropped))
            self._agent.dropped = 0

    def _say(self, text: str) -> None:
        self._writers[1].say(f"launcher guard: {text}\n".encode("utf-8", "replace"), time.monotonic())

    # ---------------------------------------------------------------------------------------------------- agent

    def _start_agent(self) -> None:
        self._lease, self._expired, self._lease_kill = None, False, False
        try:
            self._agent.start()
        except OSError as error:  # no process, memory or descriptor at the moment: a bug of nobody's
            self._say(f"no agent can be started, trying again: {error.strerror}")
            self._agent.restart_at = time.monotonic() + FORK_PAUSE
            return
        self._agent.report(Guarding(self._pid, tree.start_time(self._pid) or 0, self._init))
        if self._asked is not None:
            self._unread_since = time.monotonic()
            self._agent.report(SignalReceived(self._asked))

    def _serve_agent(self, event: int) -> None:
        if event & select.POLLOUT:
            self._agent.flush()
        if event & ~select.POLLOUT:
            for order in self._agent.receive():
                self._obey(order)

    def _agent_ended(self, status: int) -> None:
        for order in self._agent.receive():  # its last words: orders that it sent just before it ended
            if not isinstance(order, Spawn):
                self._obey(order)
        died = self._agent.ended(status)
        self._lease = None
        if not died and self._agent.code == 0 and self._agent.handoff is not None:
            self._code = self._hand_off(self._agent.handoff)
            return
        self._ending = self._agent.code
        then = self._restart_agent if died and self._agent.policy else self._end
        if died:
            anew = ", then it is started anew" if self._agent.policy else ""
            self._say(f"the agent was {self._agent.last_death}; its processes are killed{anew}")
        self._stops.clear()
        self._end_tree([], everything=True, grace=None, then=then)

    def _restart_agent(self, stop: Stopping, now: float) -> None:
        if not stop.clean:
            self._say(f"not everything of the former agent could be killed: {_names(stop)}")
            if self._asked is None:  # an agent's first word is that nothing is left: there is none until that is true
                self._end_tree([], everything=True, grace=None, then=self._restart_agent)
            else:
                self._code = 128 + self._asked
            return
        if self._agent.quick_deaths >= QUICK_DEATHS:
            self._say(f"the agent died {QUICK_DEATHS} times within {QUICK:.0f} s of its start: giving up")
            self._code = SOFTWARE
        else:
            self._agent.restart_at = now + self._agent.backoff

    def _end(self, stop: Stopping, now: float) -> None:
        if not stop.clean:
            self._say(f"still there after {now - stop.began:.0f} s of SIGKILL: {_names(stop)}")
        self._code = self._ending

    def _mind_agent(self, now: float) -> None:
        if self._agent.restart_at is not None and now >= self._agent.restart_at:
            self._ending = None
            self._start_agent()
        elif self._asked is not None and self._ending is None and now >= self._next_look:
            self._next_look = now + 1.0
            if not self._agent.unread or self._agent.heard_at > self._unread_since:
                self._unread_since = now
            elif now - self._unread_since >= FROZEN and not self._tree():
                self._say(f"the agent is frozen and has left signal {self._asked} unread for {FROZEN:.0f} s")
                self._code = 128 + self._asked

    def _hand_off(self, order: Handoff) -> int:
        """Become the engine. Returns an exit code if that failed."""
        for writer in self._writers:
            writer.flush(idle=1.0, total=3.0)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        self._read_signals()
        execute.forget_signals()
        self._poll.unregister(self._wakeup)
        if not self._init:
            children.adopt_orphans(False)  # survives exec, and an engine does not reap what is not its own
        if self._asked is not None:  # asked to end before there was an engine to ask
            return 128 + self._asked
        execute.go_back(self._nice)
        code, why = execute.engine(order.argv, order.env, order.cwd)
        self._say(why)
        return code

    # --------------------------------------------------------------------------------------------------- orders

    def _obey(self, order: Any) -> None:
        if isinstance(order, Spawn):
            self._spawn(order)
        elif isinstance(order, Stop):
            self._stop(order.id, order.ids, order.grace)
        elif isinstance(order, Kill):
            self._stop(order.id, order.ids, None)
        elif isinstance(order, Deadline):
            self._lease, self._expired = order.at, False
        elif isinstance(order, Deliver):
            self._deliver(order)
        elif isinstance(order, Ping):
            self._agent.report(Pong(order.n))
        elif isinstance(order, Handoff):
            self._agent.handoff = order
        elif isinstance(order, Policy):
            self._agent.policy = order.restart_agent
        elif isinstance(order, Incarnation):
            self._agent.replaces.append(order.value)
        elif isinstance(order, Remember):
            self._agent.last_epoch = order.text[:100_000]
        elif isinstance(order, Say):
            self._writers[order.stream != 1].say(order.text.encode("utf-8", "backslashreplace"), time.monotonic())

    def _spawn(self, order: Spawn) -> None:
        self._mind_lease(time.monotonic())
        if self._expired and not order.capture:  # a question is no engine, and after a kill there is much to ask
            self._agent.report(NotStarted(order.id, 62, "the lease has run out"))  # ETIME
        elif any(stop.everything for _, stop in self._stops):
            self._agent.report(NotStarted(order.id, 16, "everything is being stopped"))  # EBUSY
        elif any(child.id == order.id and not child.failed for child in self._children.values()):
            self._agent.report(NotStarted(order.id, 17, f"there is a process {order.id} already"))  # EEXIST
        else:
            try:
                child = children.start(order, self._die_with, self._nice)
            except OSError as error:
                self._agent.report(NotStarted(order.id, error.errno or 0, f"fork: {error.strerror}"))
                return
            self._children[child.pid] = child
            assert child.status is not None
            self._statuses[child.status] = child
            self._poll.register(child.status, select.POLLIN)
            for pipe in child.pipes.values():
                self._pipes[pipe.fd] = (child, pipe)

    def _learn_exec(self, child: Child) -> None:
        """Read the status pipe: closed by exec, or an errno."""
        assert child.status is not None
        try:
            data = os.read(child.status, 4096)
        except BlockingIOError:
            return
        self._poll.unregister(child.status)
        os.close(child.status)
        del self._statuses[child.status]
        child.status = None
        if data:
            child.failed = True
            report: Report = NotStarted(child.id, *children.verdict(data))
        else:
            report = Started(child.id, child.pid, child.start_time)
        self._agent.report(report)

    def _deliver(self, order: Deliver) -> None:
        for child in self._roots(order.ids):
            try:
                os.killpg(child.pid, order.signal)
            except ProcessLookupError:  # forked, but not yet the leader of its session
                tree.send(child.pid, order.signal)
            except (OSError, OverflowError) as error:
                self._say(f"signal {order.signal} to {child.name}: {getattr(error, 'strerror', error)}")

    def _roots(self, ids: Collection[str] | None) -> list[Child]:
        return [c for c in self._children.values() if not c.failed and (ids is None or c.id in ids)]

    # ------------------------------------------------------------------------------------------ stops and the lease

    def _stop(self, order: str, ids: Collection[str] | None, grace: float | None) -> None:
        keys = [child.key for child in reversed(self._roots(ids))]
        stop = next((s for _, s in self._stops if s.same_scope(keys, ids is None)), None)
        now = time.monotonic()
        if stop is None:
            stop = self._end_tree(keys, everything=ids is None, grace=grace, then=self._report_stopped)
        else:
            stop.shorten(now, grace)
            self._hasten_stops()
        stop.orders.append(order)

    def _end_tree(
        self, roots: list[tree.Key], *, everything: bool, grace: float | None, then: Callable[[Stopping, float], None]
    ) -> Stopping:
        now = time.monotonic()
        spared = {self._agent.pid} if self._agent.pid else set()
        stop = Stopping(roots, everything=everything, guard=self._pid, spared=spared, now=now, grace=grace, then=then)
        self._stops.append((now, stop))
        return stop

    def _report_stopped(self, stop: Stopping, now: float) -> None:
        left = tuple((p.pid, p.start_time, p.comm, p.state) for p in stop.left)
        for order in stop.orders:
            self._agent.report(Stopped(order, stop.clean, left, now - stop.began))

    def _hasten_stops(self) -> None:
        self._stops = [(0.0, stop) for _, stop in self._stops]

    def _mind_stops(self, now: float) -> None:
        due = [stop for at, stop in self._stops if at <= now]
        if due and not self._prove_empty(due):
            self._tick(due, now)
        now = time.monotonic()
        if any(stop.everything and stop.clean for stop in due):
            for _, stop in self._stops:  # nothing is started while one lasts, so the others are over with it: a lease
                if stop.everything:  # kill that goes on after the agent heard `Stopped` would refuse the next start
                    stop.prove_empty()
        done = [stop for _, stop in self._stops if stop.phase is Phase.DONE]
        self._stops = [(now + stop.pause if stop in due else at, stop) for at, stop in self._stops if stop not in done]
        for stop in done:
            stop.then(stop, now)

    def _tick(self, due: list[Stopping], now: float) -> None:
        table = tree.scan(tries=1)
        self._reap()  # what has ended is reported, with its last output, before the end of it all is
        for stop in due:
            for pid, number in stop.tick(now, table, self._reaped):
                self._mark_told(pid)
                tree.send(pid, number)
            if stop.phase is Phase.KILL:
                for victim in stop.left:
                    self._mark_told(victim.pid)
                tree.kill(stop.left, table, stop.groups)
                if stop.everything:
                    tree.chase(self._is_ours)

    def _mark_told(self, pid: int) -> None:
        """A signal is about to be sent. What ended or began to end before did so by itself: only here is that known."""
        if pid in self._children and not self._children[pid].told and not tree.ending(pid):
            self._children[pid].told = True

    def _is_ours(self, proc: tree.Proc) -> bool:
        return proc.pid != self._agent.pid and tree.descends(proc, self._pid)

    def _prove_empty(self, stops: list[Stopping]) -> bool:
        """Spare the scans where the kernel itself says that there is nothing left."""
        if not self._childless:
            return False
        for stop in stops:
            stop.prove_empty()
        return True

    @property
    def _childless(self) -> bool:
        """No agent, no child: then no descendant either, for all that lose their parent become our children."""
        if self._agent.pid is not None:
            return False
        try:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return True
        return False

    def _mind_lease(self, now: float) -> None:
        if self._lease is None or self._expired or now < self._lease:
            return
        self._expired = True
        if not self._lease_kill:
            self._lease_kill = True
            self._kill_for_lease()

    def _kill_for_lease(self) -> None:
        passed = self._lease or time.monotonic()

        def then(stop: Stopping, now: float) -> None:
            self._agent.report(LeaseExpired(stop.clean, now - passed))
            self._report_stopped(stop, now)  # an order of the agent may have joined this one
            self._lease_kill = not stop.clean
            if not stop.clean:  # not clean is not enough: go on, and say so when it is
                self._end_tree([], everything=True, grace=None, then=then)

        self._end_tree([], everything=True, grace=None, then=then)

    def _tree(self) -> list[tree.Proc]:
        """What lives below the guard, the agent apart."""
        return [p for p in tree.descendants(self._pid) if p.pid != self._agent.pid and not p.gone]

    # ------------------------------------------------------------------------------------------------------ the end

    def _leave(self, code: int) -> int:
        """The tree is dead (or the agent frozen over a dead tree): the last output, and out."""
        if self._agent.pid is not None:
            tree.send(self._agent.pid, signal.SIGKILL)
        for fd in list(self._pipes):
            self._drain(fd, last=True)
        for writer in self._writers:
            writer.flush(idle=1.0, total=3.0)
        return code

    def kill_everything(self) -> None:
        """After a bug of ours: no state is trusted, only the process table."""
        until = time.monotonic() + 10.0
        groups: set[int] = set()
        while time.monotonic() < until:
            table = tree.scan()
            victims = [p for p in table.below([self._pid]) if not p.gone]
            if not victims:
                return
            tree.kill(victims, table, groups)
            time.sleep(0.01)


class Agent:
    """The guard's side of the agent: its process, its socket, and what is known of its former lives."""

    def __init__(self, main: Callable[[int], int], poll: select.poll) -> None:
        self.pid: int | None = None
        self.fd = -1
        self.code = 0  #: how the last one ended: its exit code, or 128 + the signal
        self.policy = False
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
            _tell("LAUNCHER_PREVIOUS_AGENT", self.last_death)
            _tell("LAUNCHER_REPLACES", ",".join(self.replaces[-MOST_REPLACED:]))
            _tell("LAUNCHER_LAST_EPOCH", self.last_epoch)
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


def _catch_signals() -> int:
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


def _tell(name: str, value: str) -> None:
    """A variable of the agent's. One that comes from elsewhere is not ours, and goes."""
    if value:
        os.environ[name] = value
    else:
        os.environ.pop(name, None)


def _names(stop: Stopping) -> str:
    return ", ".join(f"{p.comm} (pid {p.pid}, state {p.state})" for p in stop.left)
