"""How vLLM's ranks find each other: which backend, in which form, and the reasons.

``auto`` takes Ray if the engine's interpreter has it, else mp if this vLLM supports it. If the interpreter could not be
asked (``launcher plan`` on a laptop), the newest vLLM without Ray is assumed, with a warning.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from launcher.engines import versions
from launcher.engines.versions import Release
from launcher.errors import ConfigError
from launcher.model import NodeFacts
from launcher.settings import Settings

NEWEST = "0.33.0"
NNODES = "0.11.2"  #: first with --nnodes, --node-rank, --master-addr
HEADLESS = "0.10.2"  #: first known with --headless and --data-parallel-address
SPAN = "0.11.2"  #: first known with VLLM_RAY_DP_PACK_STRATEGY=span


class Form(Enum):
    """The shapes of a vLLM group."""

    SINGLE = "single"  #: one pod, no distributed flags
    RAY = "ray"  #: one server at the leader, workers in the Ray cluster
    RAY_SPAN = "ray, a replica spans pods"  #: the same, data parallel with replicas larger than a pod
    NODES = "mp"  #: one server a pod, ``--nnodes``; a replica spans pods
    REPLICAS = "mp, whole replicas in each pod"  #: one server a pod, data parallel; no replica spans pods

    @property
    def is_ray(self) -> bool:
        return self in (Form.RAY, Form.RAY_SPAN)


@dataclass(frozen=True)
class Backend:
    form: Form
    release: Release
    why: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def choose(settings: Settings, size: int, facts: NodeFacts) -> Backend:
    """Which form ``size`` pods take.

    Raises:
        ConfigError: this vLLM or this interpreter does not support it; the versions are in the message.
    """
    engine, warnings = versions.installed(settings, facts, "vllm", NEWEST, "vLLM")
    if size == 1:
        ignored = (f"{settings.said('backend')} is ignored: one pod needs no backend",)
        return Backend(
            Form.SINGLE,
            engine,
            ("one pod: no Ray, no --nnodes",),
            (*warnings, *(ignored if settings.backend == "ray" else ())),
        )
    name, why = _name(settings, facts, engine, size)
    form = _ray_form(settings, engine, size) if name == "ray" else _mp_form(settings, engine, size)
    return Backend(form, engine, (f"backend {name}: {why}", *_form_why(settings, form, size)), warnings)


def asked(settings: Settings, facts: NodeFacts) -> str:
    """``ray`` or ``mp`` for the fingerprint, in a group of more than one pod; ``choose`` reports the errors."""
    if settings.backend != "auto":
        return settings.backend
    engine, _ = versions.installed(settings, facts, "vllm", NEWEST, "vLLM")
    return "ray" if _auto_takes_ray(facts, engine) else "mp"


def _name(settings: Settings, facts: NodeFacts, engine: Release, size: int) -> tuple[str, str]:
    if settings.backend == "ray":
        if facts.versions_known and "ray" not in facts.versions:
            raise ConfigError(
                f"{settings.said('backend')}: {settings.python or 'python3'} has vLLM {engine} and no ray"
                " (it is no dependency of vLLM any more)",
                "install ray in the engine's interpreter (pip install 'ray[default]'), or use --backend mp",
            )
        return "ray", f"{settings.said('backend')}"
    if settings.backend == "mp":
        return "mp", f"{settings.said('backend')}"
    if _auto_takes_ray(facts, engine):
        ray = facts.versions.get("ray")
        return "ray", f"auto, and this interpreter has ray {ray}" if ray else f"auto, and vLLM {engine} has no --nnodes"
    if not _can_mp(settings, engine, size):
        raise ConfigError(
            f"vLLM {engine} cannot run on {size} pods here: it has no --nnodes (that came with {NNODES}), and"
            f" {settings.python or 'python3'} has no ray",
            f"install ray in the engine's interpreter, or use vLLM {NNODES} or later",
        )
    if engine.local == "cpu" and "ray" in facts.versions:
        return "mp", "auto, and vLLM on CPU does not take Ray (--backend ray asks for it all the same)"
    return (
        "mp",
        "auto, and this interpreter has no ray" if facts.versions_known else "auto, ray is not known to be there",
    )


def _auto_takes_ray(facts: NodeFacts, engine: Release) -> bool:
    if not facts.versions_known:
        return not engine.at_least(NNODES)  # releases that need Ray, and depend on it
    return "ray" in facts.versions and not (engine.local == "cpu" and engine.at_least(NNODES))


def _can_mp(settings: Settings, engine: Release, size: int) -> bool:
    dp = settings.dp or 1
    return engine.at_least(NNODES) or (engine.at_least(HEADLESS) and dp > 1 and dp % size == 0)


def _mp_form(settings: Settings, engine: Release, size: int) -> Form:
    dp = settings.dp or 1
    if not _can_mp(settings, engine, size):
        raise ConfigError(
            f"{settings.said('backend')}: vLLM {engine} has no --nnodes, which came with {NNODES}",
            f"use --backend ray, or vLLM {NNODES} or later",
        )
    if dp > 1 and dp % size == 0:
        return Form.REPLICAS
    _check_replicas(settings, size)
    return Form.NODES


def _ray_form(settings: Settings, engine: Release, size: int) -> Form:
    dp = settings.dp or 1
    if dp == 1:
        return Form.RAY
    _check_replicas(settings, size)
    needed = HEADLESS if dp % size == 0 else SPAN
    if not engine.at_least(needed):
        lacks = "--data-parallel-backend" if dp % size == 0 else "VLLM_RAY_DP_PACK_STRATEGY=span"
        raise ConfigError(
            f"{settings.said('dp')} over {size} pods with Ray: vLLM {engine} has no {lacks}",
            f"leave --dp out, or use vLLM {needed} or later",
        )
    return Form.RAY if dp % size == 0 else Form.RAY_SPAN


def _check_replicas(settings: Settings, size: int) -> None:
    dp = settings.dp or 1
    if dp % size and size % dp:
        raise ConfigError(
            f"{settings.said('dp')} over {size} pods: a pod must hold whole replicas, or a replica whole pods",
            f"make --dp a multiple or a divisor of {size}",
        )


def _form_why(settings: Settings, form: Form, size: int) -> tuple[str, ...]:
    dp = settings.dp or 1
    if form is Form.REPLICAS:
        return (f"--dp {dp} over {size} pods: {dp // size} whole replicas in each, so no --nnodes is needed",)
    if form is Form.NODES and dp > 1:
        return (f"--dp {dp} over {size} pods: each replica spans {size // dp} pods",)
    return ()
