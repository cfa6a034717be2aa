"""The command line: click commands that turn flags, LAUNCHER_* variables and a file into Settings. Nothing else.

A flag goes before a variable, a variable before the file, the file before the default. Everything after ``--`` belongs
to the engine. Errors name the flag (or the variable, or the file's entry), the value and the fix, and exit with 64 for
what can't be read and 78 for what can't work.
"""

from __future__ import annotations

import functools
import gc
import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from launcher import __version__
from launcher.common import files
from launcher.common.numbers import check_document
from launcher.errors import ConfigError, ExitCode, LauncherError, UsageError
from launcher.settings import Settings

if TYPE_CHECKING:
    from launcher.cli.manifest import Told

PREFIX = "LAUNCHER"
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
Start = Callable[[Settings, Mapping[str, str], Sequence[str]], int]  #: a run, once its options are read: its exit code

# Variables of this prefix that are no options.
OWN_VARIABLES = {
    *("LAUNCHER_COOKIE", "LAUNCHER_REPLACES", "LAUNCHER_PREVIOUS_AGENT", "LAUNCHER_LAST_EPOCH"),
    *("LAUNCHER_DOCTOR", "LAUNCHER_DOCTOR_TOKEN", "LAUNCHER_DOCTOR_ORDER", "LAUNCHER_STATUS_TOKEN"),
    *("LAUNCHER_SYSFS", "LAUNCHER_DEV", "LAUNCHER_PROC", "LAUNCHER_NETWORK_STATUS", "LAUNCHER_IMAGE_ENV"),
}

MOST_SECONDS = 1e9  #: of a duration
DOCTORS_OWN = ("group", "collective", "as_json")  #: options of doctor that are no settings
DOCTORS_FLAGS = {"--group", "--collective", "--json"}


class Seconds(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic since click 8.2
    """A duration: ``90``, ``90s``, ``1.5m``, ``2h``; ``500ms``."""

    name = "duration"
    _units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}  # noqa: RUF012

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            if not 0 <= value <= MOST_SECONDS:
                self.fail(f"{_short(value)} is not a number of seconds from 0 to {MOST_SECONDS:g}", param, ctx)
            return float(value)
        text = str(value).strip().lower()
        unit = next((u for u in ("ms", "s", "m", "h", "d") if text.endswith(u)), "")
        try:
            number = float(text[: len(text) - len(unit)] if unit else text)
        except ValueError:
            number = float("nan")
        number *= self._units.get(unit, 1.0)
        if not 0 <= number < float("inf"):
            self.fail(f"{_short(value)} is not a duration: write 90, 90s, 1.5m or 2h", param, ctx)
        if number > MOST_SECONDS:
            self.fail(f"{_short(value)} is too long: {MOST_SECONDS:g} seconds are 31 years", param, ctx)
        return number


def _short(value: object) -> str:
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


def _option(*names: str, **more: Any) -> Decorator:
    more.setdefault("default", None)
    return click.option(*names, **more)


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
CONFIG = click.option("--config", metavar="FILE", help="Settings from a TOML file: the long option names as keys.")


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Every option that makes Settings, and what goes to the engine."""
    command.__click_params__ = [*getattr(command, "__click_params__", []), *_settings_parameters()]  # type: ignore[attr-defined]
    return command


@functools.cache
def _settings_parameters() -> tuple[click.Parameter, ...]:
    """Made once, in click's order (the last first), and shared by all commands: they hold no state."""

    def probe() -> None: ...

    click.argument("engine_args", nargs=-1, type=click.UNPROCESSED)(probe)
    for option in reversed((*ALL, CONFIG)):
        option(probe)
    return tuple(probe.__click_params__)  # type: ignore[attr-defined]


