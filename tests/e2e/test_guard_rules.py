"""Each rule of the guard, in a scene of its own; and each rule broken, which its scene must show.

The broken ones are real processes, too: `programs/broken_guard.py` changes one place of the guard's source. They are a
suite apart (`-m mutations`), for most of them show by what never happens.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.guard.channel import Deadline, Kill, Order, Spawn, Stop
from launcher.node.tree import Key, descendants, read
from tests.e2e.programs.broken_guard import ALL
from tests.e2e.programs.guarded import Launched, until

#: A root that does not listen to TERM (but says so) and a child of it.
ENGINE = ("sh", "-c", "trap 'echo asked' TERM; sleep 77 & while kill -0 $!; do wait $!; done 2>/dev/null")
#: What never happens without a rule is not waited for as long as what must happen with it.
PATIENCE, SHORT = 60.0, 8.0


class Stage:
    """Where a scene plays: a launched guard, whole or with a rule broken."""

    def __init__(self, folder: Path, broken: str) -> None:
        self.folder = folder
        self.let_go, self.bug, self.go = folder / "let-go", folder / "bug", folder / "go"
        self.patience = SHORT if broken else PATIENCE
        self._env = {"MINI_BROKEN": broken}
        self._seen: set[Key] = set()
        self.launched: Launched

    def start(self, *argv: str, **options: Any) -> Launched:
        self.launched = Launched(self.folder, *argv, program="broken_guard.py", env=self._env, **options)
        self.heard("Guarding")
        return self.launched

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        return until(condition, what, self.patience)

    def heard(self, kind: str, **fields: object) -> dict[str, Any]:
        """The first report of a kind."""
        found: dict[str, Any] = self.until(lambda: self.launched.all_reported(kind, **fields), f"{kind} {fields}")[0]
        return found

    def refused(self, name: str) -> bool:
        """Whether what was ordered to start was not started."""
        started, not_started = self.launched.all_reported, self.launched.all_reported
        self.until(lambda: started("Started", id=name) or not_started("NotStarted", id=name), f"an answer for {name}")
        return not started("Started", id=name)

    def order(self, *orders: Order) -> None:
        for order in orders:
            self.launched.order(order)

    def spawn(self, name: str, *argv: str, capture: bool = False) -> Spawn:
        return Spawn(name, name, argv or ENGINE, dict(os.environ), capture=capture)

    def tree(self, name: str = "main", life: int = 0) -> list[Key]:
        """The root of this name and its child; of the agent's so many-th life."""
        root = self.until(lambda: self.launched.all_reported("Started", id=name)[life:], f"{name} started")[0]["pid"]
        child = self.until(lambda: [p for p in descendants(root) if p.comm == "sleep"], "the engine's child")[0]
        keys = [p.key for p in (read(root), child) if p is not None]
        self._seen.update(keys)
        return keys

    def lives(self, keys: list[Key]) -> list[int]:
        return [pid for pid, since in keys if (p := read(pid)) is not None and p.start_time == since and not p.gone]

    def ends(self, code: int) -> None:
        """The guard ends with this code."""
        assert self.launched.wait(self.patience) == code

    def agents(self) -> list[dict[str, Any]]:
        return self.launched.all_reported("agent")

    def ended_or_second_agent(self) -> bool:
        """True: a second agent."""
        self.until(lambda: self.launched.process.poll() is not None or self.agents()[1:], "an end or a second agent")
        return bool(self.agents()[1:])

    def close(self) -> None:
        self.let_go.touch()
        if hasattr(self, "launched"):
            self.launched.close()
        for pid in self.lives(list(self._seen)):
            os.kill(pid, signal.SIGKILL)


# ------------------------------------------------------------------------------------------------------ the scenes


def agent_killed(stage: Stage) -> None:
    """kill -9 of the agent: its tree is dead, unasked, when the guard ends with 137."""
    launched = stage.start(*ENGINE)
    tree = stage.tree()
    os.kill(launched.agent, signal.SIGKILL)
    assert not stage.ended_or_second_agent()
    stage.ends(137)
    assert not stage.lives(tree)
    assert b"asked" not in launched.process.stdout.read()  # type: ignore[union-attr]


def agent_comes_back(stage: Stage) -> None:
    launched = stage.start(*ENGINE, restart=1)
    tree, first = stage.tree(), launched.agent
    os.kill(first, signal.SIGKILL)
    assert stage.ended_or_second_agent()
    assert not stage.lives(tree)
    assert stage.agents()[1].get("LAUNCHER_REPLACES") == f"life{first}"


def unkillable_tree(stage: Stage) -> None:
    """A process in state D outlives its agent: there is no new one until it is gone."""
    launched = stage.start(*ENGINE, restart=1, let_go=stage.let_go)
    tree = stage.tree()
    os.kill(launched.agent, signal.SIGKILL)
    said = bytearray()
    assert launched.process.stderr is not None
    os.set_blocking(launched.process.stderr.fileno(), False)

    def twice_or_again() -> bool:
        said.extend(launched.process.stderr.read() or b"")  # type: ignore[union-attr]
        return said.count(b"could be killed") >= 2 or bool(stage.agents()[1:])

    stage.until(twice_or_again, "a word of what cannot be killed, twice")
    assert not stage.agents()[1:]
    stage.let_go.touch()
    stage.until(lambda: stage.agents()[1:], "a second agent")
    assert not stage.lives(tree)


