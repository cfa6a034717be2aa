"""An engine's own ``--config`` file: read far enough to see that it does not contradict the launcher.

vLLM and SGLang take a YAML file of options, and the command line wins over it: a ``tensor-parallel-size: 4`` there
would be overridden silently, so it is compared. The launcher has no YAML library and reads top-level ``key: value``
lines only, which is where the owned options are. This is the only file that an engine's check reads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from launcher.engines import arguments
from launcher.engines.arguments import Owned
from launcher.engines.endpoint import LISTENING
from launcher.errors import ConfigError
from launcher.model import NodeFacts
from launcher.settings import Settings

_MAX_CONFIG = 1024 * 1024


def check(settings: Settings, facts: NodeFacts, owned: Iterable[Owned], needed: Iterable[str] = ()) -> tuple[str, ...]:
    """Compare the file that ``-- --config PATH`` names, if any, with the settings; returns warnings.

    ``needed``: more options that may not stand in it, because the plan depends on them.

    Raises:
        ConfigError: it contradicts the launcher, or cannot be read. (Where the engine is not installed this is no pod,
            and an unreadable file is a warning.)
    """
    path = arguments.last(settings.engine_args, "--config")
    if path is None:
        return ()
    try:
        entries = read_config(path)
    except ConfigError as error:
        if facts.versions_known:
            raise
        return (f"{error.message}; not compared here",)
    compare_config(path, entries, owned, settings)
    refuse_in_config(path, entries, LISTENING)
    refuse_in_config(path, entries, needed, "to plan the engine's processes")
    return ()


def compare_config(path: str, entries: Mapping[str, str], owned: Iterable[Owned], settings: Settings) -> None:
    """Raises ConfigError where an engine's own config file contradicts the launcher about an owned option."""
    for key, value in entries.items():
        match = arguments.exact("--" + key.replace("_", "-"), tuple(owned))
        if match is None:
            continue
        own = match.value(settings)
        if match.setting and _same(value, own):
            continue
        if match.setting:
            flag = arguments.flag(match)
            raise ConfigError(
                f"{path} says {key}: {value}, the launcher says {settings.said(match.setting)}: {match.what} is the"
                " launcher's to set",
                f"give {arguments.example(flag, value)} before the --, and take {key} out of the file",
            )
        raise ConfigError(
            f"{path} says {key}: {value}: {match.what} is the launcher's to set ({match.why})",
            f"take {key} out of the file",
        )


def refuse_in_config(
    path: str, entries: Mapping[str, str], names: Iterable[str], purpose: str = "to ask the engine's health"
) -> None:
    """Raises ConfigError for options that the launcher must know, so that it reads them after ``--`` only."""
    for key, value in entries.items():
        name = "--" + key.replace("_", "-")
        if name in names:
            raise ConfigError(
                f"{path} says {key}: {value}, and the launcher must know it {purpose}",
                f"take it out of the file and give '{name} {value}' after the --",
            )


def read_config(path: str) -> Mapping[str, str]:
    """The top-level ``key: value`` entries of a YAML file, as text, without nested values. Reads the file.

    Raises:
        ConfigError: it cannot be read, or is not a YAML mapping.
    """
    try:
        with Path(path).open("rb") as file:
            text = file.read(_MAX_CONFIG + 1).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"--config {path} cannot be read: {error}", "give a readable YAML file after the --"
        ) from None
    if len(text) > _MAX_CONFIG:
        raise ConfigError(f"--config {path} is larger than 1 MiB", "give the engine's own YAML config file")
    entries: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.rstrip()
        if not bare or bare.lstrip().startswith("#") or bare[0] in " \t-" or bare in ("---", "...", "{}"):
            continue  # comments, nested blocks, list items, document marks
        key, colon, value = bare.partition(":")
        if not colon or (value and value[0] not in " \t") or bare[0] in "{[":
            raise ConfigError(
                f"--config {path}, line {number}: {bare[:80]!r} is no 'key: value'",
                "write one 'key: value' a line at the top level, so that it can be compared with the launcher's flags",
            )
        entries[key.strip().strip("\"'")] = _scalar(value)
    return entries


def _scalar(value: str) -> str:
    text = value.strip()
    if text[:1] in ("'", '"'):
        end = text.find(text[0], 1)
        return text[1:end] if end > 0 else text[1:]
    text = re.split(r"\s#", text, maxsplit=1)[0].strip()
    return "" if text.startswith("#") else text


def _same(one: str, other: str) -> bool:
    yes = {"true": "true", "yes": "true", "on": "true", "false": "false", "no": "false", "off": "false"}
    return yes.get(one.lower(), one) == yes.get(other.lower(), other)
