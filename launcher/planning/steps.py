"""From settings to a plan: the steps that `launcher plan` and the agent share, in order.

The agent takes them with real addresses and queries the engine's interpreter through the guard; `launcher plan` uses
names in place of addresses. Each step is small and calls one package.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from launcher.common import files
from launcher.engines.base import Engine
from launcher.errors import ConfigError
from launcher.model import Epoch, Identity, NodeFacts, Plan, Process, Shared, SourceReport
from launcher.node.run_command import Ask
from launcher.planning import rank_variables
from launcher.settings import Settings

if TYPE_CHECKING:
    from launcher.group.proof import Secrets

#: Variables from the guard to the agent; the engine does not get them.
OF_THE_GUARD = ("LAUNCHER_REPLACES", "LAUNCHER_PREVIOUS_AGENT", "LAUNCHER_LAST_EPOCH")
NAMESPACE_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

_versions: dict[tuple[Any, ...], Mapping[str, str]] = {}


# ---------------------------------------------------------------------------------------------------- who am I


def identity_of(
    settings: Settings, environ: Mapping[str, str], hostname: str | None = None
) -> tuple[Identity, tuple[SourceReport, ...], tuple[str, ...]]:
    """This pod's identity, what each source said, and warnings. Raises ConfigError.

    ``hostname``: of a pod elsewhere, whose files are unknown; None: this pod.
    """
    from launcher.identity import identify

    if hostname is not None:
        return identify(settings, environ, hostname)
    here = (files.text_of(path) for path in (NAMESPACE_FILE, "/etc/resolv.conf", "/etc/hosts"))
    return identify(settings, environ, os.uname().nodename, *here)


def namespace_of(settings: Settings) -> str:
    """This pod's namespace as far as its own files and variables tell it; empty: unknown."""
    return settings.namespace or os.environ.get("POD_NAMESPACE") or files.text_of(NAMESPACE_FILE).strip()


def secret_of(settings: Settings) -> Secrets | None:
    """The group's secret, from ``--token-file``."""
    if settings.token_file is None:
        return None
    from launcher.group.proof import Secrets

    return Secrets(settings.token_file, settings.said("token_file"))


def secret_warnings(settings: Settings) -> tuple[str, ...]:
    """Warnings about how the secret is stored."""
    if settings.token_file is None:
        return ()
    from launcher.group.proof import exposure

    text = exposure(settings.token_file, settings.said("token_file"))
    return (text,) if text else ()


def engine_of(settings: Settings) -> Engine:
    from launcher.engines.registry import load

    return load(settings)


def engine_environment(environ: Mapping[str, str], rank: int) -> dict[str, str]:
    """The base environment of the engine of ``rank``, before a plan's own variables."""
    own = rank_variables.environment(environ, rank)
    return {name: value for name, value in own.items() if name not in OF_THE_GUARD}


# ------------------------------------------------------------------------------------------------- what is here


async def learn(settings: Settings, engine: Engine, environ: Mapping[str, str], ask: Ask) -> NodeFacts:
    """This pod's GPUs and the versions in the engine's interpreter, queried concurrently."""
    import asyncio

    versions, gpus = await asyncio.gather(
        _ask_versions(settings, engine, ask), _ask_gpus(settings, engine, environ, ask)
    )
    count, model = gpus
    return NodeFacts(versions=versions[0], versions_known=versions[1], gpus=count, gpu_model=model)


def known(settings: Settings, engine: Engine, environ: Mapping[str, str]) -> NodeFacts | None:
    """What :func:`learn` would return, if that takes no subprocess; else None."""
    if engine.distributions(settings) or has_nvidia():
        return None
    gpus, model = _gpus(settings, environ, None)
    return NodeFacts(gpus=gpus, gpu_model=model)


