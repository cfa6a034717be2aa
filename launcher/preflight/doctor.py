"""`launcher doctor`: what this pod is, whether it is fit for the engine, and which variables affect how it runs.

It takes the options of `launcher run`, so a manifest's args can be appended as they are. A wrong setting is a finding,
not an error. The only programs it starts are short queries of the engine's interpreter and nvidia-smi.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from launcher.common.addresses import host_port
from launcher.engines.base import Engine, PlanContext
from launcher.engines.plugin import PluginError
from launcher.errors import ExitCode, LauncherError, NoIdentityError
from launcher.model import Identity, NodeFacts
from launcher.network import probe
from launcher.network.environment import Surroundings, Variable
from launcher.node.run_command import asker
from launcher.planning import own_ports, pod_network, rank_variables, steps, variables
from launcher.planning.pod_network import Network
from launcher.preflight import show
from launcher.preflight.checks import run as checks
from launcher.preflight.finding import Finding, fail, ok, skipped, warn
from launcher.preflight.pod import Node
from launcher.settings import Settings

RESOLVE_SECONDS = 3.0
PLUGIN = "plugin"  #: key of ``trouble``: the engine's plug-in is broken
SAID = {"engine", "engine_file", "model", "tp", "pp", "dp", "engine_args"}


@dataclass(frozen=True)
class DoctorReport:
    """Everything that doctor reports about one pod."""

    node: Node
    findings: tuple[Finding, ...]
    variables: tuple[Variable, ...] = ()

    @property
    def fit(self) -> bool:
        return not any(f.level.value == "fail" for f in self.findings)


def examine(
    settings: Settings, environ: Mapping[str, str], warnings: Sequence[str], raw: Mapping[str, str]
) -> DoctorReport:
    """Learn about this pod and run every check. ``raw``: the environment including service links."""
    return asyncio.run(_examine(settings, environ, warnings, raw))


async def _examine(
    settings: Settings, environ: Mapping[str, str], warnings: Sequence[str], raw: Mapping[str, str]
) -> DoctorReport:
    node, findings, engine = await learn(settings, environ, raw)
    found = await asyncio.to_thread(checks.run, node)
    links = {f.what.partition(": ")[0] for f in found if f.check == "links"}
    more = [warn("settings", w, "", "") for w in warnings if w.partition(": ")[0] not in links]
    return DoctorReport(node, (*findings, *more, *found), variables_of(engine, node))


async def learn(
    settings: Settings, environ: Mapping[str, str], raw: Mapping[str, str]
) -> tuple[Node, tuple[Finding, ...], Engine | None]:
    """The pod as the checks see it, findings about what could not be learned, and the engine."""
    try:
        return await _learn(settings, environ, raw, {})
    except PluginError as error:  # whatever in the plug-in is broken, check the pod without it
        return await _learn(settings, environ, raw, {"engine": str(error), PLUGIN: error.message})


async def _learn(
    settings: Settings, environ: Mapping[str, str], raw: Mapping[str, str], trouble: dict[str, str]
) -> tuple[Node, tuple[Finding, ...], Engine | None]:
    node = Node(settings, environ, raw)
    findings: list[Finding] = []
    identity = _identity(settings, environ, findings, trouble)
    if identity is not None:
        environ = rank_variables.environment(environ, identity.rank)
    node = replace(node, environ=environ, identity=identity, running=await _is_running(settings))
    engine = None if "engine" in trouble else _engine(settings, trouble)
    if engine is not None:
        node = replace(node, **await _facts(settings, engine, environ, trouble))
        findings += _settings(settings, engine, identity, node.facts)
    network = await _network(node, trouble)
    node = replace(node, network=network, trouble=trouble)
    if engine is not None and identity is not None:
        node = replace(node, plan=_plan(node, engine, identity))
    return node, tuple(findings), engine


def run(
    settings: Settings,
    environ: Mapping[str, str],
    warnings: Sequence[str],
    raw: Mapping[str, str],
    as_json: bool,
) -> int:
    """Print one screen, or one JSON object. 0: fit, 1: something failed, 78: the engine's plug-in is broken."""
    report = examine(settings, environ, warnings, raw)
    print(json.dumps(as_object(report), indent=2) if as_json else as_text(report, show.paints(environ)))
    if PLUGIN in report.node.trouble:
        return int(ExitCode.CONFIG)
    return 0 if report.fit else 1


def as_text(report: DoctorReport, paint: bool = False) -> str:
    """The report as text. The verdict comes last, where it stays in view."""
    lines = [f"launcher doctor: {_who(report.node)}", ""]
    lines += show.lines(report.findings, show.width(), paint)
    if report.variables:
        lines += ["", "variables of the engine: value, who set it, why", *variables.table(report.variables, "  ")]
    return "\n".join([*lines, "", show.verdict(report.findings)])


def as_object(report: DoctorReport) -> dict[str, Any]:
    who = report.node.identity
    return {
        "identity": None
        if who is None
        else {"group": who.group, "rank": who.rank, "size": who.size, "name": who.name, "source": who.source},
        **show.as_object(report.findings),
        "variables": variables.as_objects(report.variables),
    }