def agent_exits(stage: Stage) -> None:
    """One of two roots ends, and the agent exits with its code: the other is dead when the guard ends."""
    stage.start("sh", "-c", f"while [ ! -e {stage.go} ]; do sleep 0.05; done; exit 7")
    stage.order(stage.spawn("other"))
    tree = stage.tree("other")
    stage.go.touch()
    stage.ends(7)
    assert not stage.lives(tree)


def lease_passes(stage: Stage) -> None:
    """All is killed; nothing but questions is started until there is a new deadline; and so again."""
    launched = stage.start(*ENGINE, stay=1)
    tree = stage.tree()
    stage.order(Deadline(time.monotonic() - 1))
    assert stage.heard("LeaseExpired")["clean"] and not stage.lives(tree)
    stage.order(stage.spawn("late"), stage.spawn("question", "echo", "70000", capture=True))
    assert stage.refused("late") and not stage.refused("question")
    stage.order(Deadline(time.monotonic() + 1000), stage.spawn("again"))
    assert not stage.refused("again")
    tree = stage.tree("again")
    stage.order(Deadline(time.monotonic() - 1))
    stage.until(lambda: launched.all_reported("LeaseExpired")[1:], "a second expiry")
    assert not stage.lives(tree)


def order_on_a_passed_deadline(stage: Stage) -> None:
    """The order to start is read together with a deadline that has passed: the guard was late."""
    launched = stage.start(stay=1)
    os.kill(launched.pid, signal.SIGSTOP)
    stage.order(Deadline(time.monotonic() - 1), stage.spawn("late"))
    stage.until(lambda: launched.all_reported("ordered")[1:], "both orders sent")
    os.kill(launched.pid, signal.SIGCONT)
    assert stage.refused("late")


def agent_killed_after_its_lease(stage: Stage) -> None:
    """The agent's deadline has passed, and then it is killed: the next one is free to start."""
    launched = stage.start(*ENGINE, restart=1, stay=1)
    stage.tree()
    stage.order(Deadline(time.monotonic() - 1))
    stage.heard("LeaseExpired", clean=True)
    os.kill(launched.agent, signal.SIGKILL)
    assert stage.ended_or_second_agent()
    stage.until(lambda: launched.all_reported("Started")[1:] or launched.all_reported("NotStarted"), "an answer")
    assert not launched.all_reported("NotStarted")


def agent_killed_in_its_lease_kill(stage: Stage) -> None:
    """The same while what was to be killed would not go: the lease of the next one kills as the first one did."""
    launched = stage.start(*ENGINE, restart=1, stay=1, let_go=stage.let_go)
    stage.tree()
    stage.order(Deadline(time.monotonic() - 1))
    stage.heard("LeaseExpired", clean=False)
    os.kill(launched.agent, signal.SIGKILL)
    stage.let_go.touch()
    tree = stage.tree(life=1)
    before = len(launched.all_reported("LeaseExpired", clean=True))
    stage.order(Deadline(time.monotonic() - 1))
    stage.until(lambda: launched.all_reported("LeaseExpired", clean=True)[before:], "the second agent's expiry")
    assert not stage.lives(tree)


def unkillable_lease(stage: Stage) -> None:
    """What a lease kill could not end is told, and ended when it can be."""
    stage.start(*ENGINE, stay=1, let_go=stage.let_go)
    tree = stage.tree()
    stage.order(Deadline(time.monotonic() - 1))
    stage.heard("LeaseExpired", clean=False)
    stage.let_go.touch()
    stage.heard("LeaseExpired", clean=True)
    assert not stage.lives(tree)


def order_in_a_stop(stage: Stage) -> None:
    launched = stage.start(stay=1)
    stage.order(stage.spawn("one"))
    stage.tree("one")
    stage.order(stage.spawn("one"))
    stage.until(lambda: launched.all_reported("NotStarted") or launched.all_reported("Started")[1:], "an answer")
    assert launched.all_reported("NotStarted", id="one", errno=17)
    stage.order(Stop("s", None, 1000.0), stage.spawn("late"))
    assert stage.refused("late")
    stage.order(Kill("k"))
    assert stage.heard("Stopped", id="s")["clean"]


def agent_frozen(stage: Stage) -> None:
    launched = stage.start(stay=1, frozen=0.5)
    os.kill(launched.agent, signal.SIGSTOP)
    os.kill(launched.pid, signal.SIGTERM)
    stage.ends(143)