async def _ask_versions(settings: Settings, engine: Engine, ask: Ask) -> tuple[Mapping[str, str], bool]:
    wanted = engine.distributions(settings)
    if not wanted:
        return {}, False
    from launcher.engines import versions

    interpreter = engine.interpreter(settings)
    key = (*versions.cache_key(interpreter), wanted)
    if key not in _versions:
        code, output = await ask(versions.argv(interpreter, wanted), versions.TIMEOUT)
        if code == 127:
            raise ConfigError(
                f"the engine's interpreter {interpreter} cannot be started: {output}",
                "name the Python that the engine is installed in with --python",
            )
        _versions[key] = versions.parse(output, interpreter)
    return _versions[key], True


async def _ask_gpus(settings: Settings, engine: Engine, environ: Mapping[str, str], ask: Ask) -> tuple[int | None, str]:
    smi = None
    if has_nvidia():
        code, output = await ask(("nvidia-smi", "-L"), 10.0)
        smi = output if code == 0 else None
    return _gpus(settings, environ, smi)


def _gpus(settings: Settings, environ: Mapping[str, str], smi: str | None) -> tuple[int | None, str]:
    from launcher.node.gpus import visible_gpus

    found = visible_gpus(environ, "/dev", smi)
    return (found.count if settings.gpus_per_pod is None else settings.gpus_per_pod), found.model


def has_nvidia() -> bool:
    from launcher.node.gpus import device_files

    return bool(device_files("/dev"))


def fingerprint(settings: Settings, engine: Engine, facts: NodeFacts) -> dict[str, str]:
    """Everything that must be equal on all ranks."""
    from launcher.engines.fingerprint import model_identity

    found = dict(engine.fingerprint(settings, facts))
    if settings.model:
        found |= model_identity(settings.model)
    found["lease"] = f"{settings.lease:g}"
    found["handoff"] = str(settings.handoff).lower()
    if settings.require_same_revision:
        found["revision"] = settings.revision or ""
    return {k[:64]: v[:600] for k, v in found.items()}


# ----------------------------------------------------------------------------------------------------- the plan


def sketch(identity: Identity, addresses: Sequence[str] = ()) -> Shared:
    """A provisional epoch for planning, with names in angle brackets in place of unknown addresses."""
    names = tuple(addresses) or tuple(address_of(identity, r) for r in range(identity.size))
    if identity.alone and not addresses:
        names = (identity.address or "127.0.0.1",)
    return Shared(Epoch(1, "0"), names)


def address_of(identity: Identity, rank: int) -> str:
    """A rank's address if known before the pods run (a literal, or this pod's own), else a placeholder."""
    from launcher.network.names import is_literal

    if rank == identity.rank and identity.address:
        return identity.address
    name = identity.name_of(rank)
    return name if is_literal(name) else f"<ip of {name}>"


def outline(identity: Identity, address: str) -> Shared:
    """A provisional epoch as seen by a pod that knows only its own address."""
    return sketch(identity, [address if r == identity.rank else f"<rank {r}>" for r in range(identity.size)])


def with_environment(plan: Plan, variables: Mapping[str, str]) -> Plan:
    """Add the per-node variables as defaults of each process: its own and the user's environment take precedence."""
    if not variables:
        return plan

    def added(process: Process) -> Process:
        wanted = {name: value for name, value in variables.items() if name not in process.withheld}
        return replace(process, defaults={**wanted, **process.defaults})

    stages = tuple(replace(s, processes=tuple(added(p) for p in s.processes)) for s in plan.stages)
    return replace(plan, stages=stages)


def with_token(shared: Shared, secrets: Secrets | None, group: str, wanted: bool) -> Shared:
    """With a secret, every rank derives the epoch's token from the secret that the leader names.

    Raises ConfigError if this pod does not have that secret, as during a rotation before the kubelet has updated it.
    """
    if secrets is None or not wanted:
        return shared
    from launcher.group.proof import epoch_token

    secret = secrets.named(shared.token)
    if secret is None:
        raise ConfigError(
            "the leader uses another secret than this pod's --token-file holds",
            "while a Secret is being replaced, wait until the kubelet has brought it to every pod",
        )
    return replace(shared, token=epoch_token(secret, group, shared.epoch))
