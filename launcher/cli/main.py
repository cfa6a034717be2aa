"""The commands. Each reads its options and calls the module that does the work.

Everything after ``--`` belongs to the engine. Exit codes of errors: 64 if the input cannot be parsed, 78 if it cannot
work.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from launcher import __version__
from launcher.cli import sources
from launcher.cli.options import DOCTOR, Seconds, SettingsCommand
from launcher.common.text import nearest
from launcher.errors import ConfigError, ExitCode, LauncherError, UsageError
from launcher.model import PHASES
from launcher.settings import AGENT_PORT, Settings

if TYPE_CHECKING:
    from launcher.cli.manifest import ManifestPod

Start = Callable[[Settings, Mapping[str, str], Sequence[str]], int]  #: runs from parsed options: an exit code
SERVE = "serve"  #: the command in an engine's own command line, perhaps after the engine's name


class Commands(click.Group):
    """`launcher --engine vllm` is `launcher run --engine vllm`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        first = args[0] if args else ""
        if first not in self.commands and first not in ("--help", "-h", "--version"):
            if words := _of_an_engine(args):
                return super().parse_args(ctx, ["run", *words])  # which shows the equivalent launcher command
            if first and not first.startswith("-"):
                near = nearest(first, self.commands)
                hint = f"; did you mean `launcher {near}`?" if near else ""
                raise click.UsageError(f"there is no command {first!r}{hint}")
            args = ["run", *args]
        return super().parse_args(ctx, args)


def _of_an_engine(args: list[str]) -> list[str]:
    """`vllm serve M`, `serve M` and `org/model` as options of `run`; empty for any other line."""
    from launcher.engines import registry

    first = args[0] if args else ""
    if first == SERVE:
        return args[1:]
    if not first.startswith("-") and first in registry.names():
        return ["--engine", first, *args[1 + (args[1:2] == [SERVE]) :]]
    return args if "/" in first else []


