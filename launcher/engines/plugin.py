"""The door through which a plug-in's engine comes in: whatever it raises or returns, the launcher gets sense or words.

An entry point's engine is other people's code. ``Plugin`` stands before it with the same contract: each call that
raises (SystemExit too) or returns something else than the contract says becomes a ``PluginError`` that names the
plug-in, the member and the line. So nobody else in the launcher has to expect that, and an engine of our own that
raises stays what it is: a bug of ours.

A plug-in that hangs, or ends the process with ``os._exit``, is beyond this.
"""

from __future__ import annotations

import os
import traceback
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from launcher.common.conformity import mismatch, shown
from launcher.common.text import printable
from launcher.engines.base import Checked, Engine, Local, PlanContext, Requirements
from launcher.errors import ConfigError, LauncherError, UsageError
from launcher.model import EMPTY, ENGINE_STEPS, REST, Fingerprint, Identity, NodeFacts, Plan
from launcher.settings import Settings

#: What a plug-in raises on purpose: it has said what is wrong in words already.
_IN_WORDS = (UsageError, ConfigError)
_REQUIRED = ("name", "plan")


T = typing.TypeVar("T")


class PluginError(ConfigError):
    """A plug-in is broken (exit code 78), as opposed to: it refuses these settings."""


@dataclass(frozen=True)
class Door:
    """Lets results of one plug-in through; everything else becomes a PluginError that names it."""

    title: str  #: "engine mine"
    source: str  #: "my_engines:Mine of my-engines 1.2"

    def guarded(self, step: Callable[[], Any], what: str) -> Any:
        """What ``step`` returns. Only errors in words and Ctrl-C pass as they are."""
        try:
            return step()
        except KeyboardInterrupt:
            raise
        except LauncherError as error:
            if type(error) in _IN_WORDS and isinstance(error.message, str) and isinstance(error.fix, str):
                raise
            raise self._broken(error, what) from error
        except BaseException as error:
            raise self._broken(error, what) from error

    def wrong(self, what: str) -> PluginError:
        return PluginError(f"{self.title}: {what}", f"correct {self.source}, as docs/plugins.md says")

    def _broken(self, error: BaseException, what: str) -> PluginError:
        try:
            text = printable(" ".join(str(error).split()), 300)
        except BaseException as second:  # a __str__ may do anything, SystemExit too
            text = f"(its text raises {type(second).__name__})"
        return PluginError(
            f"{what}: {type(error).__name__}{': ' if text else ''}{text}",
            f"correct {self.source}{_place(error)}, or install what it needs beside the launcher",
        )


class Plugin(Engine):
    """An engine from an entry point, behind the contract. See ``load``."""

    def __init__(self, engine: object, door: Door) -> None:
        self._engine = engine
        self._door = door
        self.name = self._attribute("name")
        self.summary = printable(self._attribute("summary"), 200)
        self.owned = self._attribute("owned")
        self.numbered = self._attribute("numbered")
        self.images = self._attribute("images")
        self.variable_prefixes = self._attribute("variable_prefixes")
        self.variable_reasons = self._attribute("variable_reasons")
        self.epoch_token = self._attribute("epoch_token")
        self.waits = self._attribute("waits")
        for pattern in self.waits:
            if wrong := _bad_pattern(pattern):
                raise door.wrong(f"waits has {shown(pattern)}: {wrong}")
        if not self.name or not self.name.isprintable():
            raise door.wrong(f"name is {shown(self.name)}")

    def distributions(self, settings: Settings) -> tuple[str, ...]:
        return self._call(Engine.distributions, settings)

    def interpreter(self, settings: Settings) -> str:
        return self._call(Engine.interpreter, settings)

    def check(self, settings: Settings, identity: Identity, facts: NodeFacts) -> Checked:
        return self._call(Engine.check, settings, identity, facts)

    def plan(self, context: PlanContext, rank: int) -> Plan:
        plan = self._call(Engine.plan, context, rank)
        wrong = _nonsense(plan, rank)
        if wrong:
            raise self._door.wrong(f"what plan() returned cannot be used: {wrong}")
        return plan

    def fingerprint(self, settings: Settings, facts: NodeFacts) -> Fingerprint:
        return self._call(Engine.fingerprint, settings, facts)

    def requirements(self, settings: Settings, environ: Mapping[str, str]) -> Requirements:
        return self._call(Engine.requirements, settings, environ)

    def local(self, settings: Settings, size: int, facts: NodeFacts) -> Local:
        return self._call(Engine.local, settings, size, facts)

    def rehearse(self, settings: Settings) -> None:
        """Call what needs no group, so that a broken plug-in shows at once and in every command alike."""
        facts = NodeFacts()
        for step in (
            lambda: self.distributions(settings),
            lambda: self.interpreter(settings),
            lambda: self.requirements(settings, EMPTY),
            lambda: self.local(settings, settings.size or 1, facts),
            lambda: self.fingerprint(settings, facts),
        ):
            try:
                step()
            except PluginError:
                raise
            except LauncherError:
                pass  # it refuses these settings, and will say so when it is asked in earnest

    def _attribute(self, name: str) -> Any:
        default = getattr(Engine, name, None)
        found = self._door.guarded(lambda: getattr(self._engine, name, default), f"{self._door.title}: {name}")
        wrong = mismatch(found, typing.get_type_hints(Engine)[name], name)
        if wrong:
            raise self._door.wrong(wrong)
        return found

    def _call(self, inherited: Callable[..., T], *arguments: object) -> T:
        """The plug-in's own method; the contract's where the plug-in is no subclass and has none."""
        name = inherited.__name__

        def call() -> object:
            own = getattr(self._engine, name, None)
            return own(*arguments) if own is not None else inherited(self, *arguments)

        found = self._door.guarded(call, f"{self._door.title}: {name}() failed")
        wrong = mismatch(found, typing.get_type_hints(inherited)["return"], "")
        if wrong:
            raise self._door.wrong(f"what {name}() returned cannot be used: {wrong}")
        return typing.cast("T", found)


