"""Which engines there are. Built-in ones are imported when asked for by name; others come by entry points.

An entry point of the group ``launcher.engines`` names a subclass of ``launcher.engines.base.Engine``, an instance, or a
factory without arguments (docs/plugins.md). Reading the entry points of an image full of packages takes tens of
milliseconds, so it is done only for a name that is not built in.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from launcher.errors import LauncherError, UsageError
from launcher.settings import Settings

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from launcher.engines.arguments import Owned
    from launcher.engines.base import Engine
    from launcher.engines.plugin import Plugin

GROUP = "launcher.engines"


@dataclass(frozen=True)
class BuiltIn:
    """Where a built-in engine is, and what it says of itself, so that a listing imports none."""

    target: str  #: module:class
    summary: str


BUILT_IN: Mapping[str, BuiltIn] = {
    "vllm": BuiltIn(
        "launcher.engines.vllm.engine:VLLMEngine", "vLLM's OpenAI server over Ray or its own multiprocessing"
    ),
    "sglang": BuiltIn("launcher.engines.sglang.engine:SGLangEngine", "SGLang's OpenAI server over torch.distributed"),
    "reference": BuiltIn(
        "launcher.engines.reference:ReferenceEngine", "a small distributed engine in pure Python, for tests and demos"
    ),
}

#: Not for people: what commands of the launcher run in place of an engine.
INTERNAL: Mapping[str, BuiltIn] = {
    "doctor": BuiltIn("launcher.preflight.group.engine:DoctorEngine", "the checks of `launcher doctor --group`"),
}


def load(settings: Settings) -> Engine:
    """The engine that the settings name; ``engine_file`` goes before ``engine``.

    Raises:
        UsageError: there is none of this name; those available are listed.
        ConfigError: it is there and cannot be used.
    """
    if settings.engine_file:
        from launcher.engines.file.engine import load_engine_file

        return load_engine_file(settings.engine_file)
    built_in = _built_in(settings.engine)
    if built_in is not None:
        return built_in
    point = _entry_points().get(settings.engine)
    if point is None:
        raise _unknown(settings)
    plugin = _plugin(point)
    plugin.rehearse(settings)
    return plugin


def by_name(name: str) -> Engine | None:
    """The engine of this name; None: there is none. Raises ConfigError for one that cannot be used."""
    built_in = _built_in(name)
    if built_in is not None:
        return built_in
    point = _entry_points().get(name)
    return _plugin(point) if point is not None else None


def _built_in(name: str) -> Engine | None:
    found = BUILT_IN.get(name) or INTERNAL.get(name)
    if found is None:
        return None
    module, _, attribute = found.target.partition(":")
    engine: Engine = getattr(importlib.import_module(module), attribute)()
    return engine


def names() -> tuple[str, ...]:
    """Every name that ``--engine`` takes."""
    return (*BUILT_IN, *sorted(set(_entry_points()) - set(BUILT_IN)))


def available() -> list[tuple[str, str, str]]:
    """(name, summary, origin) of every engine, for ``launcher engines``. One that cannot be loaded says why."""
    rows = [(name, engine.summary, "built in") for name, engine in BUILT_IN.items()]
    for name, point in sorted(_entry_points().items()):
        if name in BUILT_IN:
            continue
        try:
            summary = _plugin(point).summary
        except LauncherError as error:
            summary = f"cannot be used: {error.message}"
        rows.append((name, summary, f"{_distribution(point)} ({point.value})"))
    return rows


def spellings(first: str = "") -> tuple[tuple[str, tuple[Owned, ...]], ...]:
    """What engines call the options that the launcher sets, with the engine's name.

    ``first``: the one that --engine names goes before the built-in ones.
    """
    ordered = dict.fromkeys([first, *sorted(BUILT_IN)] if first else sorted(BUILT_IN))
    tables = ((name, _or_none(name)) for name in ordered)
    return tuple((name, engine.owned) for name, engine in tables if engine is not None and engine.owned)


def numbered(engine: str, flag: str) -> str:
    """The engine's own option for a number beside one of the launcher's flags (SGLang's --ep-size N); empty: none."""
    found = _or_none(engine)
    return found.numbered.get(flag, "") if found is not None else ""


def images(more: str = "") -> frozenset[str]:
    """Images whose release tags are the engine's version: of the built-in engines, and of the one that is named."""
    engines = (_or_none(name) for name in dict.fromkeys([*BUILT_IN, *([more] if more else [])]))
    return frozenset(image for engine in engines if engine is not None for image in engine.images)


def _or_none(name: str) -> Engine | None:
    """For hints: an engine that cannot be used is an error where it is started or planned."""
    try:
        return by_name(name)
    except LauncherError:
        return None


def _entry_points() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=GROUP)}


def _distribution(point: EntryPoint) -> str:
    dist = getattr(point, "dist", None)
    return f"{dist.name} {dist.version}" if dist is not None else "entry point"


def _plugin(point: EntryPoint) -> Plugin:
    from launcher.engines import plugin

    return plugin.load(point.load, point.name, point.value, _distribution(point))


def _unknown(settings: Settings) -> UsageError:
    from launcher.common.text import did_you_mean

    every = sorted(names())
    then = "Give --engine one of these, or wrap another with --engine-file my.toml"
    return UsageError(
        f"{settings.said('engine')}: there is no such engine; available: {', '.join(every)}",
        did_you_mean(settings.engine.lower(), every, then),
    )
