"""Turns flags, LAUNCHER_* variables and a TOML file into Settings.

Flags override variables, variables override the file, and the file overrides the defaults. Errors name the flag (or
variable, or entry of the file), the value and the fix.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import click

from launcher.cli.options import ALL, SettingsCommand, short
from launcher.common import files
from launcher.common.numbers import check_document
from launcher.common.text import did_you_mean
from launcher.errors import UsageError
from launcher.identity.service_links import strip
from launcher.planning.rank_variables import is_for_one_role
from launcher.settings import Settings

PREFIX = "LAUNCHER_"

# Variables with this prefix that are not options of a run.
OWN_VARIABLES = {
    *("LAUNCHER_COOKIE", "LAUNCHER_REPLACES", "LAUNCHER_PREVIOUS_AGENT", "LAUNCHER_LAST_EPOCH"),
    *("LAUNCHER_DOCTOR", "LAUNCHER_DOCTOR_TOKEN", "LAUNCHER_DOCTOR_ORDER", "LAUNCHER_STATUS_TOKEN"),
    *("LAUNCHER_SYSFS", "LAUNCHER_DEV", "LAUNCHER_PROC", "LAUNCHER_NETWORK_STATUS", "LAUNCHER_IMAGE_ENV"),
    *("LAUNCHER_STATUS_URL", "LAUNCHER_CONFIG", "LAUNCHER_ENGINE_ARGS"),
}
_OPTIONS = {str(option.name): option for option in ALL}


class Sources(NamedTuple):
    """The settings, and what else was learned from the sources."""

    settings: Settings
    environ: dict[str, str]  #: without Kubernetes' service links
    warnings: tuple[str, ...]


def parse(
    args: Sequence[str],
    environ: Mapping[str, str],
    *,
    flags: Mapping[str, Any] = MappingProxyType({}),
    engine_args: Sequence[str] = (),
    more: Sequence[click.Parameter] = (),
) -> Sources:
    """Read a command line as `launcher run` does.

    Args:
        args: the words of the command line, without the command's name.
        environ: the environment.
        flags: parsed options that win over those of ``args``.
        engine_args: replace the words after ``--``.
        more: further options to accept, which set no setting.

    Raises:
        UsageError: something that cannot be read.
        ConfigError: something that cannot work.
    """
    command = SettingsCommand("run", params=more, add_help_option=False)
    try:
        context = command.make_context("launcher run", list(args))
    except click.UsageError as error:
        raise UsageError(error.format_message(), "see `launcher run --help`") from None
    return read({**context.params, **flags}, engine_args or context.meta["engine_args"], environ)


def read(flags: Mapping[str, Any], engine_args: Sequence[str], environ: Mapping[str, str]) -> Sources:
    """Settings of parsed ``flags``, of ``environ``, and of the file that one of them names.

    Raises:
        UsageError: something that cannot be read.
        ConfigError: something that cannot work.
    """
    if stray := flags.get("engine_args"):
        raise UsageError(f"{stray[0]!r} is no option", "what is meant for the engine goes after --")
    clean, warnings = strip(environ)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    config = flags.get("config") or clean.get("LAUNCHER_CONFIG")
    entries = _file(config) if config else {}
    for name, option in _OPTIONS.items():
        variable = PREFIX + name.upper()
        given = flags.get(name)
        if given is not None and given is not False and given != ():
            values[name], origins[name] = given, option.opts[0]
        elif clean.get(variable, "") != "":
            values[name], origins[name] = _convert(option, clean[variable], variable), variable
        elif name in entries:
            origin = f"{config}: {name.replace('_', '-')}"
            values[name], origins[name] = _convert(option, entries[name], origin), origin
    variable = "LAUNCHER_ENGINE_ARGS"
    if engine_args:
        values["engine_args"], origins["engine_args"] = tuple(engine_args), "--"
    elif clean.get(variable):
        values["engine_args"], origins["engine_args"] = _shell_words(clean[variable], variable), variable
    elif "engine_args" in entries:
        words = tuple(map(str, entries["engine_args"]))
        values["engine_args"], origins["engine_args"] = words, f"{config}: engine-args"
    unknown = tuple(
        f"{name} is set and is no option of the launcher: ignored"
        for name in sorted(clean)
        if name.startswith(PREFIX)
        and name not in OWN_VARIABLES
        and not is_for_one_role(name)
        and name[len(PREFIX) :].lower() not in _OPTIONS
    )
    return Sources(Settings(**values, origins=MappingProxyType(origins)), clean, (*warnings, *unknown))


def _convert(param: click.Option, value: Any, origin: str) -> Any:
    if param.is_flag:
        if isinstance(value, bool):
            return value
        word = str(value).strip().lower()
        if word in ("1", "true", "yes", "on"):
            return True
        if word in ("0", "false", "no", "off"):
            return False
        raise UsageError(f"{origin}={value} is neither true nor false", "write true or false")
    if isinstance(value, bool):
        raise UsageError(
            f"{origin}={str(value).lower()}: this takes a value", f"see {param.opts[0]} in `launcher run --help`"
        )
    try:
        return param.type.convert(value, param, None)
    except click.UsageError as error:
        raise UsageError(f"{origin}={value}: {error.message}", f"correct it, or give {param.opts[0]}") from None
    except (ValueError, TypeError, OverflowError):
        raise UsageError(f"{origin}={short(value)} cannot be read", f"correct it, or give {param.opts[0]}") from None


def _shell_words(text: str, origin: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"{origin}={text!r} cannot be read: {error}", "quote it as for a shell") from None


def _file(path: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        entries = tomllib.loads(files.read_text(path))
        check_document(entries)
    except OSError as error:
        raise UsageError(f"--config {path} cannot be read: {error.strerror}", "give a readable TOML file") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--config {path} is not TOML: {error}", "write `key = value` lines") from None
    known = {*_OPTIONS, "engine_args"}
    found = {}
    for key, value in entries.items():
        name = key.replace("-", "_")
        if name not in known:
            hint = did_you_mean(key.replace("_", "-"), [one.replace("_", "-") for one in known])
            hint = hint or "see `launcher run --help`"
            raise UsageError(f"--config {path}: there is no setting {key}", hint)
        found[name] = value
    return found