class Command(click.Command):
    """Help in sections; and everything after ``--`` is kept apart, so that a stray word before it is an error."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own, engine = (args[: args.index("--")], args[args.index("--") + 1 :]) if "--" in args else (args, [])
        ctx.meta["engine_args"] = tuple(engine)
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
        records = {p.name: p.get_help_record(ctx) for p in self.get_params(ctx)}
        shown: set[str | None] = set()
        for title, options in SECTIONS:
            names = [_name_of(option) for option in options]
            rows = [r for r in (records.get(n) for n in names) if r]
            shown.update(names)
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)
        rest = [r for n, r in records.items() if n not in shown and r]
        if rest:
            with formatter.section("Options"):
                formatter.write_dl(rest)


@functools.cache
def option_names(options: tuple[Decorator, ...]) -> frozenset[str]:
    """How these options are written: ``--engine``, ``--tp``."""

    def probe() -> None: ...

    for option in options:
        option(probe)
    return frozenset(name for p in probe.__click_params__ for name in p.opts)  # type: ignore[attr-defined]


def _name_of(option: Decorator) -> str:
    """The parameter that an option decorator makes."""

    def probe() -> None: ...

    option(probe)
    return str(probe.__click_params__[-1].name)  # type: ignore[attr-defined]


ENGINES_OWN = ("serve", "vllm", "sglang")  #: how a command line of an engine's own begins


class Group(click.Group):
    """`launcher --engine vllm` is `launcher run --engine vllm`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        first = args[0] if args else ""
        if first not in self.commands and first not in ("--help", "-h", "--version"):
            if first in ENGINES_OWN or "/" in first:
                from launcher.engines.registry import BUILT_IN

                words = args[1:] if first in ENGINES_OWN else args
                if first in BUILT_IN:
                    words = ["--engine", first, *words[words[:1] == ["serve"] :]]
                return super().parse_args(ctx, ["run", *words])  # which says how the line is written here
            if first and not first.startswith("-"):
                import difflib

                near = difflib.get_close_matches(first, self.commands, 1)
                hint = f"; did you mean `launcher {near[0]}`?" if near else ""
                raise click.UsageError(f"there is no command {first!r}{hint}")
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Every option has a variable (--join-timeout: LAUNCHER_JOIN_TIMEOUT). `launcher run --help` lists them all.",
)
@click.version_option(__version__, prog_name="launcher")
def cli() -> None:
    """The entrypoint of every pod of a multi-node LLM inference engine.

    \b
    launcher --engine vllm --model M --tp 2 --pp 2 [-- ENGINE ARGS]
        in every pod of a group, or alone on one machine
    launcher plan --engine vllm --model M --tp 8 --pp 2 --size 2
        what every rank would run, and why
    launcher local --size 2 --engine reference
        a whole group on this machine
    """


@cli.command(cls=Command)
@settings_options
@click.pass_context
def run(ctx: click.Context, /, **flags: Any) -> int:
    """Find the role, form the group, start the engine, keep the group's fate one. The default command."""
    from launcher.planning import steps

    settings, environ, warnings = read(ctx, flags, os.environ)
    steps.identity_of(settings, environ)
    start: Start = ctx.obj
    return start(settings, environ, warnings)


@cli.command(cls=Command)
@settings_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object for programs.")
@click.option("--only", type=int, metavar="RANK", help="Print this rank only.")
@click.option("-f", "--filename", metavar="FILE", help="Plan the pods of a manifest; -: standard input.")
@click.pass_context
def plan(ctx: click.Context, /, as_json: bool, only: int | None, filename: str | None, **flags: Any) -> None:
    """What every rank would run, and why. Touches no network and starts nothing.

    \b
    launcher plan --engine vllm --model M --tp 8 --pp 2 --size 2 --gpus-per-pod 8
    kubectl kustomize DIR | launcher plan -f -
        the pods of a StatefulSet, LeaderWorkerSet or indexed Job; options given here win over the manifest's.
        With --json: a list, one page for each set of pods
    """
    from launcher.cli import plan as show

    if filename is None:
        settings, environ, warnings = read(ctx, flags, os.environ)
        page = show.plan(settings, environ, warnings)
        click.echo(show.as_json(page) if as_json else show.as_text(page, only))
        return
    from launcher.cli import manifest

    pages = [_page(ctx, flags, told) for told in manifest.read(filename)]
    if as_json:
        click.echo(show.as_json(pages))
    else:
        click.echo("\n\n".join(f"{page['manifest']}\n\n{show.as_text(page, only)}" for page in pages))
    if any(page["problems"] for page in pages):
        ctx.exit(int(ExitCode.CONFIG))


