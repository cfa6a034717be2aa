"""Every option that sets a field of Settings, as a click option, in the sections of `--help`.

A new option is a field of `Settings`, an entry here, and the place that uses it. Its variable (``--tp``: LAUNCHER_TP),
its key in the TOML file, help and completion follow from the entry.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import click

from launcher.settings import MOST, Settings


class Seconds(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.2
    """A duration: ``90``, ``90s``, ``1.5m``, ``2h``; ``500ms``."""

    name = "duration"
    _units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}  # noqa: RUF012

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            if not 0 <= value <= MOST:
                self.fail(f"{short(value)} is not a number of seconds from 0 to {MOST:g}", param, ctx)
            return float(value)
        text = str(value).strip().lower()
        unit = next((u for u in ("ms", "s", "m", "h", "d") if text.endswith(u)), "")
        try:
            number = float(text[: len(text) - len(unit)] if unit else text)
        except ValueError:
            number = float("nan")
        number *= self._units.get(unit, 1.0)
        if not 0 <= number < float("inf"):
            self.fail(f"{short(value)} is not a duration: write 90, 90s, 1.5m or 2h", param, ctx)
        if number > MOST:
            self.fail(f"{short(value)} is too long: {MOST:g} seconds are 31 years", param, ctx)
        return number


def short(value: object) -> str:
    """A value shortened for an error: nobody needs 5,000 digits."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print that many digits
        return "a number that is too long"
    return text if len(text) <= 80 else f"{text[:77]}..."


class Words(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Several values, separated by commas."""

    name = "list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, (tuple, list)):
            return tuple(str(v) for v in value)
        return tuple(part.strip() for part in str(value).split(",") if part.strip())


class Shell(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Arguments in one string, split as a shell would."""

    name = "arguments"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, (tuple, list)):
            return tuple(str(v) for v in value)
        try:
            return tuple(shlex.split(str(value)))
        except ValueError as error:
            self.fail(f"{value!r} cannot be read: {error}", param, ctx)


_SETTINGS = {setting.name: setting for setting in fields(Settings)}


def _option(flag: str, help: str = "", *, metavar: str | None = None, default: str | None = None) -> click.Option:
    """The option of a setting. Its type, its choices and its default are those of the field in `Settings`.

    ``default``: the text that `--help` shows if the setting has no default or a better description exists.
    """
    name = flag[2:].replace("-", "_")
    setting = _SETTINGS[name]
    kind = str(setting.type).removesuffix(" | None")
    metavar = metavar or "|".join(setting.metadata.get("choices", ())) or None
    types: dict[str, Any] = {
        "int": int,
        "float": Seconds(),
        "tuple[str, ...]": Shell() if name == "ray_args" else Words(),
    }
    if default is None and kind != "bool" and setting.default not in (None, ()):
        value: Any = setting.default
        default = _duration(value) if kind == "float" else str(value)
    text = " ".join(filter(None, (help, f"[{default}]" if default else "")))
    return click.Option([flag], default=None, is_flag=kind == "bool", type=types.get(kind), metavar=metavar, help=text)


def _duration(seconds: float) -> str:
    """As people write it: ``10s``, ``300s``, ``30m``, ``1h``."""
    if seconds >= 600 and not seconds % 60:
        return f"{seconds / 3600:g}h" if not seconds % 3600 else f"{seconds / 60:g}m"
    return f"{seconds:g}s" if seconds else "0"


