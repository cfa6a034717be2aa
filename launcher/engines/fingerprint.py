"""The engine's part of what must be equal on all ranks: named facts, so that a mismatch is a named diff.

When one pod of a rollout is older, a person reads "rank 3: engine.args.max-model-len 4096, group has 8192". Unknown
facts are left out. Secrets and long values are hashed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from launcher.engines import arguments
from launcher.model import Fingerprint, NodeFacts
from launcher.settings import Settings

NCCL = ("nvidia-nccl-cu13", "nvidia-nccl-cu12")
#: Options that may differ between pods: addresses and files of the node.
PER_POD = ("--host", "--uds", "--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs", "--download-dir")
_MAX_CONFIG_JSON = 16 * 1024 * 1024


def fingerprint(
    settings: Settings,
    facts: NodeFacts,
    *,
    distribution: str,
    backend: str = "",
    version: str = "",
    args: Sequence[str] | None = None,
    per_pod: Iterable[str] = PER_POD,
) -> Fingerprint:
    """Engine, versions, model, sizes, arguments and GPUs.

    Args:
        distribution: whose version is the engine's.
        backend: how the ranks find each other (``ray`` adds Ray's and Python's version: Ray refuses a mix of either).
        version: the engine's version where --engine-version gives it.
        args: the engine arguments, if not the settings' own.
    """
    versions = facts.versions
    found = {
        "engine": settings.engine,
        "engine.version": versions.get(distribution, version),
        "torch.version": versions.get("torch", ""),
        "nccl.version": next((versions[name] for name in NCCL if name in versions), ""),
        "model": settings.model or "",
        "served-model-name": " ".join(settings.served_model_name),
        "tp": str(settings.tp or 1),
        "pp": str(settings.pp or 1),
        "dp": str(settings.dp or 1),
        "ep": "yes" if settings.ep else "no",
        "backend": backend,
        "handoff": "yes" if settings.handoff else "no",
        "gpu.model": facts.gpu_model,
        "gpu.count": _count(settings, facts),
    }
    if backend == "ray":
        found["ray.version"] = versions.get("ray", "")
        found["python.version"] = ".".join(versions.get("python", "").split(".")[:2])
        found |= {"ray" + k[6:]: v for k, v in arguments.facts(settings.ray_args, PER_POD_RAY).items()}
    found |= arguments.facts(settings.engine_args if args is None else args, per_pod)
    return {name: value for name, value in found.items() if value}


#: Options of ``ray start`` that may differ between pods.
PER_POD_RAY = ("--node-ip-address", "--node-name", "--num-cpus", "--memory", "--object-store-memory", "--temp-dir")


def model_identity(path: str) -> Fingerprint:
    """The hash of a local model's ``config.json``, which tells two mounts of one path apart. Reads that file.

    Empty for a name on a hub, and where the file cannot be read: the engine reports that better.
    """
    try:
        with open(os.path.join(path, "config.json"), "rb") as file:
            content = file.read(_MAX_CONFIG_JSON)
    except (OSError, ValueError):
        return {}
    import hashlib

    return {"model.config": "sha256:" + hashlib.sha256(content).hexdigest()[:16]}


def _count(settings: Settings, facts: NodeFacts) -> str:
    count = facts.gpus if settings.gpus_per_pod is None else settings.gpus_per_pod
    return "" if count is None else str(count)
