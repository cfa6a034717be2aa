"""GPUs: count, model, driver, and the visible-devices variables against the devices that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator

from launcher.node.gpus import Gpus, parse_smi, visible_gpus
from launcher.preflight.finding import Finding, fail, ok, skipped, warn
from launcher.preflight.pod import Node, text

NONE_ASKED = ("none", "void")  # NVIDIA_VISIBLE_DEVICES; an empty value is the same as void
_VERSION = re.compile(r"Kernel Module[^\n]*?\s(\d+\.\d[\d.]*)\s")


def check(node: Node) -> Iterator[Finding]:
    """Count, model and driver; idle or missing GPUs; a mask that hides some."""
    found = _learned(node) or visible_gpus(node.environ, node.dev, node.smi)
    driver = driver_version(node)
    facts = {"gpu.count": "" if found.count is None else str(found.count), "gpu.model": found.model, "driver": driver}
    if found.count is None:
        yield skipped("gpus", found.why, facts)
        return
    present = len(parse_smi(node.smi)) if node.smi else found.count
    if node.smi_code:
        yield fail(
            "gpus",
            f"nvidia-smi -L ended with {node.smi_code}: {_first_line(node.smi)}",
            "the driver does not answer, so CUDA will not either",
            "look at the node (dmesg, Xid errors; a driver that was updated without a reboot), or use another one",
            facts,
        )
    elif found.count == 0:
        yield _no_gpu(node, present, facts)
    else:
        shown = f"{found.count} x {found.model or 'GPU'}" + (f", driver {driver}" if driver else "")
        yield ok("gpus", shown, facts)
        yield from _fit(node, found.count)
    yield from _variables(node, found.count, present)


def _learned(node: Node) -> Gpus | None:
    """The count and model that the start took from nvidia-smi; its output was not kept."""
    if node.smi is not None or node.settings.gpus_per_pod is not None or not node.facts.gpus:
        return None
    return Gpus(node.facts.gpus, node.facts.gpu_model, "learned at the start")


def driver_version(node: Node) -> str:
    """The NVIDIA driver's version, from the kernel module; empty: not loaded, or not visible here."""
    found = _VERSION.search(text(node.proc / "driver/nvidia/version") + " ")
    return found[1] if found else ""


def _no_gpu(node: Node, present: int, facts: dict[str, str]) -> Finding:
    cpu = any("cpu" in version.partition("+")[2] for version in node.facts.versions.values())
    if not node.requirements.torch or cpu or node.settings.gpus_per_pod == 0:
        return ok("gpus", "no GPU, and none is needed", facts)
    if present:
        return fail(
            "gpus",
            f"{present} GPUs are here and none may be used",
            "CUDA_VISIBLE_DEVICES hides them all",
            "take CUDA_VISIBLE_DEVICES out of the environment",
            facts,
        )
    return warn(
        "gpus",
        "no GPU in this pod",
        "an engine that was built for GPUs does not start without one",
        "request nvidia.com/gpu in the container's limits; for a CPU engine say --gpus-per-pod 0",
        facts,
    )


def _fit(node: Node, count: int) -> Iterator[Finding]:
    need = node.ranks_here
    said = f"--tp {node.settings.tp or 1} x --pp {node.settings.pp or 1} x --dp {node.settings.dp or 1}"
    if not node.requirements.torch or not {"tp", "pp", "dp"} & set(node.settings.origins):
        return
    if need > count:
        yield fail(
            "gpus",
            f"{said} over {node.size} pods needs {need} GPUs here, and there are {count}",
            "each rank of the engine takes a GPU of its own",
            "lower --tp, --pp or --dp, raise --size, or request more GPUs",
        )
    elif need < count:
        yield warn(
            "gpus",
            f"{count - need} of {count} GPUs stay idle: {said} over {node.size} pods uses {need} here",
            "they are paid for",
            "raise --tp, --pp or --dp, or request fewer GPUs",
        )


def _variables(node: Node, count: int, present: int) -> Iterator[Finding]:
    mask = node.environ.get("CUDA_VISIBLE_DEVICES")
    if mask is not None and count < present and count:
        yield warn(
            "gpus",
            f"CUDA_VISIBLE_DEVICES={mask} lets {count} of {present} GPUs through",
            "entries after the first one that does not exist are dropped in silence",
            "take it out: Kubernetes gives a container its own GPUs only",
        )
    asked = node.environ.get("NVIDIA_VISIBLE_DEVICES")
    if asked is None:
        return
    if (asked in NONE_ASKED or not asked) and present:
        yield warn(
            "gpus",
            f"NVIDIA_VISIBLE_DEVICES={asked or '(empty)'} asks for no GPU and {present} are here",
            "a privileged pod sees all GPUs of the node, also those of other pods",
            "request nvidia.com/gpu in the container's limits, and do not run privileged",
        )
    elif asked and asked not in NONE_ASKED and not present and node.requirements.torch and node.gpus != 0:
        yield warn(
            "gpus",
            f"NVIDIA_VISIBLE_DEVICES={asked} and no GPU is here",
            "the image asks for GPUs; the runtime gave none (no nvidia runtime class, or no request)",
            "request nvidia.com/gpu, and set runtimeClassName: nvidia where the node's default runtime is another",
        )
    uuids = {gpu.uuid for gpu in parse_smi(node.smi)} if node.smi else set()
    missing = [e for e in asked.split(",") if e.startswith(("GPU-", "MIG-")) and uuids and e not in uuids]
    if missing:
        yield warn(
            "gpus",
            f"NVIDIA_VISIBLE_DEVICES names {', '.join(missing[:3])}, which nvidia-smi does not list",
            "a GPU has fallen off the bus, or the variable was copied from another node",
            "look at the node (dmesg, Xid errors); never set this variable in a manifest",
        )


def _first_line(output: str | None) -> str:
    return next((line.strip() for line in (output or "").splitlines() if line.strip()), "no output")[:200]
