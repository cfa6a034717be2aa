"""Everything that can be said to the launcher, as one frozen value, validated once.

`cli/main.py` fills it from flags, LAUNCHER_* variables and a TOML file; nothing else in the launcher reads those. Each
error names the flag as the user gave it (or the variable, or the file entry), the value, and the fix.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from launcher.errors import ConfigError

GROUP_PORT = 9470  # below Ray's worker ports (10002-19999), NodePorts and the ephemeral range
AGENT_PORT = 9471
MOST_RANKS = 4096  #: pods of a group, as many as a message names
MOST = 10**9  #: seconds (31 years), or a count


@dataclass(frozen=True)
class Settings:
    """The launcher's settings. Durations are in seconds; None means "not said"."""

    # --- engine
    engine: str = "vllm"
    engine_file: str | None = None  #: TOML of a declarative engine
    backend: str = "auto"  #: vLLM: auto, ray or mp
    model: str | None = None
    served_model_name: tuple[str, ...] = ()
    tp: int | None = None  #: tensor parallel size; None: not said, counts as 1
    pp: int | None = None
    dp: int | None = None
    ep: bool = False  #: expert parallel
    port: int | None = None  #: the engine's API port; None: the engine's own default
    python: str | None = None  #: the engine's interpreter; None: python3 on PATH (for reference, the launcher's own)
    engine_version: str | None = None  #: said instead of asked: for ``plan`` where the engine is not installed
    gpus_per_pod: int | None = None  #: None: detected
    engine_args: tuple[str, ...] = ()  #: all after ``--``, verbatim
    handoff: bool = False
    revision: str | None = None
    require_same_revision: bool = False

    # --- identity
    rank: int | None = None
    size: int | None = None
    leader: str | None = None
    peers: tuple[str, ...] = ()
    group_id: str | None = None
    ordinal_start: int | None = None
    service: str | None = None
    namespace: str | None = None
    cluster_domain: str = "cluster.local"
    address: str | None = None  #: own IP

    # --- network
    interface: str | None = None
    rdma: str = "auto"  #: auto, off or require
    preflight: str = "on"  #: on or off
    group_port: int = GROUP_PORT
    agent_port: int = AGENT_PORT
    master_port: int | None = None  #: torch.distributed's port (vLLM mp, SGLang); None: the engine's default
    ray_port: int = 6379
    ray_args: tuple[str, ...] = ()  #: more options for ``ray start``, one shell-quoted string on the command line

    # --- group
    join_timeout: float | None = None  #: 0 is never; None: never under StatefulSet and LWS, 30 min elsewhere
    ray_timeout: float = 300.0  #: each Ray stage
    lease: float = 10.0
    max_restarts: int = 10
    restart_window: float = 3600.0
    restart_backoff: float = 60.0  #: the longest wait before a restart
    stop_grace: float = 3.0  #: between TERM and KILL when a failure stops the engine
    grace: float = 30.0  #: terminationGracePeriodSeconds of the pod
    drain_settle: float = 5.0
    token_file: str | None = None
    state_dir: str | None = None

    # --- health
    startup_timeout: float | None = None
    startup_stall_timeout: float = 1800.0
    health_interval: float = 1.0
    health_failures: int = 3
    unresponsive_timeout: float = 120.0
    unready_when_slow: bool = False
    hang_timeout: float = 300.0
    canary_interval: float = 0.0
    worker_ready: str = "group"  #: group or never

    # --- what a person sees
    log_format: str = "text"
    log_level: str = "info"
    termination_log: str = "/dev/termination-log"
    last_lines: str = "on"  #: off: no line of an engine's output in the launcher's own log and termination message
    status_details: str = "loopback"  #: who reads the details of /status without a token: none, loopback or all

    #: where each value came from: field name -> "--tp", "LAUNCHER_TP" or "launcher.toml: tp"; absent: the default
    origins: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), compare=False)

    def __post_init__(self) -> None:
        for check in _CHECKS:
            check(self)

    def said(self, name: str) -> str:
        """How the user said a setting: ``--tp 4``, ``LAUNCHER_TP=4``, or the default, for error texts.

        A secret's value is never part of a setting (only its file is), so this is safe to print.
        """
        value = getattr(self, name)
        flag = flag_of(name)
        origin = self.origins.get(name)
        shown = ",".join(value) if isinstance(value, tuple) else value
        if origin is None:
            return f"{flag} (default {shown})"
        return f"{origin}={shown}" if origin.isupper() else f"{origin} {shown}"

    @property
    def world(self) -> int:
        """tp x pp x dp: how many accelerators the whole group uses."""
        return (self.tp or 1) * (self.pp or 1) * (self.dp or 1)

    def replace(self, **changes: Any) -> Settings:
        """A copy with some values changed, validated again."""
        return Settings(**{f.name: getattr(self, f.name) for f in fields(self)} | changes)