def _who(node: Node) -> str:
    if node.identity is None:
        return "this pod"
    who = node.identity
    if who.alone:
        return "this machine, alone"
    return f"rank {who.rank} of {who.size}, group {who.group} ({who.source})"


# ------------------------------------------------------------------------------------------------ what is learned


def _identity(
    settings: Settings, environ: Mapping[str, str], findings: list[Finding], trouble: dict[str, str]
) -> Identity | None:
    try:
        identity, _, more = steps.identity_of(settings, environ)
    except NoIdentityError as error:
        trouble["identity"] = "which pod this is cannot be told"
        findings.append(fail("identity", error.message, "no group can be formed without a rank", error.fix))
        return None
    except LauncherError as error:
        trouble["identity"] = error.message
        findings.append(fail("identity", error.message, "the launcher will not start with this", error.fix))
        return None
    said = f"rank {identity.rank} of {identity.size}, leader {identity.leader} ({identity.source})"
    findings.append(ok("identity", "alone: a group of one" if identity.alone else said))
    findings += [warn("identity", text, "", "") for text in more]
    return identity


def _engine(settings: Settings, trouble: dict[str, str]) -> Engine | None:
    try:
        return steps.engine_of(settings)
    except PluginError:
        raise
    except LauncherError as error:
        trouble["engine"] = str(error)
        return None


async def _facts(
    settings: Settings, engine: Engine, environ: Mapping[str, str], trouble: dict[str, str]
) -> dict[str, Any]:
    """Versions, GPUs, and the output of nvidia-smi."""
    smi: dict[str, Any] = {}
    ask = asker(environ)

    async def listening(argv: Sequence[str], timeout: float) -> tuple[int, str]:
        code, output = await ask(argv, timeout)
        if argv[:2] == ("nvidia-smi", "-L") and code != 127:
            smi.update(smi=output, smi_code=code)
        return code, output

    try:
        return {"facts": await steps.learn(settings, engine, environ, listening), **smi}
    except PluginError:
        raise
    except LauncherError as error:
        trouble["engine"] = str(error)
        return {"facts": NodeFacts(), **smi}


def _settings(settings: Settings, engine: Engine, identity: Identity | None, facts: NodeFacts) -> list[Finding]:
    """The engine's own check of the settings, as before a start."""
    if not SAID & set(settings.origins):
        return [skipped("settings", "none are given: put the options of `launcher run` behind `launcher doctor`")]
    if identity is None:
        return []
    try:
        steps.secret_of(settings)
        checked = engine.check(settings, identity, facts)
    except PluginError:
        raise
    except LauncherError as error:
        return [fail("settings", error.message, "the launcher will not start with this", error.fix)]
    said = "; ".join(checked.why) or f"engine {engine.name}"
    warnings = (*checked.warnings, *steps.secret_warnings(settings))
    return [ok("settings", said), *(warn("settings", text, "", "") for text in warnings)]


async def _network(node: Node, trouble: dict[str, str]) -> Network | None:
    who = node.identity
    if who is None or who.alone:
        return None
    leader: Sequence[str] = ()
    if who.address is None:
        leader = await _resolved(who.leader)
    try:
        return pod_network.find(node.settings, who, node.environ, leader, pod_network.nccl_version(node.facts))
    except LauncherError as error:
        trouble["network"] = str(error)
        return None


async def _resolved(name: str) -> tuple[str, ...]:
    """The addresses of a name; empty if DNS does not answer in time, which another check reports."""
    from launcher.network.names import wait_for_address

    loop = asyncio.get_running_loop()
    try:
        return await wait_for_address(name, loop.time() + RESOLVE_SECONDS, lambda _: None)
    except LauncherError:
        return ()


def _plan(node: Node, engine: Engine, identity: Identity) -> Any:
    address = node.network.address if node.network else identity.address or "127.0.0.1"
    outline = steps.outline(identity, address)
    bind = own_ports.bind_address(node.settings, address)
    context = PlanContext(node.settings, identity, node.facts, outline, bind, node.environ)
    try:
        return engine.plan(context, identity.rank)
    except PluginError:
        raise
    except (LauncherError, ValueError):
        return None  # the settings cannot work; `_settings` has reported it


def variables_of(engine: Engine | None, node: Node) -> tuple[Variable, ...]:
    """Every variable of this rank's engine; none if it cannot be planned."""
    if engine is None or node.plan is None:
        return ()
    network = node.network.variables if node.network else ()
    around = Surroundings.here(node.environ, variables.image_environment(node.raw))
    return variables.of_rank(engine, node.plan, network, around)


async def _is_running(settings: Settings) -> bool:
    host = own_ports.listen_host(settings) or "127.0.0.1"
    reply = await probe.ask(f"http://{host_port(host, settings.agent_port)}/livez", 0.5)
    return reply.ok and reply.body == b"alive\n"
