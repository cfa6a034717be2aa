"""SGLang: the arguments of every rank. Each pod runs the same server; only rank 0's health means anything.

Read from the wheels of 0.4.4.post1, 0.4.10.post2, 0.5.9 and 0.5.23:

- ``python -m sglang.launch_server`` works in all of them (``sglang serve`` only from 0.5.9).
- The number of pods must divide tp x pp. Data-parallel replicas do not span pods; with ``--enable-dp-attention`` (or,
  later, ``--attn-dp-size``) the data parallel groups lie inside the tensor parallel group and add no GPUs.
- The rendezvous uses its port, with DP attention also +1 to +6 and +13, so the epochs' ports are 32 apart.
- ``generation_tokens_total`` grows only when a request ends; meanwhile ``realtime_tokens_total`` (0.5.9) or the gauges
  ``num_used_tokens`` and ``token_usage`` change.
"""

from __future__ import annotations

from types import MappingProxyType

from launcher.common.addresses import host_port
from launcher.engines import endpoint, engine_config, ports, topology, versions, weights
from launcher.engines.arguments import has, last, passed_on, refuse_owned
from launcher.engines.base import Checked, Engine, Local, PlanContext
from launcher.engines.fingerprint import NCCL
from launcher.engines.sglang import options
from launcher.engines.sglang.options import EXPERTS, METRICS, OWNED, WITHOUT_HTTP
from launcher.engines.sglang.start_lines import START_LINES
from launcher.engines.versions import Release
from launcher.errors import ConfigError
from launcher.model import Health, Identity, NodeFacts, Plan, Port, Process, Stage
from launcher.settings import Settings

NEWEST = "0.5.23"
PIPELINE = "0.4.10.post2"  #: first known with --pp-size (and --nccl-port)
EP_SIZE = "0.4.10.post2"  #: before it --enable-ep-moe took the tensor parallel size
QUIET_PROBES = "0.5.8"  #: first that can leave paths out of its access log
QUIET_FLAG = "--uvicorn-access-log-exclude-prefixes"
PORT = 30000
DIST_PORT = 20000
#: /health generates a token unless a request is running, checks once a second, and answers 503 after 20 s.
HEALTH_TIMEOUT = 25.0
_FOOTPRINT = (0, 1, 2, 3, 4, 5, 6, 13)
_STRIDE = 32
_SLOTS = 8


class SGLangEngine(Engine):
    """``--engine sglang``."""

    name = "sglang"
    summary = "SGLang's OpenAI server over torch.distributed"
    owned = OWNED
    numbered = MappingProxyType({"--ep": "--ep-size"})
    images = options.IMAGES
    variable_prefixes = options.PREFIXES

    def distributions(self, settings: Settings) -> tuple[str, ...]:
        return ("sglang", "torch", *NCCL)

    def check(self, settings: Settings, identity: Identity, facts: NodeFacts) -> Checked:
        refuse_owned(settings.engine_args, OWNED, settings)
        endpoint.refuse_silent(settings.engine_args, WITHOUT_HTTP)
        config = engine_config.check(settings, facts, OWNED)
        if settings.model is None:
            raise ConfigError("--model is not given", "say which model to serve: --model NAME or a path")
        if settings.backend == "ray":
            raise ConfigError(
                f"{settings.said('backend')}: SGLang's ranks find each other without Ray", "leave --backend out"
            )
        engine, warnings = _installed(settings, facts)
        _check_parallel(settings, engine, identity.size)
        fits = topology.check(settings, facts, identity.size, _world(settings))
        return Checked(fits.why, (*warnings, *fits.warnings, *config, *endpoint.notes(settings)))

    def plan(self, context: PlanContext, rank: int) -> Plan:
        settings = context.settings
        engine, _ = _installed(settings, context.facts)
        health = _health(context) if rank == 0 else Health()
        argv = (*_command(settings), *_arguments(context, engine, rank))
        process = Process(name="sglang", argv=argv, gate=endpoint.gate(health), vital=("sglang::",))
        return Plan(
            rank=rank,
            stages=(Stage("engine", (process,)),),
            health=health,
            ports=_ports(context, rank),
            why=_why(context),
            step_lines=START_LINES,
            weights=weights.of_settings(settings, context.identity.size, rank),
        )

    def local(self, settings: Settings, size: int, facts: NodeFacts) -> Local:
        why = "SGLang takes ranks that share /dev/shm for ranks of one host, and hangs"
        return Local(private_shm=why if size > 1 else "", completions="/v1/completions")


def _installed(settings: Settings, facts: NodeFacts) -> tuple[Release, tuple[str, ...]]:
    return versions.installed(settings, facts, "sglang", NEWEST, "SGLang")


