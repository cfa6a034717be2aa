"""Deaths deep in a tree, with real processes: who was killed, who went along, and what is known on an older kernel."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from launcher.guard.children import adopt_orphans
from launcher.node import exit_watcher, tree
from launcher.node.exit_watcher import End, Vital
from tests.kernel import tells_the_reaped

pytestmark = pytest.mark.timing

KILLED = int(signal.SIGKILL)  # the wait status

ROOT = """
import ctypes, os, signal, sys, time
kind = sys.argv[1]
ready, say = os.pipe()
pid = os.fork()
if pid == 0:
    if "bound" in kind:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if "main thread ends" in kind:
        import threading
        threading.Thread(target=time.sleep, args=(60,)).start()
        os.write(say, b"x")
        ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)  # exit(2), of one thread
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(0))
    os.write(say, b"x")
    time.sleep(60)
    os._exit(0)
os.read(ready, 1)
print(pid, flush=True)
if "ends first" in kind:
    sys.stdin.readline()
    os._exit(1)
os.waitpid(pid, 0)  # at once, as an engine does that watches its workers
if "ends with it" in kind:
    os._exit(1)
time.sleep(60)
"""


class Pod:
    """A root with a worker, and what `Vital` says of it; this process is the guard."""

    def __init__(self, root: subprocess.Popen[str], worker: int) -> None:
        self.root, self.worker = root, worker
        self.ends: list[End] = []
        self.reaped = False
        self.vital = Vital(self.ends.append, lambda: () if self.reaped else (root.pid,))
        found = tree.read(worker)
        assert found is not None
        self.vital.see([found], [""])

    async def guard(self) -> None:
        """Reap the root, then what falls to us, and say so, as the guard does."""
        while True:
            if self.root.poll() is not None:
                self.reaped = True
                if reaped(self.worker):
                    self.vital.orphaned(self.worker)
            await asyncio.sleep(0.002)

    async def until_told(self) -> End:
        guard = asyncio.ensure_future(self.guard())
        for _ in range(9000):
            await asyncio.sleep(0.01)
            if self.ends:
                break
        guard.cancel()
        (end,) = self.ends
        assert end.pid == self.worker
        return end


def reaped(pid: int) -> bool:
    """Whether it has ended and fell to us."""
    with suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    return False


@contextmanager
def started(kind: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    adopt_orphans()
    root = subprocess.Popen(
        [sys.executable, "-c", ROOT, kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert root.stdout is not None
    worker = int(root.stdout.readline())
    seen = tree.read(worker)
    try:
        yield root, worker
    finally:
        root.kill()
        root.wait()
        now = tree.read(worker)
        if seen and now and now.key == seen.key:  # else its number may be somebody else's by now
            os.kill(worker, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(worker, 0)
        root.stdout.close()
        assert root.stdin is not None
        with suppress(BrokenPipeError):
            root.stdin.close()


def told(kind: str, act: Callable[[Pod], Awaitable[None]]) -> End:
    async def run(root: subprocess.Popen[str], worker: int) -> End:
        pod = Pod(root, worker)
        await act(pod)
        return await pod.until_told()

    with started(kind) as (root, worker):
        return asyncio.run(run(root, worker))


async def kill_worker(pod: Pod) -> None:
    os.kill(pod.worker, signal.SIGKILL)


async def end_root(pod: Pod) -> None:
    assert pod.root.stdin is not None
    pod.root.stdin.write("go\n")
    pod.root.stdin.flush()


async def kill_root(pod: Pod) -> None:
    os.kill(pod.root.pid, signal.SIGKILL)


@pytest.mark.parametrize("kind", ["lives on", "ends with it"])
def test_a_worker_that_was_killed(kind: str) -> None:
    """However fast its parent reaps it, and also when its parent ends in the same millisecond."""
    if not tells_the_reaped():
        pytest.skip("a kernel before 6.15")
    for _ in range(5):
        end = told(kind, kill_worker)
        assert (end.status, end.killed, end.along) == (KILLED, True, False)


@pytest.mark.parametrize("act", [end_root, kill_root])
def test_a_worker_that_its_parent_takes_along_is_nobodys_victim(act: Callable[[Pod], Awaitable[None]]) -> None:
    """PR_SET_PDEATHSIG: it is killed because its parent ended, and the guard reaps it."""
    for _ in range(3):
        end = told("bound, ends first", act)
        assert end.along and end.status in (KILLED, None)


def test_an_older_kernel_never_tells_what_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exit_watcher, "PIDFD_GET_INFO", 0)  # the kernel refuses it, as one before 6.13 does
    for kind in ("lives on", "ends with it"):
        end = told(kind, kill_worker)
        assert end.status in (KILLED, None)
        assert not (end.status is None and kind == "lives on" and end.along)


def test_what_had_begun_to_end_before_a_stop_is_told_however_late() -> None:
    async def stop(pod: Pod) -> None:
        for _ in range(9000):
            if tree.ending(pod.worker):
                break
            await asyncio.sleep(0.01)
        pod.vital.forget()  # a stop is ordered; it is not done with its end
        assert not pod.ends
        await asyncio.sleep(0.05)
        os.kill(pod.worker, signal.SIGKILL)

    end = told("main thread ends", stop)
    assert end.age >= 0.05 and end.killed and not end.along


@pytest.mark.parametrize("stopped", [True, False])
def test_an_end_in_good_order_waits_for_a_better_word(stopped: bool) -> None:
    """Processes that go with a neighbour end so, mostly. If a stop comes meanwhile, its cause is better than this."""

    async def end_worker(pod: Pod) -> None:
        os.kill(pod.worker, signal.SIGUSR1)
        for _ in range(1_000_000):
            if not pod.vital._watched:
                break
            await asyncio.sleep(0)
        assert not pod.ends
        if stopped:
            pod.vital.forget()

    if not tells_the_reaped():
        pytest.skip("a kernel before 6.15")
    end = told("lives on", end_worker)
    assert (end.along, end.status) == (stopped, 0)
    assert stopped or end.age >= exit_watcher.HOLD
    assert not end.parent_lives  # of the engine's processes, none is known to be its parent


def test_what_ends_after_a_stop_is_the_stops_own_doing() -> None:
    async def run(root: subprocess.Popen[str], worker: int) -> list[End]:
        pod = Pod(root, worker)
        pod.vital.forget()
        await kill_worker(pod)
        await asyncio.sleep(0.2)
        pod.vital.settle()
        return pod.ends

    with started("lives on") as (root, worker):
        assert asyncio.run(run(root, worker)) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_that_asks_is_no_kill(number: int) -> None:
    assert not exit_watcher.was_killed(number)
    assert exit_watcher.was_killed(signal.SIGSEGV | 0x80)  # with a core
    assert not exit_watcher.was_killed(1 << 8)
    assert not exit_watcher.was_killed(None)


def test_a_python_without_pidfds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some are built without, and gVisor has none: then the next look at the tree tells."""
    monkeypatch.delattr(os, "pidfd_open")
    own = tree.read(os.getpid())
    assert own is not None

    async def story() -> None:
        watching = Vital(lambda _: None, lambda: ())
        watching.see([own], (own.comm,))
        watching.forget()
        watching.settle()

    asyncio.run(story())


def test_without_pidfds_the_next_look_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(pid: int, flags: int = 0) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refused)

    async def story(root: subprocess.Popen[str], worker: int) -> None:
        pod = Pod(root, worker)
        assert pod.vital.polls
        pod.vital.see([found for found in (tree.read(worker),) if found], [""])
        assert pod.ends == []
        os.kill(worker, signal.SIGKILL)
        for _ in range(6000):
            await asyncio.sleep(0.01)
            pod.vital.see([found for found in (tree.read(worker),) if found], [""])
            if pod.ends:
                break
        (end,) = pod.ends
        assert end.pid == worker

    with started("lives on") as (root, worker):
        asyncio.run(story(root, worker))
