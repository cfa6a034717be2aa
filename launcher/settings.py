"""Everything that can be said to the launcher, as one frozen value, validated once.

`cli/sources.py` fills it from flags, LAUNCHER_* variables and a TOML file; nothing else in the launcher reads those.
Each error names the flag as the user gave it (or the variable, or the file entry), the value, and the fix. A new option
is a field here, an entry in `cli/options.py`, and the place that uses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from types import MappingProxyType
from typing import Any

from launcher.errors import ConfigError

GROUP_PORT = 9470  # below Ray's worker ports (10002-19999), NodePorts and the ephemeral range
AGENT_PORT = 9471
MOST_RANKS = 4096  #: pods of a group, as many as a message names
MOST = 10**9  #: seconds (31 years), or a count


def _number(default: float | None, least: float, most: float = MOST) -> Any:
    """A number with its bounds."""
    return field(default=default, metadata={"least": least, "most": most})


def _choice(default: str, *others: str) -> Any:
    """One of several words."""
    return field(default=default, metadata={"choices": (default, *others)})


@dataclass(frozen=True)
class Settings:
    """The launcher's settings. Durations are in seconds; None means "not said"."""

    # --- engine
    engine: str = "vllm"
    engine_file: str | None = None  #: TOML of a declarative engine
    backend: str = _choice("auto", "ray", "mp")  #: vLLM
    model: str | None = None
    served_model_name: tuple[str, ...] = ()
    tp: int | None = _number(None, 1, MOST_RANKS)  #: tensor parallel size; None: not said, counts as 1
    pp: int | None = _number(None, 1, MOST_RANKS)
    dp: int | None = _number(None, 1, MOST_RANKS)
    ep: bool = False  #: expert parallel
    port: int | None = None  #: the engine's API port; None: the engine's own default
    python: str | None = None  #: the engine's interpreter; None: python3 on PATH (for reference, the launcher's own)
    engine_version: str | None = None  #: said instead of asked: for ``plan`` where the engine is not installed
    gpus_per_pod: int | None = _number(None, 0, MOST_RANKS)  #: None: detected
    engine_args: tuple[str, ...] = ()  #: all after ``--``, verbatim
    handoff: bool = False
    revision: str | None = None
    require_same_revision: bool = False

    # --- identity
    rank: int | None = _number(None, 0, MOST_RANKS)
    size: int | None = _number(None, 1, MOST_RANKS)
    leader: str | None = None
    peers: tuple[str, ...] = ()
    group_id: str | None = None
    ordinal_start: int | None = _number(None, 0)
    service: str | None = None
    namespace: str | None = None
    cluster_domain: str = "cluster.local"
    address: str | None = None  #: own IP

    # --- network
    interface: str | None = None
    rdma: str = _choice("auto", "off", "require")
    preflight: str = _choice("on", "off")
    group_port: int = GROUP_PORT
    agent_port: int = AGENT_PORT
    master_port: int | None = None  #: torch.distributed's port (vLLM mp, SGLang); None: the engine's default
    ray_port: int = 6379
    ray_args: tuple[str, ...] = ()  #: more options for ``ray start``, one shell-quoted string on the command line

    # --- group
    join_timeout: float | None = _number(None, 0)  #: 0: never; None: by the platform
    ray_timeout: float = _number(300.0, 0.05)  #: each Ray stage
    lease: float = _number(10.0, 1)
    max_restarts: int = _number(10, 0)
    restart_window: float = _number(3600.0, 0.05)
    restart_backoff: float = _number(60.0, 0)  #: the longest wait before a restart
    stop_grace: float = _number(3.0, 0)  #: between TERM and KILL when a failure stops the engine
    grace: float = _number(30.0, 0)  #: terminationGracePeriodSeconds of the pod
    drain_settle: float = _number(5.0, 0)
    token_file: str | None = None
    state_dir: str | None = None

    # --- health
    startup_timeout: float | None = _number(None, 0)
    startup_stall_timeout: float = _number(1800.0, 0)
    health_interval: float = _number(1.0, 0.05)
    health_failures: int = _number(3, 1)
    unresponsive_timeout: float = _number(120.0, 0)
    unready_when_slow: bool = False
    hang_timeout: float = _number(300.0, 0)
    canary_interval: float = _number(0.0, 0)
    worker_ready: str = _choice("group", "never")

    # --- what a person sees
    log_format: str = _choice("text", "json")
    log_level: str = _choice("info", "debug", "warning", "error")
    termination_log: str = "/dev/termination-log"
    autopsy: str = _choice("on", "off")  #: before an engine that hangs is killed, every rank tells what it was doing
    last_lines: str = _choice("on", "off")  #: of the engine, in the launcher's log and termination message
    status_details: str = _choice("loopback", "none", "all")  #: who reads the details of /status without a token

    #: where each value came from: field name -> "--tp", "LAUNCHER_TP" or "launcher.toml: tp"; absent: the default
    origins: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), compare=False)

    def __post_init__(self) -> None:
        for setting in fields(self):
            _check(self, setting)
        _check_ports(self)

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


def _check(settings: Settings, setting: Field[Any]) -> None:
    """Raises ConfigError for a value out of its bounds."""
    name, bounds = setting.name, setting.metadata
    value = getattr(settings, name)
    if value is None or not bounds:
        return
    if choices := bounds.get("choices"):
        if value not in choices:
            words = ", ".join(choices)
            raise ConfigError(f"{settings.said(name)} is not one of {words}", f"give one of {words}")
        return
    least, most, time = bounds["least"], bounds["most"], isinstance(value, float)
    if value < least:
        usual = "" if setting.default is None else f"; {setting.default:g} is the default"
        raise ConfigError(
            f"{settings.said(name)} is too {'short' if time else 'small'}", f"give {least:g} or more{usual}"
        )
    if not value <= most:  # so that NaN is refused, too
        raise ConfigError(f"{settings.said(name)} is too {'long' if time else 'large'}", f"give {most:g} or less")


def _check_ports(settings: Settings) -> None:
    """Raises ConfigError for a number that is no port, and for two settings with one port."""
    seen: dict[int, str] = {}
    for name in PORTS:
        number = getattr(settings, name)
        if number is None:
            continue
        if not 1 <= number <= 65535:
            raise ConfigError(f"{settings.said(name)} is not a port", "give a number from 1 to 65535")
        if number in seen:
            raise ConfigError(
                f"{settings.said(name)} and {settings.said(seen[number])} are the same port",
                "give each its own port number",
            )
        seen[number] = name