def _command(settings: Settings) -> tuple[str, ...]:
    return (settings.python or "python3", "-m", "sglang.launch_server")


def _arguments(context: PlanContext, engine: Release, rank: int) -> tuple[str, ...]:
    settings, own = context.settings, context.settings.engine_args
    flags = list(passed_on((o for o in OWNED if o.setting != "pp" or engine.at_least(PIPELINE)), settings))
    if settings.ep and not has(own, *EXPERTS):
        flags += ["--ep-size", str(settings.tp or 1)] if engine.at_least(EP_SIZE) else ["--enable-ep-moe"]
    if context.identity.size > 1:
        flags += ["--dist-init-addr", host_port(context.shared.addresses[0], _dist_port(context))]
        flags += ["--nnodes", str(context.identity.size), "--node-rank", str(rank)]
    if not has(own, "--host"):
        flags += ["--host", context.bind]  # its default is 127.0.0.1, which no Service reaches
    if settings.port is not None:
        flags += ["--port", str(settings.port)]
    if engine.at_least(QUIET_PROBES) and not has(own, QUIET_FLAG, "--config"):
        flags += [QUIET_FLAG, "/health", "/metrics"]
    if not has(own, "--enable-metrics"):
        flags.append("--enable-metrics")
    return (*flags, *own)


def _dist_port(context: PlanContext) -> int:
    settings = context.settings
    if settings.master_port is not None:
        return settings.master_port  # said: a firewall may know it
    return ports.of_epoch(
        DIST_PORT,
        context.shared.epoch,
        footprint=_FOOTPRINT,
        stride=_STRIDE,
        slots=_SLOTS,
        taken=ports.taken(settings, settings.port or PORT),
    )


def _check_parallel(settings: Settings, engine: Release, size: int) -> None:
    tp, dp = settings.tp or 1, settings.dp or 1
    if (settings.pp or 1) > 1 and not engine.at_least(PIPELINE):
        raise ConfigError(
            f"{settings.said('pp')}: SGLang {engine} has no pipeline parallelism, which came with {PIPELINE}",
            f"use --tp over all pods, or SGLang {PIPELINE} or later",
        )
    experts = last(settings.engine_args, *EXPERTS)
    if experts is not None and (not experts.isdecimal() or int(experts) < 1 or tp % int(experts)):
        raise ConfigError(
            f"'-- --ep-size {experts}' does not divide {settings.said('tp')}",
            f"give a divisor of --tp {tp}, for example -- --ep-size {tp}",
        )
    if len(settings.served_model_name) > 1:
        raise ConfigError(
            f"{settings.said('served_model_name')}: SGLang serves one name", "give --served-model-name once"
        )
    if _inside_tp(settings) and dp > 1 and tp % dp:
        raise ConfigError(
            f"--tp {tp} is no multiple of {settings.said('dp')}: with DP attention the data parallel groups lie inside"
            " the tensor parallel group",
            "make --tp a multiple of --dp",
        )
    if size > 1 and dp > 1 and not _inside_tp(settings):
        raise ConfigError(
            f"{settings.said('dp')} over {size} pods: SGLang's replicas do not span pods",
            "add '-- --enable-dp-attention' (data parallel attention inside --tp), or run one group a replica",
        )


def _inside_tp(settings: Settings) -> bool:
    return has(settings.engine_args, "--enable-dp-attention")


def _world(settings: Settings) -> topology.World:
    return topology.world(
        settings, ("tp", "pp") if _inside_tp(settings) or (settings.dp or 1) == 1 else ("tp", "pp", "dp")
    )


def _health(context: PlanContext) -> Health:
    settings = context.settings
    name = settings.served_model_name[0] if settings.served_model_name else settings.model
    return endpoint.health(
        settings.engine_args, context.bind, settings.port or PORT, METRICS, name, timeout=HEALTH_TIMEOUT
    )


def _ports(context: PlanContext, rank: int) -> tuple[Port, ...]:
    settings = context.settings
    found = [Port(settings.port or PORT, "api", external=True)] if rank == 0 else []
    if rank == 0 and context.identity.size > 1:
        base = _dist_port(context)
        steps = _FOOTPRINT if _inside_tp(settings) or last(settings.engine_args, "--attn-dp-size") else (0,)
        found += [Port(base + step, "dist-init" if step == 0 else f"dist-init+{step}") for step in steps]
    return tuple(found)


def _why(context: PlanContext) -> tuple[str, ...]:
    if context.identity.size == 1:
        return ("one pod: no --dist-init-addr",)
    if context.settings.master_port is not None:
        return (f"{context.settings.said('master_port')} is used in every epoch, as it was said",)
    return (f"rendezvous port {_dist_port(context)}: another each epoch",)