ENGINE = (
    _option("--engine", "One that `launcher engines` lists: vllm, sglang, reference, or a plug-in's.", metavar="NAME"),
    _option("--engine-file", "A declarative engine: commands for leader and worker, in TOML.", metavar="FILE"),
    _option("--backend", "vLLM across pods: Ray, or its own multiprocessing."),
    _option("--model", "The model, as the engine takes it.", metavar="PATH|NAME"),
    _option("--served-model-name", "The model's name in the API; several by commas.", metavar="NAME,..."),
    _option("--tp", "Tensor parallel size.", metavar="N"),
    _option("--pp", "Pipeline parallel size.", metavar="N"),
    _option("--dp", "Data parallel size.", metavar="N"),
    _option("--ep", "Expert parallel."),
    _option("--port", "The engine's API port.", metavar="PORT", default="the engine's own default"),
    _option("--python", "The Python that the engine is installed in.", metavar="PATH", default="python3"),
    _option("--engine-version", "Assume this engine version, where it is not installed (plan).", metavar="V"),
    _option("--gpus-per-pod", "GPUs of each pod.", metavar="N", default="detected"),
    _option("--handoff", "Replace the launcher by the engine: no supervision afterwards."),
    _option("--revision", "The pod template's revision (controller-revision-hash).", metavar="TEXT"),
    _option("--require-same-revision", "Wait until all pods have the same --revision."),
)
IDENTITY = (
    _option("--size", "Pods in the group.", metavar="N"),
    _option("--rank", "This pod's rank; 0 is the leader.", metavar="N", default="detected"),
    _option("--leader", "Name or IP of rank 0.", metavar="HOST", default="detected"),
    _option("--peers", "Names or IPs of all ranks, in order.", metavar="HOST,..."),
    _option("--group-id", "Name of the group.", metavar="TEXT", default="namespace/leader"),
    _option("--ordinal-start", "The StatefulSet's .spec.ordinals.start.", metavar="N", default="0"),
    _option("--service", "The headless Service that names the pods.", metavar="NAME"),
    _option("--namespace", "Namespace of the pods.", metavar="NAME", default="POD_NAMESPACE"),
    _option(
        "--cluster-domain",
        "DNS domain of the cluster.",
        metavar="DOMAIN",
        default="from /etc/resolv.conf, else cluster.local",
    ),
    _option("--address", "This pod's own IP.", metavar="IP", default="POD_IP, or by the route to the leader"),
)
NETWORK = (
    _option("--interface", "Interface for collectives.", metavar="NAME", default="by the route to the leader"),
    _option("--rdma", "RDMA for collectives.", default="auto: what is there"),
    _option("--preflight", "Run preflight checks at startup, for at most 2 s."),
    _option("--group-port", "Port of the group's link, on the leader.", metavar="PORT"),
    _option("--agent-port", "Port of /livez /readyz /metrics /status and of the page, /.", metavar="PORT"),
    _option("--master-port", "torch.distributed's port.", metavar="PORT", default="the engine's own default"),
    _option("--ray-port", "Port of Ray's GCS.", metavar="PORT"),
    _option("--ray-args", "More options for `ray start`, quoted.", metavar="'ARGS'"),
)
GROUP = (
    _option(
        "--join-timeout",
        "How long to wait for all pods at first, and for a lost leader; 0: no limit.",
        default="StatefulSet, LWS: no limit; else 30m",
    ),
    _option("--ray-timeout", "Limit for each Ray stage."),
    _option("--lease", "Silence after which a member counts as dead and its engine is stopped."),
    _option("--max-restarts", "Restarts in place within the window; 0: none.", metavar="N"),
    _option("--restart-window", "The window of --max-restarts."),
    _option("--restart-backoff", "Longest wait before a restart; it starts at 0.5 s and doubles."),
    _option("--stop-grace", "From SIGTERM to SIGKILL when a failure stops the engine."),
    _option("--grace", "The pod's terminationGracePeriodSeconds."),
    _option("--drain-settle", "Keep serving at least this long after SIGTERM."),
    _option("--token-file", "A secret that all pods share; members must prove it.", metavar="FILE"),
    _option("--state-dir", "An emptyDir for what must survive a restart of the container.", metavar="DIR"),
)
HEALTH = (
    _option("--startup-timeout", "Limit for the whole start.", default="none"),
    _option("--startup-stall-timeout", "Limit for a start without any sign of progress."),
    _option("--health-interval", "Between health checks."),
    _option(
        "--health-failures",
        "Errors or refused connections in a row that end the epoch while no request is in flight.",
        metavar="N",
    ),
    _option("--unresponsive-timeout", "Limit while health checks fail and no request makes progress; 0: never."),
    _option("--unready-when-slow", "/readyz fails while requests make progress but health checks time out."),
    _option("--hang-timeout", "Limit while requests run and no tokens are produced; 0: never."),
    _option("--canary-interval", "Ask an idle engine for one token this often; 0: never."),
    _option("--worker-ready", "When a worker's /readyz is 200."),
)
OUTPUT = (
    _option("--log-format"),
    _option("--log-level", "debug, info, warning or error.", metavar="LEVEL"),
    _option("--termination-log", metavar="FILE"),
    _option("--autopsy", "Before an engine that hangs is killed, gather what every rank was doing (2s at most)."),
    _option("--last-lines", "Show an engine's last lines in the log and the termination message."),
    _option("--status-details", "Who may read the details of /status without a token."),
)
SECTIONS = (
    ("Engine", ENGINE),
    ("Identity", IDENTITY),
    ("Network", NETWORK),
    ("Group", GROUP),
    ("Health", HEALTH),
    ("Output", OUTPUT),
)
ALL = tuple(option for _, options in SECTIONS for option in options)
CONFIG = click.Option(["--config"], metavar="FILE", help="Settings from a TOML file: the long option names as keys.")
#: a word before ``--`` that belongs to no option
STRAY = click.Argument(["engine_args"], nargs=-1, type=click.UNPROCESSED)
PARAMETERS = (*ALL, CONFIG, STRAY)

