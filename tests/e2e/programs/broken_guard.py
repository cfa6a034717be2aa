"""A mini_agent under a guard with one rule broken: its source is changed before it is loaded. MINI_BROKEN names it.

MINI_LET_GO is a file: until it is there SIGKILL does nothing to `sleep` (a process in state D, imitated), and how often
is written beside it. MINI_BUG is one, too: once it is there the guard's loop raises.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from dataclasses import dataclass
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))))


@dataclass(frozen=True)
class Broken:
    """One rule, and what is written in the guard's source instead of it."""

    rule: str
    scene: str  #: the scene of test_guard_rules.py that shows it
    text: str
    instead: str


_KILLS = "        self._stops.clear()\n        self._stops.kill_all(then)\n"
_RESETS = "        self._lease, self._expired, self._lease_kill = None, False, False\n        self._agent.start()"
_REPEATS = "                self._stops.kill_all(then)\n\n        self._stops.kill_all("
_LEASE_KILL = "            self._lease_kill = True\n            self._kill_for_lease()"
_REFUSES = "        if self._expired and not order.capture:"
_THEN = "then = self._restart_agent if died and self._agent.restarts else self._end"
_NOT_CLEAN = '        if not stop.clean:\n            self._say(f"not everything'

ALL: dict[str, Broken] = {
    "tree_outlives_agent": Broken(
        "an agent that dies by a signal takes its tree along",
        "agent_killed",
        _KILLS,
        "        self._code = self._ending\n",
    ),
    "tree_is_asked_first": Broken(
        "that tree is killed at once: it is not asked",
        "agent_killed",
        _KILLS,
        _KILLS.replace("kill_all(then)", "add([], everything=True, grace=3.0, then=then)"),
    ),
    "signal_is_no_code": Broken(
        "the guard ends with 128 + the agent's signal", "agent_killed", "self.code = 128 + number", "self.code = number"
    ),
    "no_second_agent": Broken("Policy: a new agent is forked", "agent_comes_back", _THEN, "then = self._end"),
    "always_a_second_agent": Broken(
        "without that policy there is no new agent",
        "agent_killed",
        _THEN,
        "then = self._restart_agent if died else self._end",
    ),
    "agent_beside_the_former_tree": Broken(
        "no agent is started while something of the former one's tree lives",
        "unkillable_tree",
        _NOT_CLEAN,
        _NOT_CLEAN.replace("if not stop.clean", "if False"),
    ),
    "nameless_agent": Broken(
        "a new agent is told whom it replaces",
        "agent_comes_back",
        "self._agent.replaces.append(order.value)",
        "self._agent.replaces = []",
    ),
    "tree_outlives_exit": Broken(
        "an agent that exits takes its tree along",
        "agent_exits",
        _KILLS,
        _KILLS + "        if not died:\n            self._stops.clear()\n            self._code = self._ending\n",
    ),
    "code_is_lost": Broken(
        "the guard exits with the agent's code", "agent_exits", "self._code = self._ending\n\n", "self._code = 0\n\n"
    ),
    "lease_kills_nobody": Broken(
        "the deadline passes: the tree is killed", "lease_passes", _LEASE_KILL, "            self._lease_kill = True"
    ),
    "lease_kills_once": Broken(
        "so it is when a later deadline passes",
        "lease_passes",
        "self._lease_kill = not stop.clean",
        "self._lease_kill = True",
    ),
    "starts_after_the_lease": Broken(
        "nothing is started until the agent sets a new deadline", "lease_passes", _REFUSES, "        if False:"
    ),
    "deadline_is_no_way_back": Broken(
        "a new deadline lets processes start again",
        "lease_passes",
        "self._lease, self._expired = order.at, False",
        "self._lease = order.at",
    ),
    "questions_refused": Broken(
        "a question may be asked after a lease has passed", "lease_passes", _REFUSES, "        if self._expired:"
    ),
    "deadline_not_looked_at": Broken(
        "the deadline is looked at before every start",
        "order_on_a_passed_deadline",
        "        self._check_lease(time.monotonic())\n" + _REFUSES,
        _REFUSES,
    ),
    "expiry_is_inherited": Broken(
        "a new agent has no deadline yet, and none that has passed",
        "agent_killed_after_its_lease",
        _RESETS,
        _RESETS.replace("self._expired, self._lease_kill = None, False, False", "self._lease_kill = None, False"),
    ),
    "lease_kill_is_inherited": Broken(
        "a lease kill that was under way is over with its agent",
        "agent_killed_in_its_lease_kill",
        _RESETS,
        _RESETS.replace("self._expired, self._lease_kill = None, False, False", "self._expired = None, False"),
    ),
    "unclean_lease_kill_is_over": Broken(
        "a lease kill goes on until all is dead, and that is told",
        "unkillable_lease",
        _REPEATS,
        "                pass\n\n        self._stops.kill_all(",
    ),
    "starts_while_stopping": Broken(
        "nothing is started while everything is being stopped",
        "order_in_a_stop",
        "elif self._stops.stopping_everything:",
        "elif False:",
    ),
    "two_of_one_id": Broken(
        "no two processes have one id",
        "order_in_a_stop",
        "elif any(child.id == order.id and",
        "elif any(False and child.id == order.id and",
    ),
    "frozen_agent_is_waited_for": Broken(
        "a frozen agent does not keep a guard that was asked to end",
        "agent_frozen",
        "elif now - self._unread_since >= FROZEN and not self._tree():",
        "elif False:",
    ),
    "frozen_agent_leaves_a_tree": Broken(
        "... and that guard leaves no tree behind",
        "agent_frozen_over_a_tree",
        "elif now - self._unread_since >= FROZEN and not self._tree():",
        "elif now - self._unread_since >= FROZEN:",
    ),
    "asked_once": Broken(
        "a new agent hears of the signal that asked the launcher to end",
        "asked_and_agent_killed",
        "            self._agent.report(SignalReceived(self._asked))",
        "            pass",
    ),
    "dies_for_ever": Broken(
        "an agent that dies again and again ends the guard",
        "agent_dies_for_ever",
        "if self._agent.quick_deaths >= QUICK_DEATHS:",
        "if False:",
    ),
    "bug_leaves_a_tree": Broken(
        "after a bug of the guard nothing is left", "bug", "        stops.kill_everything(os.getpid())\n", ""
    ),
    "bug_kills_once": Broken(
        "... and that is looked at, not believed",
        "bug_beside_the_unkillable",
        "            return\n        tree.kill(victims, table, groups)\n        time.sleep(0.01)\n",
        "            return\n        tree.kill(victims, table, groups)\n        return\n",
    ),
    "orphans_get_away": Broken(
        "whatever loses its parent falls to the guard",
        "orphan",
        "            children.adopt_orphans()\n        self._poll",
        "            pass\n        self._poll",
    ),
    "zombies_stay": Broken(
        "the guard reaps whatever falls to it",
        "orphan",
        "os.waitpid(-1, os.WNOHANG)",
        "os.waitpid(self._agent.pid or -1, os.WNOHANG)",
    ),
}


