"""Folders that the engine writes to: are they writable, and is there room?"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from launcher.common.folders import cache_home, home
from launcher.common.text import size_text
from launcher.preflight.finding import Finding, ok, warn
from launcher.preflight.pod import Node

ROOM_WANTED = 2 << 30  #: the compile caches of one model take a few hundred MiB


def folders(node: Node) -> dict[str, str]:
    """The folders that will be written to, by purpose. The defaults are the libraries' own."""
    env: Mapping[str, str] = node.environ
    found = {"temporary files": env.get("TMPDIR") or "/tmp"}
    if node.settings.state_dir:
        found["--state-dir"] = node.settings.state_dir
    if node.requirements.torch:
        found["the model hub's cache"] = (
            env.get("HF_HUB_CACHE") or env.get("HF_HOME") or f"{cache_home(env)}/huggingface"
        )
        found["compiled kernels"] = env.get("TRITON_CACHE_DIR") or env.get("TRITON_HOME") or f"{home(env)}/.triton"
        if env.get("TORCHINDUCTOR_CACHE_DIR"):
            found["compiled graphs"] = env["TORCHINDUCTOR_CACHE_DIR"]
    return {**found, **node.requirements.folders}


def check(node: Node) -> Iterator[Finding]:
    """One finding for all good folders, and one for each bad one."""
    fine: list[str] = []
    for purpose, path in folders(node).items():
        trouble = _trouble(node, purpose, path)
        if trouble:
            yield trouble
        else:
            fine.append(f"{path} ({size_text(_free(Path(path)))} free)")
    if fine:
        yield ok("disk", "writable: " + ", ".join(dict.fromkeys(fine)))


def _trouble(node: Node, purpose: str, path: str) -> Finding | None:
    there = _existing(Path(path))
    who = f"user {os.geteuid()}"
    fix = "mount an emptyDir there, or point its variable (HF_HOME, XDG_CACHE_HOME, TRITON_CACHE_DIR, HOME) elsewhere"
    if purpose == "temporary files":
        fix = "mount an emptyDir at /tmp, or set TMPDIR"
    if purpose == "the model hub's cache" and _local(node):
        return None  # a local model needs no hub
    if not os.access(there, os.W_OK | os.X_OK):
        return warn("disk", f"{path} ({purpose}) cannot be written by {who}", "the engine fails when it does", fix)
    if _free(there) < ROOM_WANTED:
        what = f"{path} ({purpose}) has {size_text(_free(there))} left"
        return warn("disk", what, "a full disk ends the engine, or the kubelet evicts the pod", "make room there")
    return None


def _local(node: Node) -> bool:
    return bool(node.settings.model) and os.path.isdir(node.settings.model or "")


def _existing(path: Path) -> Path:
    """The folder itself or its nearest existing parent: the engine creates the rest."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _free(path: Path) -> int:
    try:
        room = os.statvfs(_existing(path))
    except OSError:
        return 0
    return room.f_bavail * room.f_frsize
