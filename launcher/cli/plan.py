"""`launcher plan`: what every rank would run, and why. Prints text for people, or one JSON object.

It touches no network and starts no engine. Addresses that are known only once pods run are placeholders in angle
brackets. Secrets (options and variables named like one) become ``***``.
"""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from launcher.engines import arguments
from launcher.engines.base import Engine, PlanContext
from launcher.errors import ConfigError, NoIdentityError
from launcher.model import Gate, Identity, NodeFacts, Plan, Process, SourceReport
from launcher.network.environment import HOSTS, Surroundings, Variable
from launcher.node.run_command import asker
from launcher.planning import own_ports, pod_network, rank_variables, steps, variables
from launcher.settings import Settings

SAME_AS = "the same as rank {}, but for its own address and rank"


def plan(
    settings: Settings, environ: Mapping[str, str], warnings: Sequence[str], hostname: str | None = None
) -> dict[str, Any]:
    """The whole page as plain data. Raises the same errors as a run would.

    ``hostname``: of a pod elsewhere, whose node and interpreter are unknown; None: this pod.
    """
    warned = list(warnings)
    identity, sources = _identity(settings, environ, warned, hostname)
    engine = steps.engine_of(settings)
    steps.secret_of(settings)
    warned += steps.secret_warnings(settings)
    elsewhere = NodeFacts(gpus=settings.gpus_per_pod)
    facts = _facts(settings, engine, environ, warned) if hostname is None else elsewhere
    checked = engine.check(settings, identity, facts)
    warned += checked.warnings
    if settings.handoff:
        warned.append("--handoff: after the start nobody watches, restarts or drains the engine; the launcher is gone")
    bind = own_ports.bind_address(settings, identity.address or identity.leader)
    context = PlanContext(settings, identity, facts, steps.sketch(identity), bind)
    plans = [
        engine.plan(replace(context, environ=steps.engine_environment(environ, rank)), rank)
        for rank in range(identity.size)
    ]
    network = _network(settings, identity, facts, environ, warned)
    around = Surroundings.here(rank_variables.environment(environ, identity.rank), variables.image_environment(environ))
    own = {v.name: v.value for v in network if v.setter == "launcher"}
    named = [
        steps.with_environment(p, own if network and p.rank == identity.rank else _per_node(identity, p.rank))
        for p in plans
    ]
    return {
        "identity": {
            "rank": identity.rank,
            "size": identity.size,
            "group": identity.group,
            "leader": identity.leader,
            "source": identity.source,
            "name": identity.name,
        },
        "sources": [{"name": s.name, "applied": s.applied, "why": s.why} for s in sources],
        "engine": {
            "name": engine.name,
            "versions": dict(facts.versions),
            "gpus_per_pod": facts.gpus,
            "why": list(dict.fromkeys([*checked.why, *plans[0].why])),
        },
        "ranks": [_rank(p, {**rank_variables.environment(environ, p.rank), **around.files}) for p in named],
        "variables": variables.as_objects(_variables(engine, identity, plans[identity.rank], network, around)),
        "ports": [
            *_own_ports(settings, identity),
            *(
                {"rank": p.rank, "number": q.number, "name": q.name, "external": q.external}
                for p in plans
                for q in p.ports
            ),
        ],
        "settings": {name: _said(settings, name) for name in sorted(settings.origins)},
        "warnings": list(dict.fromkeys(warned)),
    }


def _identity(
    settings: Settings, environ: Mapping[str, str], warned: list[str], hostname: str | None
) -> tuple[Identity, tuple[SourceReport, ...]]:
    try:
        identity, sources, more = steps.identity_of(settings, environ, hostname)
    except NoIdentityError:
        # Outside a cluster: the plan shows every rank anyway, so this pod's own rank does not matter.
        asked = settings.replace(rank=0, leader=settings.leader or "leader")
        identity, sources, more = steps.identity_of(asked, environ, hostname)
        warned.append("nothing here tells this pod's rank and leader: planned as rank 0 of a group led by `leader`")
    warned += more
    return identity, sources