@click.group(
    cls=Commands,
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


@cli.command(cls=SettingsCommand)
@click.pass_context
def run(ctx: click.Context, /, **flags: Any) -> int:
    """Find the role, form the group, start the engine, keep the group's fate one. The default command."""
    from launcher.planning import steps

    settings, environ, warnings = sources.read(flags, ctx.meta["engine_args"], os.environ)
    steps.identity_of(settings, environ)
    start: Start = ctx.obj
    return start(settings, environ, warnings)


@cli.command(cls=SettingsCommand)
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
        settings, environ, warnings = sources.read(flags, ctx.meta["engine_args"], os.environ)
        page = show.plan(settings, environ, warnings)
        click.echo(show.as_json(page) if as_json else show.as_text(page, only))
        return
    from launcher.cli import manifest

    pages = [_page(ctx, flags, pod) for pod in manifest.read(filename)]
    if as_json:
        click.echo(show.as_json(pages))
    else:
        click.echo("\n\n".join(f"{page['manifest']}\n\n{show.as_text(page, only)}" for page in pages))
    if any(page["problems"] for page in pages):
        ctx.exit(int(ExitCode.CONFIG))


@cli.command(cls=SettingsCommand, params=[*DOCTOR])
@click.pass_context
def doctor(ctx: click.Context, /, group: bool, collective: bool, as_json: bool, **flags: Any) -> int:
    """Is this pod fit? Takes the options of run. Exit code 0: yes, 1: something failed, 78: the plug-in of
    the engine is broken.

    Without options, in a pod whose PID 1 is a launcher, that one's options are taken.
    """
    args, taken = list(ctx.meta["args"]), None
    if not set(args) - {option.opts[0] for option in DOCTOR}:
        from launcher.preflight.checks.process import options_of_pid_1

        taken = options_of_pid_1(os.environ.get("LAUNCHER_PROC") or "/proc")
    if taken:
        settings, environ, warnings = sources.parse(taken, os.environ, more=DOCTOR)
    else:
        settings, environ, warnings = sources.read(flags, ctx.meta["engine_args"], os.environ)
    if group or collective:
        from launcher.preflight.group import engine as pods

        return pods.run(ctx.obj, settings, environ, warnings, taken or args, as_json, collective)
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


@cli.command(cls=SettingsCommand)
@click.pass_context
def local(ctx: click.Context, /, **flags: Any) -> None:
    """A whole group on this machine: rank r on 127.0.0.(1+r), the same ports on each. Ctrl-C stops all."""
    from launcher.cli import local as group

    settings, _, _ = sources.read(flags, ctx.meta["engine_args"], os.environ)
    if settings.size is None:
        raise UsageError("launcher local needs --size", "say how many ranks: --size 2")
    sys.exit(group.run(settings.size, ctx.meta["args"], settings))


def _of_a_pod(command: Callable[..., Any]) -> Callable[..., Any]:
    """Which pod's launcher is asked, and what it is shown."""
    token = "The group's secret, for details from afar. Only a token derived from it is sent (see status-token)."
    for option in (
        click.option("--token-file", metavar="FILE", envvar="LAUNCHER_TOKEN_FILE", help=token),
        click.option("--agent-port", type=int, envvar="LAUNCHER_AGENT_PORT", help="Its port, on this pod. [9471]"),
        click.option(
            "--url", metavar="URL", envvar="LAUNCHER_STATUS_URL", help="Agent address of a pod. [http://127.0.0.1:9471]"
        ),
    ):
        command = option(command)
    return command


@cli.command()
@_of_a_pod
@click.option("--json", "as_json", is_flag=True, help="The object as it came.")
@click.option("--watch", is_flag=True, help="Again every second, until Ctrl-C.")
@click.option("--all", "every", is_flag=True, help="Every pod of the headless Service: a line for each group.")
@click.argument("service", required=False)
def status(
    url: str | None,
    agent_port: int | None,
    token_file: str | None,
    as_json: bool,
    watch: bool,
    every: bool,
    service: str | None,
) -> int:
    """What a pod says of its group, as a table. Exit code 0: it serves, 1: it does not.

    \b
    launcher status --all [SERVICE.NAMESPACE.svc]
        the pods behind a headless Service, by default the one of this pod's own group
    """
    if not every:
        if service:
            raise UsageError(f"a Service, {service!r}, goes with --all", "launcher status --all SERVICE")
        from launcher.cli import status as show_status

        return show_status.run(url, agent_port, token_file, as_json, watch)
    if url:
        raise UsageError("--all and --url contradict each other", "give --all SERVICE, or the --url of one pod")
    from launcher.cli import all_pods

    if service is None:
        from launcher.preflight.checks.process import options_of_pid_1

        taken = options_of_pid_1(os.environ.get("LAUNCHER_PROC") or "/proc") or ()
        service = all_pods.service_of(all_pods.identity_here(taken, os.environ))
    return all_pods.run(service, agent_port or AGENT_PORT, token_file, as_json, watch)


@cli.command()
@_of_a_pod
@click.option("--ready", is_flag=True, help="Until /readyz answers 200.")
@click.option(
    "--phase", "phases", multiple=True, type=click.Choice(PHASES), metavar="PHASE", help="Until this phase; repeatable."
)
@click.option("--timeout", type=Seconds(), metavar="DURATION", help="Give up after so long; 0: look once. [no limit]")
def wait(
    url: str | None,
    agent_port: int | None,
    token_file: str | None,
    ready: bool,
    phases: tuple[str, ...],
    timeout: float | None,
) -> int:
    """Wait until a pod is ready, or its group is in a phase. Exit code 0: it is, 75: not within --timeout.

    A pod that does not answer yet is waited for.
    """
    if ready is bool(phases):
        raise UsageError("launcher wait needs --ready or --phase", "say what to wait for: launcher wait --ready")
    from launcher.api import client
    from launcher.cli import wait as waiting

    return waiting.run(client.base_url(url, agent_port), token_file, phases, timeout)


@cli.command()
@_of_a_pod
def restart(url: str | None, agent_port: int | None, token_file: str | None) -> None:
    """End the epoch of a group on all ranks, and begin the next one at once. Ask rank 0.

    Requests in flight are cut. It counts as no failure and costs no restart of --max-restarts. During a back-off
    it ends the pause. From another pod it takes the group's --token-file.
    """
    from launcher.api import client

    click.echo(client.act(client.base_url(url, agent_port), "restart", token_file))


@cli.command()
@_of_a_pod
@click.option("--rank", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="Whose lines.")
def logs(url: str | None, agent_port: int | None, token_file: str | None, rank: int) -> None:
    """The last lines of a rank's engine, as far as rank 0 has them: also of a pod that is gone. Ask rank 0.

    They are details, as in /status: for the pod itself, and for bearers of the status token.
    """
    from launcher.api import client
    from launcher.cli.status import clean, listed

    found = client.last_lines(client.base_url(url, agent_port), rank, token_file)
    ended = f", which ended: {clean(found.get('ended'))}" if found.get("ended") else ""
    click.echo(f"rank {rank}, epoch {clean(found.get('epoch'))}{ended}", err=True)
    for line in listed(found.get("lines")):
        click.echo(clean(line))


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
@click.option(
    "--query",
    metavar="PROMQL",
    help="Above 0 from the first request on, asked of the gateway; docs/scale-from-zero.md has one for yours.",
)
@click.option("--load", type=int, default=100, show_default=True, help="Requests in flight that one group carries.")
@click.option("--gang", type=click.Choice(["none", "volcano", "kueue"]), default="none", show_default=True)
@click.option(
    "--monitoring-namespace",
    metavar="NAME",
    help="Pods of this namespace may read /metrics: the network policy lets them in. [monitoring]",
)
def render(source: str, out: str | None, launcher_image: str, launcher_in_image: bool, **more: Any) -> None:
    """An InferenceService as plain YAML: the objects of k8s/, one StatefulSet a group."""
    from launcher.render import command
    from launcher.render.model import RenderOptions

    options = RenderOptions(launcher_image=None if launcher_in_image else launcher_image, **more)
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
    ctx: click.Context, flags: Mapping[str, Any], pod: ManifestPod
) -> tuple[Settings, dict[str, str], tuple[str, ...]]:
    """Settings of a manifest's pod; options on this command line take precedence."""
    given = {k: v for k, v in flags.items() if v is not None and v is not False and v != ()}
    try:
        settings, environ, warnings = sources.parse(
            pod.args, pod.environ, flags=given, engine_args=ctx.meta["engine_args"]
        )
    except UsageError as error:
        raise ConfigError(f"{pod.title}: {error.message}", error.fix) from None
    if settings.token_file and "token_file" not in given:
        settings, warnings = settings.replace(token_file=None), (*warnings, "--token-file: the Secret is not read here")
    return settings, environ, (*pod.warnings, *warnings)