#: Where the guard's rules are, each module after those that it imports.
MODULES = ("launcher.guard.agent_process", "launcher.guard.stops", "launcher.guard.guard")


def load(name: str) -> Any:
    """The guard, with a rule broken if ``name`` is not empty."""
    changed = 0
    for module_name in MODULES:
        spec = importlib.util.find_spec(module_name)
        assert spec is not None and spec.origin is not None
        with open(spec.origin, encoding="utf-8") as file:
            source = file.read()
        if name:
            changed += source.count(ALL[name].text)
            source = source.replace(ALL[name].text, ALL[name].instead)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        exec(compile(source, spec.origin, "exec"), module.__dict__)
        setattr(sys.modules["launcher.guard"], spec.name.rpartition(".")[2], module)
    assert changed == bool(name), f"{name}: the guard's source has changed: {ALL[name].text!r}"
    return module


def imitate_state_d(let_go: str) -> None:
    from launcher.guard import stopping
    from launcher.node import tree

    stopping.KILL_BOUND = 0.5
    send = tree.send

    def imitated(pid: int, number: int) -> None:
        if number == signal.SIGKILL and not os.path.exists(let_go):
            if pid < 0:
                return  # a whole group; each of it gets its own
            try:
                with open(f"/proc/{pid}/comm", encoding="utf-8") as comm:
                    if comm.read().strip() == "sleep":
                        with open(f"{let_go}.refused", "a", encoding="utf-8") as refused:
                            refused.write("x")
                        return
            except OSError:
                pass
        send(pid, number)

    tree.send = imitated


def have_a_bug(guard: Any, once_there: str) -> None:
    turn = guard.Guard._turn

    def buggy(self: Any) -> None:
        turn(self)
        if os.path.exists(once_there):
            raise AssertionError("a bug on purpose")

    guard.Guard._turn = buggy


if __name__ == "__main__":
    guard = load(os.environ.get("MINI_BROKEN", ""))
    from launcher.guard import agent_process

    guard.FROZEN = float(os.environ.get("MINI_FROZEN", "10"))
    agent_process.QUICK = float(os.environ.get("MINI_QUICK", "1"))
    if "MINI_LET_GO" in os.environ:
        imitate_state_d(os.environ["MINI_LET_GO"])
    if "MINI_BUG" in os.environ:
        have_a_bug(guard, os.environ["MINI_BUG"])
    from tests.e2e.programs.mini_agent import MiniAgent

    guard.run(lambda fd: MiniAgent(fd).run())
