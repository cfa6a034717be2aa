"""Ray for vLLM: the stages that make one Ray cluster of the group's pods, before the engine may start.

    ray         all at once: the leader starts the head, which counts nodes and GPUs until they are there; a worker
                starts its node, and waits for the head inside
    engine      vLLM, on the leader

Each of Ray's processes takes a second of CPU time to start, so they start in parallel, and as few as possible. The
engine starts only after Ray has counted its nodes and GPUs: vLLM's placement group waits 30 minutes for a missing one.

A Ray cluster that is started by hand is open: anyone who reaches its port can run code in it. From 2.52 on Ray has
token authentication; each epoch has its own token (``RAY_AUTH_MODE=token``), which also keeps out a thawed node of an
earlier epoch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from launcher.common.addresses import host_port
from launcher.engines.arguments import Owned, has, refuse_owned, without
from launcher.engines.base import PlanContext
from launcher.engines.versions import release
from launcher.model import Gate, NodeFacts, Port, Process, Stage
from launcher.settings import Settings

CLUSTER = str(Path(__file__).with_name("cluster_program.py"))
READY = "ray-ready:"  # as in cluster_program.py
TOKEN = "2.52.0"  #: first with RAY_AUTH_MODE=token
#: The range in which a lean head was tested: 2.43.0, 2.52.1, 2.60.0.
LEAN_FROM, LEAN_BEFORE = "2.43.0", "2.61.0"
DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # From 2.5x on, a node that receives SIGTERM waits 30 s for Ray Serve to drain; there is none.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}
#: Variables of Ray, and why a plan sets them.
PREFIX = "RAY_"
REASONS = {
    "RAY_ADDRESS": "this epoch's own Ray cluster; an address left from elsewhere would join another",
    "RAY_AUTH_MODE": "whoever reaches an open Ray cluster runs code in it",
    "RAY_AUTH_TOKEN": "a new one each epoch, handed out over the group's own link",
    "RAY_USAGE_STATS_ENABLED": "nothing is reported to anybody unless you want it",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "Ray would wait 30 s for Ray Serve, which is not there",
}
_OURS = "from the pod's rank and the leader's address"

OWNED = (
    Owned(("--head",), "which pod is the head", why=_OURS),
    Owned(("--address",), "the head's address", why=_OURS),
    Owned(("--node-ip-address",), "the node's address", why="give --address to the launcher"),
    Owned(("--port",), "Ray's port", "ray_port", "6379"),
    Owned(("--block",), "whether ray start stays", why="it must, to be watched"),
)
#: Options of ``ray start`` that a worker rejects or ignores.
HEAD_ONLY = (
    *("--include-dashboard", "--dashboard-host", "--dashboard-port", "--ray-client-server-port", "--no-monitor"),
    *("--autoscaling-config", "--system-config", "--redis-shard-ports", "--storage", "--temp-dir"),
)
#: With one of these, nothing of Ray is left out.
WHOLE = ("--include-dashboard", "--dashboard-host", "--dashboard-port", "--ray-client-server-port")


def has_token(version: str | None) -> bool:
    """Whether this Ray has token authentication; an unknown version is assumed to be new."""
    return version is None or release(version).at_least(TOKEN)


def check(settings: Settings) -> None:
    """Raises UsageError for an option in ``--ray-args`` that the launcher owns."""
    refuse_owned(settings.ray_args, OWNED, settings, where="--ray-args")


def why(settings: Settings, facts: NodeFacts, size: int, gpus: int) -> tuple[str, ...]:
    """The choices of ``stages`` in words."""
    version = facts.versions.get("ray")
    shown = f"Ray {version}" if version else "Ray"
    counted = f"{size} nodes and {gpus} GPUs" if gpus else f"{size} nodes (no GPU is asked for)"
    token = "a token each epoch" if has_token(version) else f"no token (it came with {TOKEN}): keep its ports closed"
    lean = "no dashboard, client server or monitor" if _lean(settings, version) else "the whole of Ray"
    return (f"{shown}: vLLM starts when Ray counts {counted}; {token}; {lean}",)


def stages(context: PlanContext, rank: int, engine: Process, *, gpus: int) -> tuple[Stage, ...]:
    """The stages of ``rank``; ``engine`` runs on the leader. ``gpus``: counted in the whole cluster, 0 for none."""
    settings, size = context.settings, context.identity.size
    limit = settings.ray_timeout
    counted = f"{size} nodes and {gpus} GPUs" if gpus else f"{size} nodes"
    late = (
        f"Ray did not count {counted} within {limit:g} s (--ray-timeout): the leader's last lines say what is missing;"
        " see that the pods reach each other on all ports"
    )
    if rank:
        return Stage("ray", (_worker(context, engine, rank),), limit, late), Stage("engine")
    serve = replace(engine, env={**engine.env, **environment(context)}, secret_env=_SECRET)
    return Stage("ray", (_head(context, engine, gpus),), limit, late), Stage("engine", (serve,))


def environment(context: PlanContext) -> Mapping[str, str]:
    """Variables of every process of the cluster: its address, and the token if this Ray has authentication."""
    found = {"RAY_ADDRESS": _address(context)}
    if context.shared.token and has_token(context.facts.versions.get("ray")):
        found |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": context.shared.token}
    return found


def ports(settings: Settings, rank: int) -> tuple[Port, ...]:
    """The fixed ports. Ray chooses the others at random, those of workers from 10002 to 19999."""
    return (Port(settings.ray_port, "ray-gcs"),) if rank == 0 else ()


def temp_dir(context: PlanContext) -> str:
    """A folder of this epoch, the same on all ranks. Short: the path of a Unix socket has at most 107 bytes."""
    name = f"{context.identity.group} {context.shared.epoch.n} {context.shared.epoch.leader}"
    return "/tmp/ray-" + hashlib.sha256(name.encode()).hexdigest()[:6]


# --------------------------------------------------------------------------------------- one node's processes

_SECRET = frozenset({"RAY_AUTH_TOKEN"})


def _head(context: PlanContext, engine: Process, gpus: int) -> Process:
    settings, lean = context.settings, _lean(context.settings, context.facts.versions.get("ray"))
    addresses, address = context.shared.addresses, _address(context)
    arguments = ["--head", "--block", "--node-ip-address", addresses[0], "--port", str(settings.ray_port)]
    if lean:
        arguments += ["--include-dashboard=false", "--no-monitor"]
    if not has(settings.ray_args, "--temp-dir"):
        arguments += ["--temp-dir", temp_dir(context)]
    count = ("--count", address, str(len(addresses)), str(gpus), ",".join(addresses))
    start = (*_start(lean), *count, "--", "start", *arguments, *_gpus(settings), *settings.ray_args)
    return _in_cluster(context, engine, "ray-head", start, Gate("line", READY))


def _worker(context: PlanContext, engine: Process, rank: int) -> Process:
    settings, lean = context.settings, _lean(context.settings, context.facts.versions.get("ray"))
    address = _address(context)
    arguments = ["--address", address, "--block", "--node-ip-address", context.shared.addresses[rank]]
    user = without(settings.ray_args, *HEAD_ONLY)
    start = (*_start(lean), "--after", address, "--", "start", *arguments, *_gpus(settings), *user)
    return _in_cluster(context, engine, "ray-node", start, Gate())


def _start(lean: bool) -> tuple[str, ...]:
    return ("start", "--lean") if lean else ("start",)


def _in_cluster(context: PlanContext, engine: Process, name: str, arguments: tuple[str, ...], gate: Gate) -> Process:
    """A Ray process. Ray's workers inherit its environment, so it has the engine's too."""
    return Process(
        name=name,
        argv=(context.settings.python or "python3", CLUSTER, *arguments),
        env={**engine.env, **environment(context)},
        secret_env=_SECRET,
        unset=engine.unset,
        defaults={**engine.defaults, **DEFAULTS},
        withheld=engine.withheld,
        gate=gate,
    )


def _address(context: PlanContext) -> str:
    return host_port(context.shared.addresses[0], context.settings.ray_port)


def _gpus(settings: Settings) -> tuple[str, ...]:
    """Ray detects GPUs itself; it gets only what the user gave."""
    if settings.gpus_per_pod is None or has(settings.ray_args, "--num-gpus"):
        return ()
    return ("--num-gpus", str(settings.gpus_per_pod))


def _lean(settings: Settings, version: str | None) -> bool:
    if version is None or has(settings.ray_args, *WHOLE):
        return False
    found = release(version)
    return found.at_least(LEAN_FROM) and not found.at_least(LEAN_BEFORE)