def load(find: Callable[[], object], name: str, entry: str, distribution: str) -> Plugin:
    """The engine of an entry point, behind the door.

    Args:
        find: imports it; what it returns is a class, an instance or a factory without arguments.
        name: what --engine says; ``entry``: the entry point's value, of ``distribution``.
    Raises:
        PluginError: it cannot be imported or made, or is no engine.
    """
    door = Door(f"engine {name}", f"{entry} of {distribution}")
    found = door.guarded(find, f"entry point {name} = {entry} cannot be loaded")
    if isinstance(found, type) or not _is_engine(found, door):
        if not callable(found):
            raise door.wrong(f"{shown(found)} is no engine")
        found = door.guarded(found, f"engine {name} cannot be loaded")
    if isinstance(found, type) or not _is_engine(found, door):
        raise door.wrong(f"{shown(found)} is no engine: it needs {' and '.join(_REQUIRED)}")
    return Plugin(found, door)


def _is_engine(found: object, door: Door) -> bool:
    return all(door.guarded(partial(hasattr, found, name), f"{door.title}: {name}") for name in _REQUIRED)


def _place(error: BaseException) -> str:
    """The plug-in's own line that raised, or from where it called what raised."""
    ours = (str(Path(__file__).parents[1]) + os.sep, str(Path(os.__file__).parent) + os.sep, "<")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(ours)]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


# ------------------------------------------------------------------------------------------------------- its plans

_NEED_TARGET = ("line", "pattern", "tcp", "http")
_GATES = ("started", "exited", *_NEED_TARGET)


def _nonsense(plan: Plan, rank: int) -> str:
    """What is wrong with a plan of the right types; empty: nothing that can be seen before it runs."""
    if plan.rank != rank:
        return f"rank is {plan.rank}, not {rank}"
    if not plan.stages:
        return "stages is empty"
    for i, stage in enumerate(plan.stages):
        where = f"stages[{i}]"
        if not stage.name or not stage.name.isprintable() or len(stage.name) > 64:
            return f"{where}.name is {shown(stage.name)}"
        if stage.name in {other.name for other in plan.stages[:i]}:
            return f"{where}.name is {stage.name}, and so is that of another stage"
        if stage.timeout is not None and stage.timeout <= 0:
            return f"{where}.timeout is {stage.timeout:g}"
        for j, process in enumerate(stage.processes):
            wrong = _bad_process(process)
            if wrong:
                return f"{where}.processes[{j}].{wrong}"
    for i, port in enumerate(plan.ports):
        if not 1 <= port.number <= 65535:
            return f"ports[{i}].number is {port.number}"
    for name in ("url", "metrics_url", "canary_url"):
        url = getattr(plan.health, name)
        if url is not None and not _is_url(url):
            return f"health.{name} is {shown(url)}, no URL"
    for i, line in enumerate(plan.step_lines):
        if line.step not in (*ENGINE_STEPS, REST):
            return f"step_lines[{i}].step is {shown(line.step)}, not one of {', '.join((*ENGINE_STEPS, REST))}"
        if wrong := _bad_pattern(line.pattern):
            return f"step_lines[{i}].pattern is {shown(line.pattern)}: {wrong}"
    if plan.health.timeout <= 0:
        return f"health.timeout is {plan.health.timeout:g}"
    return f"stop_grace is {plan.stop_grace:g}" if plan.stop_grace is not None and plan.stop_grace < 0 else ""


def _bad_process(process: Any) -> str:
    if not process.name or not process.name.isprintable():
        return f"name is {shown(process.name)}"
    if not process.argv or not process.argv[0]:
        return "argv is empty"
    if not all(_can_be_passed(word) for word in (*process.argv, process.cwd or "")):
        return "argv or cwd holds what no command line can"
    for name, value in (*process.env.items(), *process.defaults.items()):
        if not name or "=" in name or not _can_be_passed(name + value):
            return f"env has {shown(name)}={shown(value)}, which no environment can hold"
    gate = process.gate
    if gate.kind not in _GATES:
        return f"gate.kind is {shown(gate.kind)}, not one of {', '.join(_GATES)}"
    if gate.kind in _NEED_TARGET and not gate.target:
        return f"gate.target is empty, and the gate is of kind {gate.kind}"
    if gate.kind == "http" and not _is_url(gate.target):
        return f"gate.target is {shown(gate.target)}, no URL"
    if gate.kind == "tcp" and not gate.target.rpartition(":")[2].isdecimal():
        return f"gate.target is {shown(gate.target)}, no host:port"
    if gate.kind == "pattern" and (wrong := _bad_pattern(gate.target)):
        return f"gate.target is {shown(gate.target)}: {wrong}"
    return f"gate.settle is {gate.settle:g}" if gate.settle < 0 else ""


def _bad_pattern(pattern: str) -> str:
    from launcher.engines.file import patterns

    return patterns.problem(pattern)


def _is_url(text: str) -> bool:
    try:
        urlsplit(text).port  # noqa: B018  # raises for one that is none
    except ValueError:
        return False
    return text.startswith(("http://", "https://", "http+unix://")) and text.isprintable()


def _can_be_passed(text: str) -> bool:
    """Whether the kernel takes it as a word of a command line or of an environment."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False