@cli.command(cls=Command)
@settings_options
@click.option("--group", "group", is_flag=True, help="Over all pods: run this in each of them in place of the engine.")
@click.option("--collective", is_flag=True, help="As --group, and a real all-reduce with the engine's torch.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for programs.")
@click.pass_context
def doctor(ctx: click.Context, /, group: bool, collective: bool, as_json: bool, **flags: Any) -> int:
    """Is this pod fit? Takes the options of run. Exit code 0: yes, 1: something failed.

    Without options, in a pod whose PID 1 is a launcher, that one's options are taken.
    """
    args = sys.argv[2:]
    if not set(args) - DOCTORS_FLAGS:
        from launcher.preflight.checks.process import options_of_pid_1

        taken = options_of_pid_1(os.environ.get("LAUNCHER_PROC") or "/proc")
        if taken:
            args = taken
            ctx = ctx.command.make_context(ctx.info_name, list(args), parent=ctx.parent)
            flags = {k: v for k, v in ctx.params.items() if k not in DOCTORS_OWN}
    settings, environ, warnings = read(ctx, flags, os.environ)
    if group or collective:
        from launcher.preflight.group import engine as pods

        return pods.run(ctx.obj, settings, environ, warnings, args, as_json, collective)
    from launcher.preflight import doctor as pod

    return pod.run(settings, environ, warnings, os.environ, as_json)


@cli.command()
def engines() -> None:
    """The engines that this launcher can start."""
    from launcher.engines.registry import available

    rows = available()
    width = max(len(name) for name, _, _ in rows)
    for name, summary, origin in rows:
        click.echo(f"{name:<{width}}  {summary}  [{origin}]")
    click.echo("\nAny other engine: --engine-file FILE (see docs/engine-file.md)")


@cli.command(cls=Command)
@settings_options
@click.pass_context
def local(ctx: click.Context, /, **flags: Any) -> None:
    """A whole group on this machine: rank r on 127.0.0.(1+r), the same ports on each. Ctrl-C stops all."""
    from launcher.cli import local as group

    settings, _, _ = read(ctx, flags, os.environ)
    if settings.size is None:
        raise UsageError("launcher local needs --size", "say how many ranks: --size 2")
    sys.exit(group.run(settings.size, sys.argv[2:], settings))


@cli.command()
@click.option(
    "--url", metavar="URL", help="Agent address of a pod. [http://127.0.0.1:9471]", envvar="LAUNCHER_STATUS_URL"
)
@click.option(
    "--agent-port", type=int, default=None, envvar="LAUNCHER_AGENT_PORT", help="Its port, on this pod. [9471]"
)
@click.option(
    "--token-file",
    metavar="FILE",
    envvar="LAUNCHER_TOKEN_FILE",
    help="The group's secret, for details from afar. Only a token derived from it is sent (see status-token).",
)
@click.option("--json", "as_json", is_flag=True, help="The object as it came.")
@click.option("--watch", is_flag=True, help="Again every second, until Ctrl-C.")
def status(url: str | None, agent_port: int | None, token_file: str | None, as_json: bool, watch: bool) -> None:
    """What a pod says of its group, as a table."""
    from launcher.cli import status as show_status

    sys.exit(show_status.run(url, agent_port, token_file, as_json, watch))


@cli.command("status-token")
@click.option("--token-file", metavar="FILE", envvar="LAUNCHER_TOKEN_FILE", help="The group's secret.")
def status_token(token_file: str | None) -> None:
    """Print the token that opens the details of /status. Paste this, never the secret.

    \b
    curl -H "Authorization: Bearer $(launcher status-token --token-file FILE)" http://POD_IP:9471/status
    LAUNCHER_STATUS_TOKEN=... launcher status --url http://POD_IP:9471
        where the secret itself is not at hand
    """
    from launcher.group import proof

    if not token_file:
        raise UsageError("status-token needs --token-file", "give the file with the group's secret")
    said = f"--token-file {token_file}"
    secret = proof.read_secret(token_file, said)
    warning = proof.exposure(token_file, said)
    if warning:
        click.echo(f"launcher: warning: {warning}", err=True)
    click.echo(proof.status_token(secret))