def agent_frozen_over_a_tree(stage: Stage) -> None:
    """No lease, an agent that is frozen, and TERM: the guard stays as long as the tree does."""
    launched = stage.start(*ENGINE, stay=1, frozen=0.2)
    tree = stage.tree()
    os.kill(launched.agent, signal.SIGSTOP)
    os.kill(launched.pid, signal.SIGTERM)
    end = time.monotonic() + (2.5 if stage.patience == PATIENCE else 4 * SHORT)
    while time.monotonic() < end:
        assert launched.process.poll() is None, "it left a tree behind"
        time.sleep(0.05)
    assert len(stage.lives(tree)) == 2
    os.kill(launched.agent, signal.SIGKILL)
    stage.ends(137)
    assert not stage.lives(tree)


def asked_and_agent_killed(stage: Stage) -> None:
    """TERM comes while the agent is frozen, and then it is killed: the next one hears of it."""
    launched = stage.start(*ENGINE, restart=1, stay=1, grace=0.1)
    stage.tree()
    os.kill(launched.agent, signal.SIGSTOP)
    os.kill(launched.pid, signal.SIGTERM)
    os.kill(launched.agent, signal.SIGKILL)
    assert stage.ended_or_second_agent()
    stage.heard("SignalReceived", number=15)


def agent_dies_for_ever(stage: Stage) -> None:
    launched = stage.start(restart=1, stay=1, quick=1000)
    for life in range(7):
        stage.until(lambda life=life: stage.agents()[life:] or launched.process.poll() is not None, f"agent {life}")  # type: ignore[misc]
        if launched.process.poll() is not None:
            break
        os.kill(stage.agents()[life]["pid"], signal.SIGKILL)
    stage.ends(70)
    assert len(stage.agents()) == 5


def bug(stage: Stage) -> None:
    """The guard's own loop raises: neither the engine nor the agent is left."""
    launched = stage.start(*ENGINE, bug=stage.bug)
    agent = read(launched.agent)
    assert agent is not None
    tree = [*stage.tree(), agent.key]
    os.kill(agent.pid, signal.SIGSTOP)  # or it would clean up itself once its guard is gone
    stage.bug.touch()
    os.kill(launched.pid, signal.SIGUSR1)  # it looks up
    stage.ends(70)
    assert not stage.lives(tree)
    assert b"AssertionError: a bug on purpose" in launched.process.stderr.read()  # type: ignore[union-attr]


def bug_beside_the_unkillable(stage: Stage) -> None:
    """The same, and a process does not go at once."""
    launched = stage.start(*ENGINE, bug=stage.bug, let_go=stage.let_go)
    root, child = stage.tree()
    stage.bug.touch()
    os.kill(launched.pid, signal.SIGUSR1)
    tried = stage.let_go.with_name(f"{stage.let_go.name}.refused")
    ended = launched.process.poll
    stage.until(lambda: ended() is not None or (tried.exists() and tried.stat().st_size > 2), "a third try to kill it")
    stage.let_go.touch()
    stage.ends(70)
    assert not stage.lives([root, child])


def orphan(stage: Stage) -> None:
    """A process whose parent has gone is the guard's child, and is reaped when it ends."""
    launched = stage.start("sh", "-c", "(sleep 77 & echo $!); exec sleep 78", stay=1)
    pid = int(stage.heard("Output", id="main")["data"])
    stage.until(lambda: (p := read(pid)) is not None and p.ppid == launched.pid, "the orphan is the guard's")
    os.kill(pid, signal.SIGKILL)
    stage.until(lambda: read(pid) is None, "the orphan reaped")


SCENES: dict[str, Callable[[Stage], None]] = {
    scene.__name__: scene
    for scene in (
        *(agent_killed, agent_comes_back, unkillable_tree, agent_exits, lease_passes, order_on_a_passed_deadline),
        *(agent_killed_after_its_lease, agent_killed_in_its_lease_kill, unkillable_lease, order_in_a_stop),
        *(agent_frozen, agent_frozen_over_a_tree, asked_and_agent_killed, agent_dies_for_ever, bug),
        *(bug_beside_the_unkillable, orphan),
    )
}


@pytest.fixture
def stage(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stage]:
    made = Stage(tmp_path, getattr(request, "param", ""))
    yield made
    made.close()


@pytest.mark.parametrize("scene", SCENES)
def test_the_rules_hold(stage: Stage, scene: str) -> None:
    SCENES[scene](stage)


@pytest.mark.mutations
@pytest.mark.parametrize(("stage", "broken"), [(name, name) for name in ALL], indirect=["stage"], ids=list(ALL))
def test_a_broken_rule_shows(stage: Stage, broken: str) -> None:
    shown = False
    try:
        SCENES[ALL[broken].scene](stage)
    except (AssertionError, TimeoutError, OSError):
        shown = True
    except Exception as error:  # subprocess.TimeoutExpired: the guard did not end
        shown = type(error).__name__ == "TimeoutExpired"
    assert shown, f"nobody missed the rule that {ALL[broken].rule}"


def test_every_scene_is_for_a_rule() -> None:
    assert {broken.scene for broken in ALL.values()} == set(SCENES)