def _facts(settings: Settings, engine: Engine, environ: Mapping[str, str], warned: list[str]) -> NodeFacts:
    """Facts of this machine; an engine that is not installed here is assumed to be its newest release."""
    wanted = engine.distributions(settings)
    try:
        facts = asyncio.run(steps.learn(settings, engine, environ, asker(environ)))
    except ConfigError as error:
        warned.append(f"{error.message}; planned without")
        return NodeFacts(gpus=settings.gpus_per_pod)
    if wanted and wanted[0] not in facts.versions:
        if settings.engine_version is None:
            where = engine.interpreter(settings)
            warned.append(f"{where} has no {wanted[0]} here: its version is not known (say it with --engine-version)")
        facts = NodeFacts(gpus=settings.gpus_per_pod)
    return facts


def _network(
    settings: Settings, identity: Identity, facts: NodeFacts, environ: Mapping[str, str], warned: list[str]
) -> tuple[Variable, ...]:
    """This rank's variables for collectives; none without an address. In a pod they are the real values."""
    if not identity.address:
        return ()
    own = rank_variables.environment(environ, identity.rank)
    if identity.alone:
        alone = pod_network.find_alone(settings, identity, own)
        warned += alone.warnings if alone else ()
        return alone.variables if alone else ()
    try:
        found = pod_network.find(settings, identity, own, (), pod_network.nccl_version(facts))
    except ConfigError as error:
        warned.append(f"{error.message} ({error.fix})")
        return ()
    warned += found.warnings
    return found.variables


def _variables(
    engine: Engine, identity: Identity, own: Plan, network: tuple[Variable, ...], around: Surroundings
) -> tuple[Variable, ...]:
    """Every variable of this rank's engine."""
    words = _per_node(identity, identity.rank)
    network = network or tuple(around.variable(n, v, "each pod finds its own out") for n, v in words.items())
    return variables.of_rank(engine, own, network, around)


def _per_node(identity: Identity, rank: int) -> dict[str, str]:
    """Placeholders for the variables that each node determines itself."""
    if identity.alone:
        return {}
    own = steps.address_of(identity, rank)
    interface = "<interface that holds it>"
    return {
        "NCCL_SOCKET_IFNAME": f"={interface}",
        "GLOO_SOCKET_IFNAME": interface,
        **dict.fromkeys(HOSTS, own),
    }


def _said(settings: Settings, name: str) -> str:
    """How a setting was given, with secrets in the engine's arguments masked."""
    if name.endswith("_args"):
        return f"{settings.origins[name]} {shlex.join(arguments.mask(getattr(settings, name)))}"
    return settings.said(name)


def _own_ports(settings: Settings, identity: Identity) -> list[dict[str, Any]]:
    ports: list[dict[str, Any]] = [
        {"rank": r, "number": settings.agent_port, "name": "agent", "external": True} for r in range(identity.size)
    ]
    if not identity.alone:
        ports.append({"rank": 0, "number": settings.group_port, "name": "group", "external": False})
    return ports


def _rank(plan: Plan, environ: Mapping[str, str]) -> dict[str, Any]:
    return {
        "rank": plan.rank,
        "stages": [
            {
                "name": stage.name,
                "timeout": stage.timeout,
                "processes": [_process(process, environ) for process in stage.processes],
            }
            for stage in plan.stages
        ],
    }


def _process(process: Process, environ: Mapping[str, str]) -> dict[str, Any]:
    env = {**{k: v for k, v in process.defaults.items() if k not in environ}, **process.env}
    gate = process.gate
    return {
        "name": process.name,
        "argv": list(arguments.mask(process.argv)),
        "env": {
            k: arguments.MASK if k in process.secret_env or arguments.is_secret(k) else v
            for k, v in sorted(env.items())
        },
        "unset": [k for k in process.unset if k in environ],
        "ready": gate.kind if not gate.target else f"{gate.kind} {gate.target}",
    }


# ------------------------------------------------------------------------------------------------------- as text


