"""Every option that makes Settings, as click takes it, in the sections of `--help`.

A new option is a field of `Settings`, an entry here, and the place that uses it. Its variable (``--tp``: LAUNCHER_TP),
its key in the TOML file, help and completion follow from the entry.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import click

from launcher.settings import MOST


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
    """A value in an error: 5,000 digits help nobody."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print so many digits
        return "a number that is too long"
    return text if len(text) <= 80 else f"{text[:77]}..."


class Words(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Several values in one, separated by commas."""

    name = "list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, (tuple, list)):
            return tuple(str(v) for v in value)
        return tuple(part.strip() for part in str(value).split(",") if part.strip())


class Shell(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Arguments as a shell would read them, in one string."""

    name = "arguments"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        if isinstance(value, (tuple, list)):
            return tuple(str(v) for v in value)
        try:
            return tuple(shlex.split(str(value)))
        except ValueError as error:
            self.fail(f"{value!r} cannot be read: {error}", param, ctx)


def _option(*names: str, **more: Any) -> click.Option:
    return click.Option(names, default=None, **more)


ENGINE = (
    _option(
        "--engine", metavar="NAME", help="vllm (default), sglang, reference, or one that `launcher engines` lists."
    ),
    _option("--engine-file", metavar="FILE", help="A declarative engine: commands for leader and worker, in TOML."),
    _option("--backend", metavar="auto|ray|mp", help="vLLM across pods: Ray, or its own multiprocessing. [auto]"),
    _option("--model", metavar="PATH|NAME", help="The model, as the engine takes it."),
    _option("--served-model-name", type=Words(), help="Name of the model in the API; several by commas."),
    _option("--tp", type=int, metavar="N", help="Tensor parallel size."),
    _option("--pp", type=int, metavar="N", help="Pipeline parallel size."),
    _option("--dp", type=int, metavar="N", help="Data parallel size."),
    _option("--ep", is_flag=True, help="Expert parallel."),
    _option("--port", type=int, metavar="PORT", help="The engine's API port. [the engine's own default]"),
    _option("--python", metavar="PATH", help="The Python that the engine is installed in. [python3]"),
    _option("--engine-version", metavar="V", help="Say the engine's version, where it is not installed (plan)."),
    _option("--gpus-per-pod", type=int, metavar="N", help="GPUs of each pod. [detected]"),
    _option("--handoff", is_flag=True, help="Execute the engine in the launcher's place: no supervision afterwards."),
    _option("--revision", metavar="TEXT", help="The pod template's revision (controller-revision-hash)."),
    _option("--require-same-revision", is_flag=True, help="Wait until all pods have one --revision."),
)
IDENTITY = (
    _option("--size", type=int, metavar="N", help="Pods in the group."),
    _option("--rank", type=int, metavar="N", help="This pod's rank; 0 is the leader. [found out]"),
    _option("--leader", metavar="HOST", help="Name or IP of rank 0. [found out]"),
    _option("--peers", type=Words(), metavar="HOST,...", help="Names or IPs of all ranks, in order."),
    _option("--group-id", metavar="TEXT", help="Name of the group. [namespace/leader]"),
    _option("--ordinal-start", type=int, metavar="N", help="The StatefulSet's .spec.ordinals.start. [0]"),
    _option("--service", metavar="NAME", help="The headless Service that names the pods."),
    _option("--namespace", metavar="NAME", help="Namespace of the pods. [POD_NAMESPACE]"),
    _option(
        "--cluster-domain",
        metavar="DOMAIN",
        help="DNS domain of the cluster. [of /etc/resolv.conf, else cluster.local]",
    ),
    _option("--address", metavar="IP", help="This pod's own IP. [POD_IP, or by the route to the leader]"),
)
NETWORK = (
    _option("--interface", metavar="NAME", help="Interface for collectives. [the one that routes to the leader]"),
    _option("--rdma", metavar="auto|off|require", help="RDMA for collectives. [auto: what is there]"),
    _option("--preflight", metavar="on|off", help="Look at each start for what often breaks one; at most 2 s. [on]"),
    _option("--group-port", type=int, metavar="PORT", help="Port of the group's link, on the leader. [9470]"),
    _option("--agent-port", type=int, metavar="PORT", help="Port of /livez /readyz /metrics /status. [9471]"),
    _option("--master-port", type=int, metavar="PORT", help="torch.distributed's port. [the engine's own default]"),
    _option("--ray-port", type=int, metavar="PORT", help="Port of Ray's GCS. [6379]"),
    _option("--ray-args", type=Shell(), metavar="'ARGS'", help="More options for `ray start`, quoted."),
)
GROUP = (
    _option(
        "--join-timeout",
        type=Seconds(),
        help="Limit for a first gathering or a lost leader; 0: none. [StatefulSet, LWS: none; else 30m]",
    ),
    _option("--ray-timeout", type=Seconds(), help="Limit for each Ray stage. [300s]"),
    _option("--lease", type=Seconds(), help="Silence after which a member's engine is dead. [10s]"),
    _option("--max-restarts", type=int, metavar="N", help="Restarts in place within the window; 0: none. [10]"),
    _option("--restart-window", type=Seconds(), help="[1h]"),
    _option("--restart-backoff", type=Seconds(), help="Longest wait before a restart; from 0.5 s it doubles. [60s]"),
    _option("--stop-grace", type=Seconds(), help="From TERM to KILL when a failure stops the engine. [3s]"),
    _option("--grace", type=Seconds(), help="The pod's terminationGracePeriodSeconds. [30s]"),
    _option("--drain-settle", type=Seconds(), help="Serve on at least this long after SIGTERM. [5s]"),
    _option("--token-file", metavar="FILE", help="A secret that all pods share; members must prove it."),
    _option("--state-dir", metavar="DIR", help="An emptyDir for what a restarted container should remember."),
)
HEALTH = (
    _option("--startup-timeout", type=Seconds(), help="Limit for the whole start. [none]"),
    _option("--startup-stall-timeout", type=Seconds(), help="Start-up without any sign of life. [30m]"),
    _option("--health-interval", type=Seconds(), help="Between health checks. [1s]"),
    _option(
        "--health-failures",
        type=int,
        metavar="N",
        help="Errors or refused connections in a row that end the epoch while no request is in flight. [3]",
    ),
    _option(
        "--unresponsive-timeout",
        type=Seconds(),
        help="Health checks fail and no request makes progress; 0: never. [120s]",
    ),
    _option("--unready-when-slow", is_flag=True, help="/readyz fails while requests move but health checks time out."),
    _option("--hang-timeout", type=Seconds(), help="Requests run and no token moves; 0: never. [300s]"),
    _option("--canary-interval", type=Seconds(), help="Ask an idle engine for one token; 0: never. [0]"),
    _option("--worker-ready", metavar="group|never", help="When a worker's /readyz is 200. [group]"),
)
OUTPUT = (
    _option("--log-format", metavar="text|json", help="[text]"),
    _option("--log-level", metavar="LEVEL", help="debug, info, warning or error. [info]"),
    _option("--termination-log", metavar="FILE", help="[/dev/termination-log]"),
    _option(
        "--last-lines", metavar="on|off", help="An engine's last lines in the log and the termination message. [on]"
    ),
    _option(
        "--status-details",
        metavar="none|loopback|all",
        help="Who reads the details of /status without a token. [loopback]",
    ),
)
SECTIONS = (
    ("Engine", ENGINE),
    ("Who this pod is", IDENTITY),
    ("Network", NETWORK),
    ("Group", GROUP),
    ("Health", HEALTH),
    ("Output", OUTPUT),
)
ALL = tuple(option for _, options in SECTIONS for option in options)
CONFIG = _option("--config", metavar="FILE", help="Settings from a TOML file: the long option names as keys.")
#: a word before ``--`` that belongs to no option
STRAY = click.Argument(["engine_args"], nargs=-1, type=click.UNPROCESSED)
PARAMETERS = (*ALL, CONFIG, STRAY)

#: what only `doctor` takes beside the options of a run
DOCTOR = (
    click.Option(["--group"], is_flag=True, help="Over all pods: run this in each of them in place of the engine."),
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
        """Words of the engine's own command line, before click calls them unknown."""
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