@cli.command()
@click.option("-f", "--file", "source", required=True, metavar="FILE", help="An InferenceService in YAML; - is stdin.")
@click.option("-o", "--out", metavar="DIR", help="Write files into this folder. [print all]")
@click.option(
    "--launcher-image",
    default="launcher:dev",
    show_default=True,
    help="What the init container copies the launcher from.",
)
@click.option(
    "--launcher-in-image", is_flag=True, help="The engine's image has the launcher inside: no init container."
)
@click.option("--keda/--no-keda", default=True, show_default=True, help="From zero to whole groups and back by KEDA.")
@click.option(
    "--replicas",
    type=click.Choice(["zero", "keep"]),
    default="zero",
    show_default=True,
    help="Under KEDA: zero for the first apply, keep from then on: the number is left to KEDA.",
)
@click.option("--prometheus", metavar="URL", help="Where KEDA asks for the load.")
@click.option("--query", metavar="PROMQL", help="Requests in flight, asked of something in front of the engine.")
@click.option("--load", type=int, default=100, show_default=True, help="Requests in flight that one group carries.")
@click.option("--gang", type=click.Choice(["none", "volcano", "kueue"]), default="none", show_default=True)
def render(source: str, out: str | None, launcher_image: str, launcher_in_image: bool, **more: Any) -> None:
    """An InferenceService as plain YAML: the objects of k8s/, one StatefulSet a group."""
    from launcher.render import command
    from launcher.render.objects import Options

    options = Options(launcher_image=None if launcher_in_image else launcher_image, **more)
    text, warnings = command.run(source, out, options)
    click.echo(text, nl=False)
    for warning in warnings:
        click.echo(f"launcher: warning: {warning}", err=True)


@cli.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes launcher's options: eval "$(launcher completion bash)"."""
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "launcher", "_LAUNCHER_COMPLETE").source())


# -------------------------------------------------------------------------------------------- into Settings


def _of_manifest(
    ctx: click.Context, flags: Mapping[str, Any], told: Told
) -> tuple[Settings, dict[str, str], tuple[str, ...]]:
    """Settings of a manifest's pod; what was given on this command line wins."""
    try:
        pod = run.make_context("run", list(told.args))
    except click.UsageError as error:
        raise ConfigError(f"{told.title}: {error.format_message()}", "correct the container's args") from None
    given = {k: v for k, v in flags.items() if v is not None and v is not False and v != ()}
    if ctx.meta.get("engine_args"):
        pod.meta["engine_args"] = ctx.meta["engine_args"]
    settings, environ, warnings = read(pod, {**pod.params, **given}, told.environ)
    if settings.token_file and "token_file" not in given:
        settings, warnings = settings.replace(token_file=None), (*warnings, "--token-file: the Secret is not read here")
    return settings, environ, (*told.warnings, *warnings)


def _page(ctx: click.Context, flags: Mapping[str, Any], told: Told) -> dict[str, Any]:
    """What `launcher plan` shows of one set of pods, with what would deadlock or break."""
    from launcher.cli import manifest_checks
    from launcher.cli import plan as show

    settings, environ, warnings = _of_manifest(ctx, flags, told)
    found = manifest_checks.examine(told, settings)
    problems = list(found.problems)
    try:
        page = show.plan(settings, environ, (*warnings, *found.warnings), told.hostname)
    except LauncherError as error:
        if not problems:
            raise
        first = "\n".join(f"{p}\n  fix: {p.fix}" for p in problems)
        raise ConfigError(f"{told.title}:\n{first}\n{error.message}", error.fix) from None
    if told.worker is not None:
        own, own_environ, more = _of_manifest(ctx, flags, told.worker)
        problems += manifest_checks.examine(told.worker, own).problems
        problems += manifest_checks.unlike(told, settings, told.worker, own)
        worker = show.plan(own, own_environ, more, told.worker.hostname)
        page["ranks"] = [page["ranks"][0], *worker["ranks"][1:]]
        page["warnings"] = list(dict.fromkeys([*page["warnings"], *worker["warnings"]]))
    problems = list(dict.fromkeys(problems))
    return {
        "manifest": told.title,
        **page,
        "problems": [{"path": p.path, "what": p.what, "fix": p.fix} for p in problems],
    }