def _page(ctx: click.Context, flags: Mapping[str, Any], pod: ManifestPod) -> dict[str, Any]:
    """What `launcher plan` shows for one set of pods, including what would deadlock or break."""
    from launcher.cli import manifest_checks
    from launcher.cli import plan as show

    settings, environ, warnings = _of_manifest(ctx, flags, pod)
    found = manifest_checks.examine(pod, settings)
    problems = list(found.problems)
    try:
        page = show.plan(settings, environ, (*warnings, *found.warnings), pod.hostname)
    except LauncherError as error:
        if not problems:
            raise
        first = "\n".join(f"{p}\n  fix: {p.fix}" for p in problems)
        raise ConfigError(f"{pod.title}:\n{first}\n{error.message}", error.fix) from None
    if pod.worker is not None:
        own, own_environ, more = _of_manifest(ctx, flags, pod.worker)
        problems += manifest_checks.examine(pod.worker, own).problems
        problems += manifest_checks.unlike(pod, settings, pod.worker, own)
        worker = show.plan(own, own_environ, more, pod.worker.hostname)
        page["ranks"] = [page["ranks"][0], *worker["ranks"][1:]]
        page["warnings"] = list(dict.fromkeys([*page["warnings"], *worker["warnings"]]))
    problems = list(dict.fromkeys(problems))
    return {
        "manifest": pod.title,
        **page,
        "problems": [{"path": p.path, "what": p.what, "fix": p.fix} for p in problems],
    }


# ------------------------------------------------------------------------------------------------- endings


def main() -> None:
    """All commands but `run`."""
    sys.exit(_ended(lambda: cli.main(prog_name="launcher", standalone_mode=False)))


def run_agent(fd: int) -> int:
    """`run`, in the agent that the guard forked; ``fd`` is its end of the channel."""

    def start(settings: Settings, environ: Mapping[str, str], warnings: Sequence[str]) -> int:
        from launcher.agent import agent

        gc.freeze()  # imported modules are never garbage: keep them out of collections
        gc.enable()
        return agent.main(fd, settings, environ, warnings)

    return _ended(lambda: cli.main(prog_name="launcher", standalone_mode=False, obj=start))


def _ended(command: Callable[[], Any]) -> int:
    """Run a command, print its error, and return the exit code."""
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
