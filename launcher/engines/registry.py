"""Which engines there are. Built-in ones are imported when asked for by name; others come by entry points.

An entry point of the group ``launcher.engines`` names a class, a factory without arguments or an instance that
satisfies ``launcher.engines.base.Engine``. Reading the entry points of an image full of packages takes tens of
milliseconds, so it is done only for a name that is not built in: start-up time is a budget.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from launcher.errors import ConfigError, LauncherError, UsageError
from launcher.settings import Settings

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from launcher.engines.arguments import Owned
    from launcher.engines.base import Engine

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
        factory = _attribute("launcher.engines.file.engine:load_engine_file", settings.engine_file)
        return _engine(factory(settings.engine_file), settings.engine_file)
    built_in = BUILT_IN.get(settings.engine) or INTERNAL.get(settings.engine)
    if built_in is not None:
        return _engine(_attribute(built_in.target, settings.engine), settings.engine)
    points = _entry_points()
    if settings.engine in points:
        point = points[settings.engine]
        return _engine(_guarded(point.load, f"entry point {point.name} = {point.value}"), settings.engine)
    raise _unknown(settings, sorted({*BUILT_IN, *points}))


def available() -> list[tuple[str, str, str]]:
    """(name, summary, origin) of every engine, for ``launcher engines``. One that cannot be loaded says why."""
    rows = [(name, engine.summary, "built in") for name, engine in BUILT_IN.items()]
    for name, point in sorted(_entry_points().items()):
        if name in BUILT_IN:
            continue
        try:
            summary = _engine(_guarded(point.load, f"entry point {name} = {point.value}"), name).summary
        except LauncherError as error:
            summary = f"cannot be used: {error.message}"
        rows.append((name, summary, f"{_distribution(point)} ({point.value})"))
    return rows


def spellings(first: str = "") -> tuple[tuple[str, tuple[Owned, ...]], ...]:
    """The built-in engines' own names for what the launcher sets, with the engine's name; that of ``first`` first."""
    tables = []
    for name, built_in in sorted(BUILT_IN.items(), key=lambda item: item[0] != first):
        owned = getattr(_attribute(built_in.target, name), "owned", ())
        if owned:
            tables.append((name, tuple(owned)))
    return tuple(tables)


def numbered(engine: str, flag: str) -> str:
    """The engine's own option for a number beside one of the launcher's flags (SGLang's --ep-size N); empty: none."""
    built_in = BUILT_IN.get(engine)
    return str(getattr(_attribute(built_in.target, engine), "numbered", {}).get(flag, "")) if built_in else ""


def _entry_points() -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=GROUP)}


def _distribution(point: EntryPoint) -> str:
    dist = getattr(point, "dist", None)
    return f"{dist.name} {dist.version}" if dist is not None else "entry point"


def _attribute(target: str, name: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(_guarded(lambda: importlib.import_module(module), f"engine {name}"), attribute)


def _guarded(step: Callable[[], Any], what: str) -> Any:
    """Somebody else's import can fail in any way; what failed is said in words."""
    try:
        return step()
    except LauncherError:
        raise
    except Exception as error:
        raise ConfigError(
            f"{what} cannot be loaded: {type(error).__name__}: {error}", "install what it needs beside the launcher"
        ) from error


def _engine(found: Any, name: str) -> Engine:
    from launcher.engines.base import Engine

    engine = found
    if isinstance(found, type) or not isinstance(found, Engine):
        if not callable(found):
            raise _no_engine(name, found)
        engine = _guarded(found, f"engine {name}")
    if isinstance(engine, type) or not isinstance(engine, Engine):
        raise _no_engine(name, engine)
    return engine


def _no_engine(name: str, found: object) -> ConfigError:
    members = "name, summary, distributions, interpreter, check, plan, fingerprint"
    return ConfigError(
        f"engine {name}: {found!r} is no engine", f"it must have {members} (see launcher.engines.base.Engine)"
    )


def _unknown(settings: Settings, names: list[str]) -> UsageError:
    from launcher.common.text import did_you_mean

    return UsageError(
        f"{settings.said('engine')}: there is no such engine; available: {', '.join(names)}",
        did_you_mean(
            settings.engine.lower(), names, "Give --engine one of these, or wrap another with --engine-file my.toml"
        ),
    )
