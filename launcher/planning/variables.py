"""Every variable that affects how the engine runs: its value, who set it, and why. For `plan` and `doctor`.

A variable comes from the launcher (which knows its reasons), from the image's ENV (if the image records it), or from
the user, which means anything else: the manifest, a ConfigMap, a shell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from launcher.common import files
from launcher.common.text import printable
from launcher.engines import arguments
from launcher.engines.base import Engine
from launcher.model import Plan, Process
from launcher.network.environment import Surroundings, Variable

#: ``env -0`` of the image at build time (images/), to tell the image's variables from the user's.
IMAGE_FILE = "/opt/launcher/image.env"
UNSET = "(unset)"
#: Prefixes of the variables that libraries read under every engine; an engine adds its own.
RELEVANT = (
    *("NCCL_", "GLOO_", "TP_SOCKET_", "UCX_", "NVSHMEM_", "MC_", "MLX5_", "FI_", "RDMAV_", "PCIDEVICE_"),
    *("HF_", "TRANSFORMERS_", "TORCH", "PYTORCH_", "TRITON_", "FLASHINFER_"),
    *("CUDA_", "NVIDIA_VISIBLE", "NVIDIA_DRIVER_CAP", "HIP_", "ROCR_", "OMP_", "MKL_", "MASTER_", "PYTHON"),
    *("LD_PRELOAD", "LD_LIBRARY_PATH", "POD_", "LAUNCHER_", "LWS_", "JOB_COMPLETION_INDEX", "SLURM_NODEID"),
)
KEPT = "set in the environment: kept"
LINKS = ("_SERVICE_HOST", "_SERVICE_PORT")  #: of Kubernetes' service links: nobody's settings


def image_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The image's ENV, if the image records it; empty: unknown, so every variable counts as the user's."""
    path = environ.get("LAUNCHER_IMAGE_ENV") or IMAGE_FILE
    try:
        entries = files.read(path).decode("utf-8", "replace").split("\0")
    except OSError:
        return {}
    return {name: value for name, _, value in (entry.partition("=") for entry in entries) if name}


def of_rank(engine: Engine, plan: Plan, network: Sequence[Variable], around: Surroundings) -> tuple[Variable, ...]:
    """The variables of one rank's engine, by name. Secrets are masked.

    ``network``: the variables of collectives chosen for this rank. ``around``: the launcher's own environment.
    ``plan``: the rank's plan, without the variables of collectives.
    """
    found: dict[str, Variable] = {}
    for process in (p for stage in plan.stages for p in stage.processes):
        for variable in _of_process(process, around, engine.variable_reasons):
            found.setdefault(variable.name, variable)
    withheld = [p.withheld for stage in plan.stages for p in stage.processes]
    unwanted = frozenset.intersection(*withheld) if withheld else frozenset[str]()
    for variable in network:
        if variable.setter != "launcher" or variable.name not in unwanted:
            found.setdefault(variable.name, variable)
    relevant = (*RELEVANT, *engine.variable_prefixes)
    for name, value in around.env.items():
        if name.startswith(relevant) and name not in found and not name.endswith(LINKS):
            found[name] = around.variable(name, value, KEPT)
    return tuple(_masked(found[name]) for name in sorted(found))


def _of_process(process: Process, around: Surroundings, reasons: Mapping[str, str]) -> Iterator[Variable]:
    for name, value in process.env.items():
        why = reasons.get(name, f"the plan of {process.name}")
        if name in around.env and around.env[name] != value:
            why += f"; instead of {arguments.MASK if arguments.is_secret(name) else around.env[name]}"
        yield Variable(name, arguments.MASK if name in process.secret_env else value, "launcher", why)
    for name in process.unset:
        if name in around.env and name not in process.env:
            yield Variable(name, UNSET, "launcher", reasons.get(name, f"{process.name} must not see it"))
    for name, value in process.defaults.items():
        yield around.variable(name, value, reasons.get(name, f"the plan of {process.name}"))


def _masked(variable: Variable) -> Variable:
    if not variable.value or not arguments.is_secret(variable.name):
        return variable
    return Variable(variable.name, arguments.MASK, variable.setter, variable.why)


def table(variables: Sequence[Variable], indent: str = "    ") -> list[str]:
    """Lines for people: name, value, who set it, why; the launcher's variables come first."""
    if not variables:
        return []
    order = {"launcher": 0, "user": 1, "image": 2}
    rows = [
        (v.name, v.value if v.value else "(empty)", v.setter, v.why)
        for v in sorted(variables, key=lambda v: order[v.setter])
    ]
    name = max(len(r[0]) for r in rows)
    value = min(32, max(len(r[1]) for r in rows))
    return [f"{indent}{n:<{name}}  {printable(v, 64):<{value}}  {s:<8}  {w}".rstrip() for n, v, s, w in rows]


def as_objects(variables: Iterable[Variable]) -> list[dict[str, str]]:
    """Variables for JSON."""
    return [{"name": v.name, "value": v.value, "set_by": v.setter, "why": v.why} for v in variables]


def from_objects(objects: Iterable[Mapping[str, Any]]) -> list[Variable]:
    """The inverse of :func:`as_objects`."""
    return [Variable(o["name"], o["value"], o["set_by"], o["why"]) for o in objects]
