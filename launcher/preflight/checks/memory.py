"""/dev/shm, the cgroup's memory limit, and whether the model on disk fits into it."""

from __future__ import annotations

import os
from collections.abc import Iterator

from launcher.common.text import size_text
from launcher.preflight.checks.model import weight_bytes
from launcher.preflight.finding import Finding, fail, ok, warn
from launcher.preflight.pod import Node, cgroup, text

GIB = 1 << 30
SHM_LEAST = 1 * GIB  #: with less, several ranks fail at their first collective: NCCL maps 32 MiB or more per pair
SHM_WANTED = 8 * GIB


def check_shm(node: Node) -> Iterator[Finding]:
    try:
        room = os.statvfs(node.dev / "shm")
    except OSError as error:
        yield fail(
            "shm",
            f"{node.dev / 'shm'}: {error.strerror}",
            "processes of one pod hand tensors to each other through it",
            "mount an emptyDir with medium: Memory at /dev/shm",
        )
        return
    yield judge_shm(node, room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize)


def judge_shm(node: Node, total: int, free: int) -> Finding:
    """Total and free bytes of /dev/shm against the ranks in this pod."""
    here = node.ranks_here
    facts = {"shm": size_text(total)}
    why = "NCCL, PyTorch and the engine's own message queues map it; too small a one ends in a bus error or a hang"
    fix = (
        "mount an emptyDir with medium: Memory at /dev/shm (8 GiB or more; it counts against the container's memory "
        "limit), or give `docker run` --shm-size"
    )
    ranks = f"{here} engine rank{'s' if here > 1 else ''} here"
    shown = f"/dev/shm is {size_text(total)}, {size_text(free)} free; {ranks}"
    if not node.requirements.torch:
        return ok("shm", shown, facts)
    if free < SHM_LEAST and here > 1:
        return fail("shm", shown, why, fix, facts)
    if free < SHM_WANTED and (here > 1 or free < SHM_LEAST):
        return warn("shm", shown, why, fix, facts)
    return ok("shm", shown, facts)


def check_limit(node: Node) -> Iterator[Finding]:
    """The memory limit of the container, and whether the model's share fits into it."""
    limit = cgroup(node, "memory.max", "memory", "memory.limit_in_bytes")
    total = _machine(node)
    have = min((n for n in (limit, total) if n), default=None)
    said = f"limit {size_text(limit)}" if limit else "no limit"
    shown = f"{said}; the machine has {size_text(total)}" if total else said
    facts = {"memory.limit": size_text(limit) if limit else "none"}
    weights = weight_bytes(node.settings.model)
    if have is None or not weights:
        yield ok("memory", shown, facts)
        return
    s = node.settings
    share = weights // max(1, min(node.size, (s.tp or 1) * (s.pp or 1)))
    what = f"{shown}; the model is {size_text(weights)} on disk" + (
        f", {size_text(share)} for one pod" if share != weights else ""
    )
    if share <= have:
        yield ok("memory", what, facts)
    elif node.gpus == 0:
        yield fail(
            "memory",
            what,
            "without a GPU the weights lie in memory: the kernel will end the engine",
            "raise resources.limits.memory, or spread the model over more pods",
            facts,
        )
    else:
        yield warn(
            "memory",
            what,
            "weights pass through the page cache, which counts here: loading gets slow, or the kernel ends the engine",
            "raise resources.limits.memory above the model's share",
            facts,
        )


def _machine(node: Node) -> int:
    for line in text(node.proc / "meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0