#: options that only `doctor` takes, besides those of a run
DOCTOR = (
    click.Option(["--group"], is_flag=True, help="Check the group: run this in every pod, in place of the engine."),
    click.Option(["--collective"], is_flag=True, help="As --group, and a real all-reduce with the engine's torch."),
    click.Option(["--json", "as_json"], is_flag=True, help="One JSON object for programs."),
)


class SettingsCommand(click.Command):
    """A command that takes every setting and, after ``--``, the engine's arguments. Its help comes in sections."""

    def __init__(self, name: str | None, *, params: Sequence[click.Parameter] = (), **more: Any) -> None:
        super().__init__(name, params=[*PARAMETERS, *params], **more)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own, engine = (args[: args.index("--")], args[args.index("--") + 1 :]) if "--" in args else (args, [])
        ctx.meta.update(args=tuple(args), engine_args=tuple(engine))
        if not {"-h", "--help"} & set(own):
            self._refuse_the_engines(ctx, own, engine)
        return super().parse_args(ctx, own)

    def _refuse_the_engines(self, ctx: click.Context, own: list[str], engine: list[str]) -> None:
        """Reject words of the engine's own command line before click calls them unknown."""
        takes_value = {
            name: isinstance(p, click.Option) and not p.is_flag
            for p in self.get_params(ctx)
            for name in (*p.opts, *p.secondary_opts)
            if name.startswith("-")
        }
        options = all(w.partition("=")[0] in takes_value for w in own if w.startswith("-"))
        values = all(i and takes_value.get(own[i - 1]) for i, w in enumerate(own) if not w.startswith("-"))
        if options and values:
            return  # the usual case, without an import
        from launcher.cli import engine_line

        engine_line.check(own, engine, takes_value, ctx.command_path)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        records = {p.name: p.get_help_record(ctx) for p in self.get_params(ctx) if isinstance(p, click.Option)}
        shown: set[str | None] = set()
        for title, options in SECTIONS:
            names = [option.name for option in options]
            rows = [r for r in (records.get(n) for n in names) if r]
            shown.update(names)
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
        rest = [r for n, r in records.items() if n not in shown and r]
        if rest:
            with formatter.section("Options"):
                formatter.write_dl(rest)
