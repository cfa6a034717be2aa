"""The planner of the reference engine: the embedded one, pure Python, no accelerator (``launcher/reference``)."""

from __future__ import annotations

import sys
from pathlib import Path

from launcher import __version__
from launcher.common.addresses import host_port
from launcher.engines import arguments, endpoint, ports, weights
from launcher.engines.arguments import Owned
from launcher.engines.base import Checked, Engine, Local, PlanContext
from launcher.engines.fingerprint import fingerprint
from launcher.errors import UsageError
from launcher.model import (
    COMPILE,
    GRAPHS,
    WEIGHTS,
    Fingerprint,
    Gate,
    Health,
    Identity,
    NodeFacts,
    Plan,
    Port,
    Process,
    Stage,
    StepLine,
)
from launcher.reference.options import OptionError, parse
from launcher.settings import Settings

PROGRAM = Path(__file__).resolve().parents[1] / "reference" / "__main__.py"
MODEL = "reference"
API_PORT = 8000
PEER_PORT = 29500
LEAVING = 2.0  #: seconds of --grace reserved for stopping all ranks

OWNED = (
    Owned(("--rank",), "the rank", why="from the pod's identity"),
    Owned(("--size",), "the size of the group", why="from the pod's identity"),
    Owned(("--peers",), "the addresses of the ranks", why="from the group"),
    Owned(("--peer-port",), "the port between ranks", "master_port", str(PEER_PORT)),
    Owned(("--epoch",), "the epoch", why="from the group"),
    Owned(("--epoch-token",), "the epoch", why="from the group"),
    Owned(("--workers", "--tp", "--tensor-parallel-size"), "the number of workers", "tp", "1"),
    Owned(("--port",), "the port of the API", "port", str(API_PORT)),
    Owned(("--model",), "the model", "model", MODEL),
    Owned(("--served-model-name",), "the name of the model", "served_model_name", MODEL),
)
NAMES = endpoint.OptionNames(
    running=("reference:num_requests_running",),
    waiting=("reference:num_requests_waiting",),
    progress=("reference:generation_tokens_total", "reference:prompt_tokens_total"),
    sleeping=("reference:sleeping",),
)
START_LINES = (
    StepLine(WEIGHTS, r"loading weights: (?P<done>\d{1,9})/(?P<total>\d{1,9}) files"),
    StepLine(WEIGHTS, r"loading weights took (?P<took>[\d.]{1,20}) s"),
    StepLine(COMPILE, r"compiling: (?P<percent>\d{1,3})%"),
    StepLine(COMPILE, r"compiling took (?P<took>[\d.]{1,20}) s"),
    StepLine(GRAPHS, r"capturing graphs: (?P<percent>\d{1,3})%"),
    StepLine(GRAPHS, r"capturing graphs took (?P<took>[\d.]{1,20}) s"),
)


class ReferenceEngine(Engine):
    """Plans the reference engine: one process a rank, all in one stage."""

    name = "reference"
    summary = "a small distributed engine in pure Python, for tests and demos"

    def interpreter(self, settings: Settings) -> str:
        return settings.python or sys.executable

    def check(self, settings: Settings, identity: Identity, facts: NodeFacts) -> Checked:
        arguments.refuse_owned(settings.engine_args, OWNED, settings)
        try:
            parse(settings.engine_args, {})
        except OptionError as error:
            raise UsageError(f"after --: {error}", "see python -m launcher.reference --help") from None
        workers = _workers(settings, identity)
        why = f"{workers} worker process{'es' * (workers != 1)} in each rank"
        if settings.world > 1:
            why += f" for tp x pp x dp = {settings.world} over {identity.size} ranks"
            if settings.world % identity.size:
                why += ", which is no even share"
        return Checked(why=(f"{why}; the reference engine uses no GPU",))

    def plan(self, context: PlanContext, rank: int) -> Plan:
        settings, size, shared = context.settings, context.identity.size, context.shared
        args = settings.engine_args
        port = settings.port or API_PORT
        peer_port = ports.of_epoch(
            settings.master_port or PEER_PORT, shared.epoch, slots=64, taken=ports.taken(settings, port)
        )
        # -I -S: neither the working directory, PYTHONPATH nor site-packages change what runs, and it starts faster. The
        # program adds its own folder to sys.path, so a launcher that is only on PYTHONPATH works too.
        argv = [self.interpreter(settings), "-I", "-S", str(PROGRAM)]
        argv += ["--rank", str(rank), "--size", str(size), "--peers", ",".join(shared.addresses)]
        argv += ["--peer-port", str(peer_port), "--epoch", str(shared.epoch.n), "--epoch-token", str(shared.epoch)]
        argv += ["--workers", str(_workers(settings, context.identity))]
        argv += _option("--model", settings.model or MODEL)
        if settings.served_model_name:
            argv += _option("--served-model-name", ",".join(settings.served_model_name))
        if rank == 0:
            argv += ["--port", str(port), "--host", context.bind, "--shutdown-timeout", f"{_drain(settings):g}"]
        own = shared.addresses[rank]
        opened = [Port(peer_port, "peers")] if size > 1 else []
        if rank == 0:
            opened.append(Port(port, "api", external=True))
            gate = Gate("http", endpoint.base_url(args, context.bind, port) + "/health")
        else:
            gate = Gate("tcp", host_port(own, peer_port))
        # The user's arguments come last: if an option is given twice, the last one counts.
        process = Process(name="reference", argv=(*argv, *args), gate=gate, vital=("reference: work",))
        return Plan(
            rank=rank,
            stages=(Stage(name="engine", processes=(process,)),),
            health=endpoint.health(args, context.bind, port, NAMES, None) if rank == 0 else Health(),
            ports=tuple(opened),
            step_lines=START_LINES,
            weights=weights.of_settings(settings, size, rank),
            why=(f"port {peer_port} between the ranks in epoch {shared.epoch.n}",) if size > 1 else (),
        )

    def fingerprint(self, settings: Settings, facts: NodeFacts) -> Fingerprint:
        # Without facts of the node: this engine uses no GPU, so GPUs may differ.
        found = fingerprint(settings, NodeFacts(), distribution="", version=__version__)
        return {**found, "engine": self.name, "model": settings.model or MODEL}

    def local(self, settings: Settings, size: int, facts: NodeFacts) -> Local:
        return Local(completions="/v1/completions")


def _workers(settings: Settings, identity: Identity) -> int:
    """Worker processes in each rank: tp x pp x dp over the ranks if that is even, else one."""
    share, rest = divmod(settings.world, identity.size)
    return share if share and not rest else 1


def _drain(settings: Settings) -> float:
    """Seconds after TERM that rank 0 may take to finish its requests."""
    return max(1.0, settings.grace - settings.drain_settle - LEAVING)


def _option(flag: str, value: str) -> list[str]:
    """One word where the value begins with a dash: argparse would take it for another option."""
    return [f"{flag}={value}"] if value.startswith("-") else [flag, value]
