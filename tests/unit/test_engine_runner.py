"""One pod's engine between its member and its guard, where things overlap. The test is the guard; all else is real."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from launcher.agent import cleanup
from launcher.agent.context import AgentContext
from launcher.agent.engine_runner import EngineRunner
from launcher.agent.guard_client import GuardClient
from launcher.engines.base import Checked, Engine, PlanContext
from launcher.group import member as me
from launcher.group import messages as m
from launcher.group.config import MemberConfig
from launcher.group.events import Send
from launcher.guard import channel as guard
from launcher.log import Log
from launcher.model import Cause, CauseKind, Epoch, Identity, NodeFacts, Plan, Process, Stage
from launcher.node import leftovers
from launcher.node.pressure import Pressure
from launcher.settings import Settings

MEMBERS = (("a", "inc"), ("127.0.0.1", "127.0.0.1"))  # incarnations, addresses
LOST = Cause(CauseKind.LOST, 0, "its launcher is gone")


class Sleeper(Engine):
    """One process, and a folder of its own for each epoch."""

    name = "sleeper"
    summary = "sleeps"

    def distributions(self, settings: Settings) -> tuple[str, ...]:
        return ()

    def interpreter(self, settings: Settings) -> str:
        return "python3"

    def plan(self, context: PlanContext, rank: int) -> Plan:
        folder = f"/tmp/no-such-folder-of-epoch-{context.shared.epoch.n}"
        return Plan(rank, (Stage("serve", (Process("engine", ("sleep", "9")),)),), scratch=(folder,))

    def fingerprint(self, settings: Settings, facts: NodeFacts) -> Mapping[str, str]:
        return {}

    def check(self, settings: Settings, identity: Identity, facts: NodeFacts) -> Checked:
        return Checked()


class Pod:
    """Rank 1 of 2, joined to a group. ``orders`` are what the guard was told, ``said`` what the leader was."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.guard = ours
        self.said: list[Any] = []
        self.orders: list[Any] = []
        self.log: list[str] = []
        self.deadline: float | None = None
        self._frames = guard.Frames()
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(1)
        self._loop.set_default_executor(self._executor)
        self.member = me.Member(MemberConfig("g", 1, 2, "n", "inc"), 0.0)
        self.member.address = "127.0.0.1"
        client = GuardClient(guard.GuardChannel(theirs.detach()), self._heard)
        client.open()
        context = AgentContext(
            Settings(),
            Identity(group="g", rank=1, size=2, name="n", leader="l", source="x"),
            {},
            "inc",
            None,
            client,
            Log(self.log.append, 1, "text", "info"),
            Pressure(0.0),
            self.tell,
            self._loop.create_task,
        )
        self.engine = EngineRunner(context, Sleeper(), lambda: self.member.state, _nothing)
        self.tell(me.Gone())
        self.hear(me.Connected(), m.Accepted("L", 1), m.Ack(2, 2))

    def _heard(self, report: guard.Report) -> None:
        self.engine.hear(report)

    def close(self) -> None:
        self.guard.close()
        self._executor.shutdown(wait=False)

    def tell(self, event: Any) -> None:
        for action in self.member.handle(event, 0.0):
            if isinstance(action, me.DoPrepare):
                self._loop.create_task(self.engine.prepare(action.shared))
            elif isinstance(action, me.DoStage):
                self.engine.start_stage(action.stage)
            elif isinstance(action, me.DoStop):
                self.engine.stop(action.grace, action.cause)
            elif isinstance(action, me.SetDeadline):
                self.deadline = action.at
            elif isinstance(action, Send) and not isinstance(action.message, m.Ping):
                self.said.append(action.message)

    def hear(self, *events: Any) -> None:
        for event in events:
            self.tell(event)

    def hold(self) -> Callable[[], None]:
        """Whatever runs in a thread from now on (looking at /dev/shm, removing folders) waits for the call of this."""
        gate = threading.Event()
        self._executor.submit(gate.wait, 30)
        return gate.set

    def prompt(self) -> None:
        """From now on threads run at once again; what is held stays held."""
        self._loop.set_default_executor(ThreadPoolExecutor(1))

    def report(self, *reports: guard.Report) -> None:
        for report in reports:
            self.guard.sendall(guard.encode(report))

    async def ordered(self, kind: type[Any], count: int = 1) -> Any:
        """The ``count``-th order of a kind, when it has come."""

        def found() -> Any:
            with contextlib.suppress(BlockingIOError):
                self.orders += self._frames.feed(self.guard.recv(1 << 20))
            all_of_it = [order for order in self.orders if isinstance(order, kind)]
            return all_of_it[count - 1] if len(all_of_it) >= count else None

        await until(found)
        return found()

    async def start(self, epoch: Epoch, spawns: int) -> guard.Spawn:
        """Prepare and start an epoch: its process runs."""
        self.hear(m.Prepare(epoch, *MEMBERS))
        await until(lambda: self.member.state is me.State.STARTING)
        self.hear(m.Start(epoch, 0))
        spawn: guard.Spawn = await self.ordered(guard.Spawn, spawns)
        self.report(guard.Started(spawn.id, 4242, 1))
        await until(lambda: self.engine.stages.pids == (4242,))
        return spawn