def flag_of(name: str) -> str:
    """How a setting is written on the command line."""
    return "--" + name.replace("_", "-")


#: The settings that are ports.
PORTS = tuple(f.name for f in fields(Settings) if f.name == "port" or f.name.endswith("_port"))


def _at_least(name: str, least: float) -> Any:
    def check(s: Settings) -> None:
        value = getattr(s, name)
        if value is not None and value < least:
            raise ConfigError(f"{s.said(name)} is too small", f"give {least} or more")

    return check


def _at_most(name: str, most: float) -> Any:
    def check(s: Settings) -> None:
        value = getattr(s, name)
        if value is not None and not value <= most:  # so that NaN is refused, too
            raise ConfigError(f"{s.said(name)} is too large", f"give {most:g} or less")

    return check


def _port(name: str) -> Any:
    def check(s: Settings) -> None:
        value = getattr(s, name)
        if value is not None and not 1 <= value <= 65535:
            raise ConfigError(f"{s.said(name)} is not a port", "give a number from 1 to 65535")

    return check


def _ports_apart(s: Settings) -> None:
    seen: dict[int, str] = {}
    for name in PORTS:
        number = getattr(s, name)
        if number is None:
            continue
        if number in seen:
            raise ConfigError(
                f"{s.said(name)} and {s.said(seen[number])} are the same port", "give each its own port number"
            )
        seen[number] = name


def _lease(s: Settings) -> None:
    if s.lease < 1:
        raise ConfigError(f"{s.said('lease')} is too short", "give 1 second or more; 10 is the default")


def _choice(name: str, allowed: tuple[str, ...]) -> Any:
    def check(s: Settings) -> None:
        value = getattr(s, name)
        if value not in allowed:
            raise ConfigError(f"{s.said(name)} is not one of {', '.join(allowed)}", f"give one of {', '.join(allowed)}")

    return check


_CHECKS = (
    *(_at_most(name, MOST_RANKS) for name in ("tp", "pp", "dp", "size", "rank", "gpus_per_pod")),
    *(_at_most(name, MOST) for name in ("ordinal_start", "max_restarts", "health_failures")),
    *(_at_most(name, MOST) for name in ("lease", "join_timeout", "stop_grace", "grace", "drain_settle", "ray_timeout")),
    *(_at_most(name, MOST) for name in ("startup_timeout", "startup_stall_timeout", "hang_timeout", "health_interval")),
    *(_at_most(name, MOST) for name in ("canary_interval", "restart_backoff", "restart_window")),
    *(_at_least(name, 1) for name in ("tp", "pp", "dp", "size", "health_failures")),
    *(_at_least(name, 0) for name in ("rank", "gpus_per_pod", "ordinal_start", "join_timeout", "max_restarts")),
    *(_at_least(name, 0) for name in ("stop_grace", "grace", "drain_settle", "startup_timeout", "hang_timeout")),
    *(
        _at_least(name, 0)
        for name in ("unresponsive_timeout", "canary_interval", "startup_stall_timeout", "restart_backoff")
    ),
    *(_at_least(name, 0.05) for name in ("health_interval", "ray_timeout", "restart_window")),
    *(_port(name) for name in PORTS),
    _choice("backend", ("auto", "ray", "mp")),
    _choice("rdma", ("auto", "off", "require")),
    _choice("preflight", ("on", "off")),
    _choice("worker_ready", ("group", "never")),
    _choice("log_format", ("text", "json")),
    _choice("last_lines", ("on", "off")),
    _choice("status_details", ("none", "loopback", "all")),
    _choice("log_level", ("debug", "info", "warning", "error")),
    _ports_apart,
    _lease,
)