def as_json(page: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> str:
    return json.dumps(page, indent=2)


def as_text(page: Mapping[str, Any], only: int | None) -> str:
    """For people: who, why, and each rank's commands, without repeating what ranks share."""
    who = page["identity"]
    lines = [
        f"{page['engine']['name']}: group {who['group']}, {who['size']} {'pod' if who['size'] == 1 else 'pods'}; "
        f"this is rank {who['rank']} ({who['source']})",
        "",
        "who am I",
    ]
    width = max(len(s["name"]) for s in page["sources"])
    for s in page["sources"]:
        lines.append(f"  {'*' if s['applied'] else ' '} {s['name']:<{width}}  {s['why']}")
    if page["engine"]["why"]:
        lines += ["", "why this way", *(f"    {why}" for why in page["engine"]["why"])]
    shown: list[Mapping[str, Any]] = []
    for rank in page["ranks"]:
        if only is not None and rank["rank"] != only:
            continue
        lines += ["", _title(rank["rank"], who)]
        like = next((earlier for earlier in shown if only is None and _alike(earlier, rank)), None)
        if like is not None:
            lines.append(f"    {SAME_AS.format(like['rank'])} (--only {rank['rank']} shows it)")
            continue
        shown.append(rank)
        for stage in rank["stages"]:
            lines += _stage(stage)
    if page["variables"] and only in (None, who["rank"]):
        title = f"variables of rank {who['rank']}: value, who set it, why"
        lines += ["", title, *variables.table(variables.from_objects(page["variables"]))]
    lines += ["", "ports", *_ports(page["ports"])]
    if page["settings"]:
        lines += ["", "said", *(f"    {said}" for said in page["settings"].values())]
    if page["warnings"]:
        lines += ["", "warnings", *(f"  ! {warning}" for warning in page["warnings"])]
    if page.get("problems"):
        lines += ["", "this would not work"]
        for problem in page["problems"]:
            lines += [f"  x {problem['path']}: {problem['what']}", f"    fix: {problem['fix']}"]
    return "\n".join(lines)


def _title(rank: int, who: Mapping[str, Any]) -> str:
    return f"rank {rank}" + (" (leader)" if rank == 0 else "") + (", this pod" if rank == who["rank"] else "")


def _stage(stage: Mapping[str, Any]) -> list[str]:
    limit = f", at most {stage['timeout']:g} s" if stage["timeout"] else ""
    if not stage["processes"]:
        return [f"  stage {stage['name']}: nothing to start here"]
    lines = [f"  stage {stage['name']}{limit}"]
    for process in stage["processes"]:
        lines += [f"      {k}={shlex.quote(v) if v else ''}" for k, v in process["env"].items()]
        lines += [f"      (without {k})" for k in process["unset"]]
        lines.append("    $ " + _command(process["argv"]))
        lines.append(f"      ready when: {_ready(process['ready'])}")
    return lines


def _command(argv: Sequence[str]) -> str:
    """A command: one option per line if it is long; only the first line of a long script."""
    words = [shlex.quote(a if "\n" not in a else a.strip().split("\n")[0] + " ...") for a in argv]
    if sum(len(w) + 1 for w in words) < 100:
        return " ".join(words)
    lines: list[str] = []
    for word in words:
        if lines and not word.startswith("-"):
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return " \\\n          ".join(lines)


def _ready(gate: str) -> str:
    kind, _, target = gate.partition(" ")
    return Gate(kind, target).words


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two ranks run the same commands, apart from their rank and address."""
    if 0 in (one["rank"], other["rank"]):
        return False
    own, others = _address(one), _address(other)

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, dict) and isinstance(b, dict):
            return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        if isinstance(a, list) and isinstance(b, list):
            return len(a) == len(b) and all(map(same, a, b))
        if a == b or (a, b) == (str(one["rank"]), str(other["rank"])):
            return True
        return bool(own) and isinstance(a, str) and isinstance(b, str) and a.replace(own, others) == b

    return same(one["stages"], other["stages"])


def _address(rank: Mapping[str, Any]) -> str:
    """The rank's own address, from its processes' environment."""
    processes = (process for stage in rank["stages"] for process in stage["processes"])
    return next((p["env"][name] for p in processes for name in HOSTS if p["env"].get(name)), "")


def _ports(ports: Sequence[Mapping[str, Any]]) -> list[str]:
    seen: dict[tuple[int, str, bool], list[int]] = {}
    for p in ports:
        seen.setdefault((p["number"], p["name"], p["external"]), []).append(p["rank"])
    return [
        f"    {number:>5}  {name}, on {_on(ranks)}{', for callers outside the group' if external else ''}"
        for (number, name, external), ranks in sorted(seen.items())
    ]


def _on(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {ranks[0]} to {ranks[-1]}" if ranks[-1] - ranks[0] == len(ranks) - 1 else f"{len(ranks)} ranks"