async def _nothing() -> None:
    """No group link to close."""


async def until(true: Callable[[], object], seconds: float = 90.0) -> None:
    end = asyncio.get_running_loop().time() + seconds
    while not true():
        assert asyncio.get_running_loop().time() < end
        await asyncio.sleep(0.005)


async def settle() -> None:
    """All that is ready to happen has happened, threads and the guard's line included."""
    for _ in range(20):
        await asyncio.sleep(0.005)


def in_a_pod(story: Callable[[Pod], Awaitable[None]]) -> None:
    async def run() -> None:
        pod = Pod()
        try:
            await story(pod)
        finally:
            pod.close()

    asyncio.run(run())


def epoch(n: int) -> Epoch:
    return Epoch(n, "L")


def test_a_look_around_after_a_stop_says_nothing_once_a_later_stop_came() -> None:
    """Else the look of epoch 1's second stop would say `stopped` of epoch 2, whose process lives."""

    async def story(pod: Pod) -> None:
        await pod.start(epoch(1), spawns=1)
        first = pod.hold()
        pod.hear(m.Stop(epoch(1), LOST, 3.0))
        pod.report(guard.Stopped((await pod.ordered(guard.Stop)).id, True, (), 0.1))
        await settle()
        second = pod.hold()
        pod.hear(m.Stop(epoch(1), LOST, 1.0))  # sooner, as after a drain
        pod.report(guard.Stopped((await pod.ordered(guard.Stop, 2)).id, True, (), 0.1))
        await settle()
        first()
        await settle()
        assert pod.member.state is me.State.STOPPING, "the second look is not over"
        second()
        await until(lambda: pod.member.state is me.State.SEATED)
        assert [s.epoch for s in pod.said if isinstance(s, m.Stopped)] == [epoch(1)]
        pod.hear(m.Ack(3, 3))
        await pod.start(epoch(2), spawns=2)
        pod.hear(m.Stop(epoch(2), LOST, 3.0))
        await settle()
        assert pod.member.state is me.State.STOPPING and pod.engine.stages.pids == (4242,)
        assert [s.epoch for s in pod.said if isinstance(s, m.Stopped)] == [epoch(1)]
        assert pod.deadline is not None

    in_a_pod(story)


def test_what_could_not_be_killed_is_not_killed_again_in_a_later_epoch() -> None:
    """One stop was not clean, a later one was: the kill that is repeated a second after the first stays away."""

    async def story(pod: Pod) -> None:
        await pod.start(epoch(1), spawns=1)
        pod.hear(m.Stop(epoch(1), LOST, 3.0))
        left = ((4242, 1, "sleep", "D"),)
        pod.report(guard.Stopped((await pod.ordered(guard.Stop)).id, False, left, 10.0))
        await settle()
        pod.hear(m.Stop(epoch(1), LOST, 1.0))
        pod.report(guard.Stopped((await pod.ordered(guard.Stop, 2)).id, True, (), 0.1))
        await until(lambda: pod.member.state is me.State.SEATED)
        pod.hear(m.Ack(3, 3))
        await pod.start(epoch(2), spawns=2)
        await asyncio.sleep(1.2)
        await pod.ordered(guard.Spawn, 2)
        assert not [order for order in pod.orders if isinstance(order, guard.Kill)]

    in_a_pod(story)


def test_a_preparation_that_begins_after_its_stop_does_nothing() -> None:
    """Whether rank 0's address can be reached is tried first, for seconds; the epoch was stopped meanwhile."""

    async def story(pod: Pod) -> None:
        pod.hear(m.Prepare(epoch(1), *MEMBERS), m.Stop(epoch(1), LOST, 3.0))
        pod.report(guard.Stopped((await pod.ordered(guard.Stop)).id, True, (), 0.1))
        await until(lambda: pod.member.state is me.State.SEATED)
        assert pod.member.shared is not None
        await pod.engine.prepare(pod.member.shared)
        assert pod.engine.epoch is None and pod.engine.plan is None

    in_a_pod(story)


