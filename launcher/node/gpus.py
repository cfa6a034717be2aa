"""How many GPUs this pod may use, without a GPU library and without starting anything.

``nvidia-smi -L`` is the better witness and names the model; its text is passed in where it was run. Otherwise the
device files count. NVIDIA_VISIBLE_DEVICES is what was asked of the container runtime (UUIDs, indices, ``all``,
``none``, ``void`` or a path), not what was given, so nothing is counted from it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.common.numbers import is_whole

_DEVICE_FILE = re.compile(r"nvidia[0-9]+")  # not nvidiactl, nvidia-uvm, nvidia-modeset, nvidia-caps
_GPU = re.compile(r"GPU ([0-9]+): (.+?) \(UUID: (GPU-[0-9a-fA-F-]+)\)")
_MIG = re.compile(r"\s+MIG (\S+)\s+Device\s+([0-9]+): \(UUID: (MIG-[^)]+)\)")
# GPUs of other makers and of WSL: something is there that this file cannot count.
_OTHERS = ("kfd", "accel", "dxg", "davinci_manager", "habanalabs")


@dataclass(frozen=True)
class Gpus:
    """``count`` is None where it cannot be told (another maker's device). ``why`` says how it was counted."""

    count: int | None
    model: str
    why: str


@dataclass(frozen=True)
class Listed:
    """One line of ``nvidia-smi -L``: a GPU, or a MIG instance of one."""

    model: str
    uuid: str


def visible_gpus(env: Mapping[str, str], dev: str | os.PathLike[str], smi: str | None = None) -> Gpus:
    """What CUDA would see here. ``dev`` is ``/dev``; ``smi`` the output of ``nvidia-smi -L``."""
    listed = parse_smi(smi) if smi else ()
    if listed:
        present, model, how = len(listed), ", ".join(dict.fromkeys(g.model for g in listed)), "nvidia-smi -L"
    elif smi and "no devices" in smi.lower():
        present, model, how = 0, "", "nvidia-smi -L"
    else:
        present, model, how = device_files(dev), "", f"device files {dev}/nvidia[0-9]+"
        if present == 0 and (other := _other_maker(dev)):
            return Gpus(None, "", f"{other} is no NVIDIA device: not counted")
    mask = env.get("CUDA_VISIBLE_DEVICES")
    if mask is None:
        return Gpus(present, model, how)
    count = _masked(mask, present, listed)
    return Gpus(count, model if count else "", f"{how}: {present}; CUDA_VISIBLE_DEVICES={mask or '(empty)'}: {count}")


def parse_smi(text: str) -> tuple[Listed, ...]:
    """The devices in the output of ``nvidia-smi -L``. A GPU that is cut into MIG instances counts as these."""
    devices: list[Listed] = []
    parent: Listed | None = None
    for line in text.splitlines():
        if found := _GPU.match(line):
            parent = Listed(found[2], found[3])
            devices.append(parent)
        elif (found := _MIG.match(line)) and parent:
            if devices[-1] is parent:
                devices.pop()
            devices.append(Listed(f"{parent.model} MIG {found[1]}", found[3]))
    return tuple(devices)


def _masked(mask: str, present: int, listed: tuple[Listed, ...]) -> int:
    """How many devices CUDA_VISIBLE_DEVICES lets through: those before the first that does not exist (CUDA C
    Programming Guide, "CUDA Environment Variables"). Set but empty lets none through.
    """
    seen: set[str] = set()
    for entry in (e.strip() for e in mask.split(",")):
        key = _device(entry, present, listed)
        if key is None or key in seen:
            break
        seen.add(key)
    return min(len(seen), present)


def _device(entry: str, present: int, listed: tuple[Listed, ...]) -> str | None:
    if entry.isdecimal():
        if not is_whole(entry) or int(entry) >= present:
            return None
        return listed[int(entry)].uuid if listed else entry
    if not entry.startswith(("GPU-", "MIG-")):
        return None
    if not listed:
        return entry  # without nvidia-smi a UUID is believed
    matching = [g.uuid for g in listed if g.uuid.startswith(entry)]  # CUDA takes an unambiguous beginning
    return matching[0] if len(matching) == 1 else None


def device_files(dev: str | os.PathLike[str]) -> int:
    """How many NVIDIA devices there are."""
    try:
        return sum(1 for name in os.listdir(dev) if _DEVICE_FILE.fullmatch(name))
    except OSError:
        return 0


def _other_maker(dev: str | os.PathLike[str]) -> str:
    return next((path for name in _OTHERS if os.path.exists(path := os.path.join(dev, name))), "")