def read(
    ctx: click.Context, flags: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[Settings, dict[str, str], tuple[str, ...]]:
    """Settings, the environment without what service links put there, and warnings.

    Raises:
        UsageError: something that cannot be read.
        ConfigError: something that cannot work.
    """
    from launcher.identity.service_links import strip
    from launcher.planning.rank_variables import is_for_one_role

    stray = flags.get("engine_args", ())
    if stray:
        raise UsageError(f"{stray[0]!r} is no option", "what is meant for the engine goes after --")
    flags = {k: v for k, v in flags.items() if k != "engine_args"}
    config = flags.pop("config", None)
    clean, warnings = strip(environ)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    config = config or clean.get(f"{PREFIX}_CONFIG")
    entries = _file(config) if config else {}
    params = {p.name: p for p in ctx.command.params if p.name is not None}
    for name in flags:
        param = params[name]
        variable = f"{PREFIX}_{name.upper()}"
        given = flags[name]
        if given is not None and given is not False and given != ():
            values[name], origins[name] = given, param.opts[0]
        elif clean.get(variable, "") != "":
            values[name], origins[name] = _convert(param, clean[variable], variable, ctx), variable
        elif name in entries:
            origin = f"{config}: {name.replace('_', '-')}"
            values[name], origins[name] = _convert(param, entries[name], origin, ctx), origin
    args = tuple(ctx.meta.get("engine_args", ()))
    if args:
        values["engine_args"], origins["engine_args"] = args, "--"
    elif clean.get(f"{PREFIX}_ENGINE_ARGS"):
        variable = f"{PREFIX}_ENGINE_ARGS"
        values["engine_args"] = _shell_words(clean[variable], variable)
        origins["engine_args"] = variable
    elif "engine_args" in entries:
        values["engine_args"], origins["engine_args"] = (
            tuple(map(str, entries["engine_args"])),
            f"{config}: engine-args",
        )
    unknown = sorted(
        k
        for k in clean
        if k.startswith(f"{PREFIX}_")
        and k not in OWN_VARIABLES
        and not is_for_one_role(k)
        and k[len(PREFIX) + 1 :].lower() not in {*params, "engine_args", "config", "status_url"}
    )
    more = tuple(f"{k} is set and is no option of the launcher: ignored" for k in unknown)
    return Settings(**values, origins=MappingProxyType(origins)), clean, (*warnings, *more)


def _convert(param: click.Parameter, value: Any, origin: str, ctx: click.Context) -> Any:
    if isinstance(param, click.Option) and param.is_flag:
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
        return param.type.convert(value, param, ctx)
    except click.UsageError as error:
        raise UsageError(f"{origin}={value}: {error.message}", f"correct it, or give {param.opts[0]}") from None
    except (ValueError, TypeError, OverflowError):
        raise UsageError(f"{origin}={_short(value)} cannot be read", f"correct it, or give {param.opts[0]}") from None


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
    known = {_name_of(option) for option in ALL} | {"engine_args"}
    found = {}
    for key, value in entries.items():
        name = key.replace("-", "_")
        if name not in known:
            import difflib

            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0].replace('_', '-')}?" if near else "see `launcher run --help`"
            raise UsageError(f"--config {path}: there is no setting {key}", hint)
        found[name] = value
    return found


# ------------------------------------------------------------------------------------------------- endings


def main() -> None:
    """All commands but `run`."""
    sys.exit(_ended(lambda: cli.main(prog_name="launcher", standalone_mode=False)))


def run_agent(fd: int) -> int:
    """`run`, in the agent that the guard forked; ``fd`` is its end of the channel."""

    def start(settings: Settings, environ: Mapping[str, str], warnings: Sequence[str]) -> int:
        from launcher.agent import agent

        gc.freeze()  # nothing of what was imported will ever be garbage
        gc.enable()
        return agent.main(fd, settings, environ, warnings)

    return _ended(lambda: run_with(start))


def run_with(start: Start) -> Any:
    """`run`: read the options and call ``start``. Errors are exceptions."""
    return cli.main(prog_name="launcher", standalone_mode=False, obj=start)


def _ended(command: Callable[[], Any]) -> int:
    """Errors in words, and the exit code of their kind."""
    try:
        result = command()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.Abort:
        return 130
    except click.UsageError as error:
        path = "launcher" if error.ctx is None else error.ctx.command_path
        _say(error.format_message(), f"see `{path} --help`")
        return int(ExitCode.USAGE)
    except click.ClickException as error:
        _say(error.format_message(), "")
        return int(ExitCode.USAGE)
    except LauncherError as error:
        _say(error.message, error.fix)
        return int(error.code)
    except BrokenPipeError:
        return 0


def _say(message: str, fix: str) -> None:
    click.echo(f"launcher: {message}" + (f"\n  fix: {fix}" if fix else ""), err=True)


__all__ = ["ConfigError", "cli", "main", "read", "run_agent"]