def test_a_preparation_that_ends_late_changes_nothing_of_the_next_epoch() -> None:
    """It was stopped while it removed an old epoch's folder; the next epoch runs by the time that this is done."""

    async def story(pod: Pod) -> None:
        for n in (1, 2):
            await pod.start(epoch(n), spawns=n)
            pod.hear(m.Stop(epoch(n), LOST, 3.0))
            pod.report(guard.Stopped((await pod.ordered(guard.Stop, n)).id, True, (), 0.1))
            await until(lambda: pod.member.state is me.State.SEATED)
            pod.hear(m.Ack(2 + n, 2 + n))
        removed = pod.hold()
        pod.hear(m.Prepare(epoch(3), *MEMBERS))
        await settle()
        assert pod.member.state is me.State.PREPARING, "the third folder makes the first one old"
        pod.hear(m.Stop(epoch(3), LOST, 3.0))
        pod.prompt()
        pod.report(guard.Stopped((await pod.ordered(guard.Stop, 3)).id, True, (), 0.1))
        await until(lambda: pod.member.state is me.State.SEATED)
        pod.hear(m.Ack(5, 5))
        spawn = await pod.start(epoch(4), spawns=3)
        removed()
        await settle()
        assert (pod.engine.epoch, pod.engine.stages.pids) == (epoch(4), (4242,))
        pod.report(guard.Exited(spawn.id, 1, None, "boom"))
        await until(lambda: [s for s in pod.said if isinstance(s, m.Failed)])
        assert pod.said[-1].epoch == epoch(4)

    in_a_pod(story)


def test_a_start_after_a_drain_is_no_drain() -> None:
    """A failure before it serves is an error in the log, and vital processes count."""

    async def story(pod: Pod) -> None:
        await pod.start(epoch(1), spawns=1)
        pod.engine.serve()
        pod.engine.drain(10.0)
        pod.hear(m.Stop(epoch(1), LOST, 3.0))
        pod.report(guard.Stopped((await pod.ordered(guard.Stop)).id, True, (), 0.1))
        await until(lambda: pod.member.state is me.State.SEATED)
        pod.hear(m.Ack(3, 3))
        spawn = await pod.start(epoch(2), spawns=2)
        assert not pod.engine.draining
        pod.report(guard.Exited(spawn.id, 1, None, "boom"))
        await until(lambda: [line for line in pod.log if "ended with exit code 1" in line])
        assert any("ERROR failure" in line for line in pod.log)

    in_a_pod(story)


def test_memory_of_a_gpu_that_never_comes_back_does_not_keep_the_group_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may be somebody else's, where a GPU is shared."""
    monkeypatch.setattr(cleanup, "GPU_TRIES", 1)
    asked = 0

    async def nvidia_smi(pod: Pod) -> None:
        nonlocal asked
        while True:
            order = await pod.ordered(guard.Spawn, asked + 1)
            asked += 1
            pod.report(guard.Started(order.id, 4242, 1), guard.Output(order.id, 1, "GPU-a, 70000\n"))
            pod.report(guard.Exited(order.id, 0, None, ""))

    async def story(pod: Pod) -> None:
        pod.engine.cleanup.before = cleanup.Before(leftovers.snapshot(), {"GPU-a": 3}, None)
        pod.engine.cleanup.not_back = "GPU GPU-a holds 69997 MiB more than before the engine"
        answering = asyncio.create_task(nvidia_smi(pod))
        for n in range(1, 4):
            pod.hear(m.Prepare(epoch(n), *MEMBERS))
            await until(lambda n=n: [s for s in pod.said if isinstance(s, m.Unable) and s.epoch == epoch(n)])  # type: ignore[misc]
            assert "GPU-a holds 69997 MiB" in pod.said[-1].cause.text
            pod.hear(m.Stop(epoch(n), LOST, 3.0))
            pod.report(guard.Stopped((await pod.ordered(guard.Stop, n)).id, True, (), 0.1))
            await until(lambda: pod.member.state is me.State.SEATED)
            pod.hear(m.Ack(n + 2, n + 2))
        pod.hear(m.Prepare(epoch(4), *MEMBERS))
        await until(lambda: pod.member.state is me.State.STARTING)
        assert any("is the GPU shared? Going on" in line for line in pod.log)
        answering.cancel()

    in_a_pod(story)
