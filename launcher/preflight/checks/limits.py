"""Limits of the process and its cgroup: locked memory, open files, processes and threads."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Iterator

from launcher.common.text import size_text
from launcher.node.descriptors import engine_limit
from launcher.preflight.finding import Finding, fail, ok, warn
from launcher.preflight.pod import Node, cgroup, text

IPC_LOCK = 14  #: bit of CAP_IPC_LOCK (capabilities(7))
MEMLOCK_LEAST = 1 << 30
NOFILE_LEAST = 4096
NOFILE_WANTED = 65536
PIDS_LEAST = 512
PIDS_WANTED = 4096


def check_memlock(node: Node) -> Iterator[Finding]:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    capable = has_capability(text(node.proc / "self/status"), IPC_LOCK)
    yield judge_memlock(None if soft == resource.RLIM_INFINITY else soft, capable, _uses_rdma(node))


def judge_memlock(limit: int | None, capable: bool, rdma: bool) -> Finding:
    """``limit``: bytes, None: unlimited. ``capable``: CAP_IPC_LOCK is effective. ``rdma``: RDMA will be used."""
    shown = "unlimited" if limit is None else size_text(limit)
    what = f"locked memory {shown}" + (", with CAP_IPC_LOCK" if capable else "")
    if limit is None or capable:
        return ok("memlock", what)
    if not rdma:
        return ok("memlock", f"{what}: enough without RDMA")
    fix = (
        "LimitMEMLOCK=infinity in the container runtime's unit; or securityContext.capabilities.add: [IPC_LOCK] "
        "and runAsUser: 0 (another user gets no effective capability)"
    )
    why = "RDMA locks the memory that it moves: ibv_reg_mr fails with 'Cannot allocate memory'"
    return (fail if limit < MEMLOCK_LEAST else warn)("memlock", what, why, fix)


def check_nofile(node: Node) -> Iterator[Finding]:
    soft, hard = engine_limit()  # the engine's, since the agent has raised its own
    yield judge_nofile(soft if soft != resource.RLIM_INFINITY else 1 << 30, hard)


def judge_nofile(soft: int, hard: int) -> Finding:
    what = f"{soft} open files" + (f" (hard limit {hard})" if hard not in (soft, resource.RLIM_INFINITY) else "")
    if soft >= NOFILE_WANTED:
        return ok("nofile", what)
    why = "each request is a socket, each weight file and each worker process some more: 'Too many open files'"
    fix = "raise the container runtime's nofile ulimit (LimitNOFILE of containerd, `docker run --ulimit nofile=65536`)"
    return (fail if soft < 256 else warn)("nofile", what, why, fix) if soft < NOFILE_LEAST else ok("nofile", what)


def check_pids(node: Node) -> Iterator[Finding]:
    yield judge_pids(cgroup(node, "pids.max", "pids", "pids.max"), os.cpu_count() or 1)


def judge_pids(limit: int | None, cores: int) -> Finding:
    """``limit``: processes and threads of the pod; None: unlimited."""
    if limit is None:
        return ok("pids", "no limit of processes")
    what = f"at most {limit} processes and threads ({cores} cores)"
    if limit >= PIDS_WANTED:
        return ok("pids", what)
    why = "one BLAS or OpenMP pool a rank takes a thread a core, NCCL and worker processes hundreds more"
    fix = "raise the kubelet's podPidsLimit (or the runtime's --pids-limit); OMP_NUM_THREADS lowers the need"
    return (fail if limit < PIDS_LEAST else warn)("pids", what, why, fix)


def has_capability(status: str, bit: int) -> bool:
    """Whether a capability is effective, from the text of /proc/self/status."""
    found = re.search(r"^CapEff:\s*([0-9a-fA-F]+)", status, re.MULTILINE)
    return bool(found and int(found[1], 16) >> bit & 1)


def _uses_rdma(node: Node) -> bool:
    return bool(node.network and node.network.facts.get("rdma.rails", "0") not in ("", "0"))
