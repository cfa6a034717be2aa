"""The guard: the pod's first process. It forks the agent, runs what the agent orders, and outlives it to clean up.

PID 1 in a container, a child subreaper elsewhere: whatever loses its parent falls to it, so everything that an engine
ever starts stays a descendant and can be found and killed. It is the only caller of wait and the only one that starts
processes. It decides nothing about the group; it keeps the promises that must hold without a healthy agent:

- the agent dies by a signal: the tree is killed at once; then a new agent is forked (``Policy``), or exit 128 + n;
- the agent exits with a code: the tree is killed, and the guard exits with that code;
- the deadline passes (``Deadline``): the tree is killed and nothing is started until the agent sets a new one;
- the agent is frozen: nothing in it is waited for. When a signal asked the launcher to end, the agent has not read it
  for 10 s and the tree is dead, the guard exits with 128 + n.

It lives as long as the pod and must stay small: neither dataclasses (which imports inspect, 2 MiB) nor asyncio,
subprocess, logging, click or anything of the network may be imported here, so its records are named tuples and plain
classes. Nor may anything block: every descriptor is non-blocking but the launcher's own stdout and stderr, which only
the threads of ``output`` touch.
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

from launcher.guard import children, execute, signals, stops
from launcher.guard.agent_process import OUTPUT_BOUND, QUICK, QUICK_DEATHS, SIGNAL_BOUND, SOFTWARE, AgentProcess
from launcher.guard.channel import (
    Deadline,
    Deliver,
    Exited,
    Guarding,
    Handoff,
    Incarnation,
    Kill,
    LeaseExpired,
    NotStarted,
    Orphaned,
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
)
from launcher.guard.children import Child
from launcher.guard.output import Relay
from launcher.guard.stopping import Stopping
from launcher.node import tree
from launcher.node.lateness import Lateness

#: Until an agent that could not be forked is tried again.
FORK_PAUSE = 1.0
#: How long an agent may leave a request to end unread before the guard ends without it.
FROZEN = 10.0


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
        stops.kill_everything(os.getpid())
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
        self._wakeup = signals.catch()
        self._poll.register(self._wakeup, select.POLLIN)
        self._agent = AgentProcess(agent_main, self._poll)
        self._output = Relay(self._agent, self._poll)
        self._code: int | None = None  #: set: the loop ends
        self._ending: int | None = None  #: the agent ended: exit with this when the tree is dead
        self._children: dict[int, Child] = {}  #: by pid, in order of start
        self._statuses: dict[int, Child] = {}  #: by the descriptor that tells how exec went
        self._reaped = 0
        self._stops = stops.Stops(self._pid, self._agent, self._children, self._reap, self._output.drain_all)
        self._lease: float | None = None
        self._expired = False  #: the lease passed and no new one was set
        self._lease_kill = False  #: and the tree is not yet known to be dead
        self._asked: int | None = None  #: the first signal that asked the launcher to end
        self._next_look = 0.0  #: at an agent that leaves this signal unread
        self._unread_since = 0.0
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
            elif fd in self._output:
                self._output.drain(fd)
            elif fd in self._statuses:
                self._learn_exec(self._statuses[fd])
        now = time.monotonic()
        self._check_lease(now)
        self._stops.advance(now)
        self._check_agent(now)
        self._output.update(now)

    def _timeout(self) -> float:
        """Seconds until something is due without an event."""
        now = time.monotonic()
        due = self._stops.due + self._output.due(now)
        if self._lease is not None and not self._expired:
            due.append(self._lease)
        if self._agent.restart_at is not None:
            due.append(self._agent.restart_at)
        if self._asked is not None and self._ending is None:
            due.append(self._next_look)
        # poll counts in milliseconds, in an int, and Python rounds up
        return min(3600.0, max(0.0, min(due) - now)) if due else 3600.0

    # ------------------------------------------------------------------------------------------------- signals

    def _read_signals(self) -> None:
        child_ended = False
        with contextlib.suppress(BlockingIOError):
            while numbers := os.read(self._wakeup, 4096):
                for number in numbers:
                    if number == signal.SIGCHLD:
                        child_ended = True
                    else:
                        self._received(number)
        if child_ended:
            self._reap()

    def _received(self, number: int) -> None:
        if number in signals.ENDING and self._asked is None:
            self._asked, self._unread_since = number, time.monotonic()
        self._agent.report(SignalReceived(number), SIGNAL_BOUND)

    def _reap(self) -> int:
        """Collect every process that has ended: roots, the agent, orphans. Returns how many ever ended."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return self._reaped
            if pid == 0:
                return self._reaped
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
            self._output.drain(fd, last=True)
        del self._children[child.pid]
        self._stops.hasten()
        if child.failed:
            return
        killed = os.WIFSIGNALED(status)
        code = None if killed else os.WEXITSTATUS(status)
        number = os.WTERMSIG(status) if killed else None
        self._agent.report(Exited(child.id, code, number, child.tail, child.told, noticed, doubt))

    def _say(self, text: str) -> None:
        self._output.say(2, f"launcher guard: {text}\n")

    # ---------------------------------------------------------------------------------------------------- agent

    def _start_agent(self) -> None:
        self._lease, self._expired, self._lease_kill = None, False, False
        try:
            self._agent.start()
        except OSError as error:  # no process, memory or descriptor at the moment: no bug
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
        then = self._restart_agent if died and self._agent.restarts else self._end
        if died:
            anew = ", then it is started anew" if self._agent.restarts else ""
            self._say(f"the agent was {self._agent.last_death}; its processes are killed{anew}")
        self._stops.clear()
        self._stops.kill_all(then)

    def _restart_agent(self, stop: Stopping, now: float) -> None:
        if not stop.clean:
            self._say(f"not everything of the former agent could be killed: {_names(stop)}")
            if self._asked is None:  # an agent's first word is that nothing is left: there is none until that is true
                self._stops.kill_all(self._restart_agent)
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

    def _check_agent(self, now: float) -> None:
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
        self._output.flush()
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
            self._stop(order.id, order.ids, order.grace, order.examine)
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
            self._agent.restarts = order.restart_agent
        elif isinstance(order, Incarnation):
            self._agent.replaces.append(order.value)
        elif isinstance(order, Remember):
            self._agent.last_epoch = order.text[:100_000]
        elif isinstance(order, Say):
            self._output.say(order.stream, order.text)

    def _spawn(self, order: Spawn) -> None:
        self._check_lease(time.monotonic())
        if self._expired and not order.capture:  # a question is no engine, and after a kill there is much to ask
            self._agent.report(NotStarted(order.id, 62, "the lease has run out"))  # ETIME
        elif self._stops.stopping_everything:
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
            self._output.add(child)

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

    def _stop(self, order: str, ids: Collection[str] | None, grace: float | None, examine: float = 0.0) -> None:
        roots = [child.key for child in reversed(self._roots(ids))]
        stop = self._stops.find(roots, ids is None)
        if stop is None:
            stop = self._stops.add(roots, everything=ids is None, grace=grace, then=self._report_stopped)
            if examine > 0:
                self._stops.examine(stop, order, examine)
        else:
            stop.shorten(time.monotonic(), grace)
            self._stops.hasten()
        stop.orders.append(order)

    def _report_stopped(self, stop: Stopping, now: float) -> None:
        left = tuple((p.pid, p.start_time, p.comm, p.state) for p in stop.left)
        for order in stop.orders:
            self._agent.report(Stopped(order, stop.clean, left, now - stop.began))

    def _check_lease(self, now: float) -> None:
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
                self._stops.kill_all(then)

        self._stops.kill_all(then)

    def _tree(self) -> list[tree.Proc]:
        """What lives below the guard, the agent apart."""
        return [p for p in tree.descendants(self._pid) if p.pid != self._agent.pid and not p.gone]

    def _leave(self, code: int) -> int:
        """The tree is dead (or the agent frozen over a dead tree): the last output, and out."""
        if self._agent.pid is not None:
            tree.send(self._agent.pid, signal.SIGKILL)
        self._output.finish()
        return code


def _names(stop: Stopping) -> str:
    return ", ".join(f"{p.comm} (pid {p.pid}, state {p.state})" for p in stop.left)
