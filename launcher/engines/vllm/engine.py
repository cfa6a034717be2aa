"""vLLM: the arguments, environment and stages of every rank, for its Ray and its multiprocessing backend.

What the releases have was read from their wheels (0.8.5 to 0.33):

- ``python -m vllm.entrypoints.cli.main serve`` is what the ``vllm`` script calls, in all of them. The plan uses the
  module, because the script runs in whatever interpreter its first line names, and may not exist. ``api_server``
  ignores ``--headless``. ``-P`` (Python 3.11) keeps a checkout named ``vllm`` in the working directory off
  ``sys.path``, as the script does.
- Several pods with mp: ``--nnodes``, ``--node-rank``, ``--master-addr`` from 0.11.2. Whole data-parallel replicas in
  each pod use ``--data-parallel-size-local`` and ``--headless``, which are older (0.10.2) and what vLLM documents.
  ``--data-parallel-start-rank`` is for headless ranks only: without ``--headless`` it silently means hybrid load
  balancing.
- Ray: one ``vllm serve`` on the leader, which rejects ``--nnodes``.
- vLLM hashes its environment into the folder of its compile cache (``envs.compile_factors``, read in 0.15.0, 0.16.0,
  0.32.0 and 0.33.0). So a variable that is hashed is set only where this vLLM reads it, and always to one value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from launcher.common.folders import cache_home
from launcher.common.numbers import is_whole
from launcher.engines import arguments, endpoint, engine_config, ports, topology, weights
from launcher.engines.arguments import has, last, refuse_owned, without
from launcher.engines.base import Checked, Engine, Local, PlanContext, Requirements
from launcher.engines.fingerprint import NCCL, fingerprint
from launcher.engines.ray import stages as ray
from launcher.engines.versions import Release
from launcher.engines.vllm import backend as vllm_backend
from launcher.engines.vllm import options
from launcher.engines.vllm.backend import Backend, Form
from launcher.engines.vllm.options import DEAD, METRICS, NEEDS, OWNED, WITHOUT_HTTP
from launcher.engines.vllm.start_lines import START_LINES
from launcher.errors import ConfigError
from launcher.model import Fingerprint, Health, Identity, NodeFacts, Plan, Port, Process, Stage
from launcher.settings import Settings

PORT = 8000
MASTER_PORT = 29501
DP_RPC_PORT = 29550
QUIET_PROBES = "0.16.0"  #: first that can leave paths out of its access log
ACCESS_LOG = ("--disable-access-log-for-endpoints", "--disable-uvicorn-access-log", "--log-config-file")
_API_SERVERS = ("--api-server-count", "-asc")
_RUST_FRONTEND = "VLLM_USE_RUST_FRONTEND"
_READY_TIMEOUT = "VLLM_ENGINE_READY_TIMEOUT_S"
#: A day: the launcher watches the progress of the start itself. The same for every --startup-timeout.
_READY_SECONDS = "86400"
_NIXL_HOST = "VLLM_NIXL_SIDE_CHANNEL_HOST"
#: First known not to hash it (0.16.0 does). It holds the pod's address, so each new pod would compile again.
_NIXL_HOST_UNHASHED = "0.32.0"


class VLLMEngine(Engine):
    """``--engine vllm``."""

    name = "vllm"
    summary = "vLLM's OpenAI server over Ray or its own multiprocessing"
    owned = OWNED
    images = options.IMAGES
    variable_prefixes = (*options.PREFIXES, ray.PREFIX)
    variable_reasons = MappingProxyType({**options.REASONS, **ray.REASONS})
    epoch_token = True

    def distributions(self, settings: Settings) -> tuple[str, ...]:
        return ("vllm", "ray", "torch", *NCCL)

    def check(self, settings: Settings, identity: Identity, facts: NodeFacts) -> Checked:
        refuse_owned(settings.engine_args, OWNED, settings)
        endpoint.refuse_silent(settings.engine_args, WITHOUT_HTTP)
        ray.check(settings)
        warnings = engine_config.check(settings, facts, OWNED, _API_SERVERS)
        if settings.model is None:
            raise ConfigError("--model is not given", "say which model to serve: --model NAME or a path")
        backend = vllm_backend.choose(settings, identity.size, facts)
        fits = topology.check(settings, facts, identity.size, _world(settings))
        _check_handoff(settings, backend)
        cluster = ray.why(settings, facts, identity.size, _ray_gpus(settings, facts)) if backend.form.is_ray else ()
        return Checked(
            (*backend.why, *cluster, *fits.why),
            (*backend.warnings, *fits.warnings, *warnings, *endpoint.notes(settings), *_needs(settings)),
        )

    def plan(self, context: PlanContext, rank: int) -> Plan:
        settings, facts = context.settings, context.facts
        backend = vllm_backend.choose(settings, context.identity.size, facts)
        health = self._health(context) if rank == 0 else Health()
        serve = Process(
            name="vllm",
            argv=(*_command(context, backend.release), *_arguments(context, backend, rank)),
            gate=endpoint.gate(health),
            vital=("VLLM::",),  # EngineCore, Worker, APIServer: vLLM may notice a missing one late
            # A Service named "vllm" puts VLLM_PORT=tcp://... into every pod, and the engine dies of it (vllm#34199).
            # A number breaks groups of several pods, so it is always unset.
            unset=("VLLM_PORT",),
            defaults=_defaults(context, backend),
            withheld=_withheld(settings, backend),
        )
        if backend.form.is_ray:
            stages = ray.stages(context, rank, serve, gpus=_ray_gpus(settings, facts))
        else:
            stages = (Stage("engine", (serve,)),)
        return Plan(
            rank=rank,
            stages=stages,
            health=health,
            ports=_ports(context, backend, rank),
            why=backend.why,
            scratch=(ray.temp_dir(context),) if backend.form is Form.RAY else (),
            step_lines=START_LINES,
            weights=weights.of_settings(settings, context.identity.size, rank),
        )

    def fingerprint(self, settings: Settings, facts: NodeFacts) -> Fingerprint:
        return fingerprint(
            settings,
            facts,
            distribution="vllm",
            version=settings.engine_version or "",
            backend=vllm_backend.asked(settings, facts),
        )

    def requirements(self, settings: Settings, environ: Mapping[str, str]) -> Requirements:
        cache = environ.get("VLLM_CACHE_ROOT") or f"{cache_home(environ)}/vllm"
        return replace(super().requirements(settings, environ), folders={"vLLM's cache": cache})

    def local(self, settings: Settings, size: int, facts: NodeFacts) -> Local:
        # Ray takes 127.0.0.1 for "find my address out", and would then be another one than VLLM_HOST_IP.
        with_ray = size > 1 and vllm_backend.asked(settings, facts) == "ray"
        return Local(first_host=2 if with_ray else 1, completions="/v1/completions")

    def _health(self, context: PlanContext) -> Health:
        settings = context.settings
        name = settings.served_model_name[0] if settings.served_model_name else settings.model
        return endpoint.health(settings.engine_args, context.bind, settings.port or PORT, METRICS, name, dead=DEAD)


def _needs(settings: Settings) -> tuple[str, ...]:
    """Warnings about options that need something besides."""
    options = arguments.given(settings.engine_args)
    written = {o.name.partition(".")[0] for o in options} | {f"{o.name} {o.value}" for o in options}
    return tuple(f"'-- {option}': {what}" for option, what in NEEDS.items() if option in written)


def _command(context: PlanContext, release: Release) -> tuple[str, ...]:
    settings = context.settings
    return (*python(settings, context.facts), "-m", "vllm.entrypoints.cli.main", "serve", settings.model or "")


def python(settings: Settings, facts: NodeFacts) -> tuple[str, ...]:
    """The interpreter, with ``-P`` (no working directory in ``sys.path``) where this Python has it."""
    interpreter = settings.python or "python3"
    numbers = tuple(int(n) for n in facts.versions.get("python", "").split(".")[:2] if is_whole(n))
    return (interpreter, "-P") if numbers >= (3, 11) else (interpreter,)


def _arguments(context: PlanContext, backend: Backend, rank: int) -> tuple[str, ...]:
    settings = context.settings
    flags = list(arguments.passed_on(OWNED, settings))
    if context.bind != "0.0.0.0" and not has(settings.engine_args, "--host", "--uds"):
        flags += ["--host", context.bind]
    if backend.release.at_least("0.18.1") and not has(settings.engine_args, "--shutdown-timeout"):
        flags += ["--shutdown-timeout", str(shutdown_timeout(settings))]
    own = settings.engine_args
    if rank == 0 and backend.release.at_least(QUIET_PROBES) and not has(own, *ACCESS_LOG, "--config"):
        flags += [ACCESS_LOG[0], "/health,/metrics"]
    flags += _distributed(context, backend, rank)
    # A headless rank has no API servers, and vLLM rejects a count of them there.
    return (*flags, *(without(own, *_API_SERVERS) if "--headless" in flags else own))


def _distributed(context: PlanContext, backend: Backend, rank: int) -> list[str]:
    settings, size, leader = context.settings, context.identity.size, context.shared.addresses[0]
    headless = ["--headless"] if rank else []
    if backend.form is Form.NODES:
        return [
            *("--distributed-executor-backend", "mp"),
            *("--nnodes", str(size), "--node-rank", str(rank)),
            *("--master-addr", leader, "--master-port", str(_master_port(context))),
            *(_rpc(context) if (settings.dp or 1) > 1 else ()),
            *headless,
        ]
    if backend.form is Form.REPLICAS:
        local = (settings.dp or 1) // size
        start = ("--data-parallel-start-rank", str(rank * local)) if rank else ()
        return [
            *("--distributed-executor-backend", "mp"),
            *("--data-parallel-size-local", str(local), *start),
            *("--data-parallel-address", leader, *_rpc(context)),
            *headless,
        ]
    if backend.form.is_ray:
        return ["--distributed-executor-backend", "ray", *_ray_replicas(settings, size)]
    return []


def _ray_replicas(settings: Settings, size: int) -> tuple[str, ...]:
    dp = settings.dp or 1
    if dp == 1:
        return ()
    local = ("--data-parallel-size-local", str(dp // size)) if dp % size == 0 else ()
    return ("--data-parallel-backend", "ray", *local)


def _rpc(context: PlanContext) -> tuple[str, ...]:
    if has(context.settings.engine_args, "--data-parallel-rpc-port", "-dpp"):
        return ()
    return ("--data-parallel-rpc-port", str(_rpc_port(context)))


def _master_port(context: PlanContext) -> int:
    settings = context.settings
    if settings.master_port is not None:
        return settings.master_port  # said: a firewall may know it
    return ports.of_epoch(MASTER_PORT, context.shared.epoch, taken=ports.taken(settings, settings.port or PORT))


def _rpc_port(context: PlanContext) -> int:
    settings = context.settings
    master = settings.master_port or MASTER_PORT
    return ports.of_epoch(DP_RPC_PORT, context.shared.epoch, taken=ports.taken(settings, settings.port or PORT, master))


def shutdown_timeout(settings: Settings) -> int:
    """Seconds after TERM that vLLM may take to finish requests: --grace less --drain-settle and 2 s for the rest."""
    return max(0, int(settings.grace - settings.drain_settle - 2))


def _defaults(context: PlanContext, backend: Backend) -> Mapping[str, str]:
    found = {}
    if backend.release.at_least("0.14.1") and _front_end_polls(context, backend):
        # The default is 600 s, loading included: with a slow disk the engine restarts endlessly (lws#725).
        found[_READY_TIMEOUT] = _READY_SECONDS
    if backend.form is Form.RAY_SPAN:
        found["VLLM_RAY_DP_PACK_STRATEGY"] = "span"
    return found


def _front_end_polls(context: PlanContext, backend: Backend) -> bool:
    """Whether vLLM waits for its engine cores at most as long as the variable says. The same on all ranks.

    A single API server makes the engine cores itself and waits for them without limit (``wait_for_engine_startup``).
    API servers in processes of their own (as many as replicas, where nothing else is said), the Rust front end, and
    replicas over Ray have only the poll that the variable bounds.
    """
    settings = context.settings
    replicas, count = settings.dp or 1, last(settings.engine_args, *_API_SERVERS)
    servers = int(count) if count is not None and is_whole(count) else replicas
    rust = context.environ.get(_RUST_FRONTEND, "0").strip() not in ("", "0")
    return servers > 1 or rust or (replicas > 1 and backend.form.is_ray)


def _withheld(settings: Settings, backend: Backend) -> frozenset[str]:
    """Variables of the node that this vLLM would hash although it does not read them here."""
    reads = backend.release.at_least(_NIXL_HOST_UNHASHED) or any(
        option.name.partition(".")[0] in ("--kv-transfer-config", "--config")
        for option in arguments.given(settings.engine_args)
    )
    return frozenset() if reads else frozenset({_NIXL_HOST})


def _world(settings: Settings) -> topology.World:
    factors = topology.world(settings).factors
    context = last(settings.engine_args, "--prefill-context-parallel-size", "-pcp")
    if context is not None and is_whole(context) and int(context) > 1:
        factors += (("--prefill-context-parallel-size", int(context)),)
    return topology.World(tuple(f for f in factors if f[1] > 1 or f[0] in ("--tp", "--pp")))


def _ray_gpus(settings: Settings, facts: NodeFacts) -> int:
    """GPUs that Ray must count before vLLM starts; 0: none are needed (a CPU engine)."""
    none = topology.gpus(settings, facts) == 0 and not has(settings.ray_args, "--num-gpus")
    return 0 if none else _world(settings).size


def _ports(context: PlanContext, backend: Backend, rank: int) -> tuple[Port, ...]:
    settings = context.settings
    found = []
    if rank == 0:
        found.append(Port(settings.port or PORT, "api", external=True))
        if backend.form is Form.NODES:
            found.append(Port(_master_port(context), "master"))
        if backend.form in (Form.NODES, Form.REPLICAS) and (settings.dp or 1) > 1:
            found.append(Port(_rpc_port(context), "dp-rpc"))
        if backend.form.is_ray:
            found += ray.ports(settings, rank)
    return tuple(found)


def _check_handoff(settings: Settings, backend: Backend) -> None:
    if settings.handoff and backend.form.is_ray:
        raise ConfigError(
            "--handoff with the Ray backend: the leader needs more than one process (Ray's head and vLLM)",
            "leave --handoff out, or use --backend mp",
        )
