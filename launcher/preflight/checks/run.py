"""Runs every check at the same time, under one deadline.

A check that hangs (a dead NFS mount, DNS that is down) is named as such and left behind in its daemon thread: neither
doctor nor a start waits for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from launcher.preflight.checks import disk, gpus, limits, memory, model, names, network, ports, process, software
from launcher.preflight.finding import Finding, Level, fail, skipped
from launcher.preflight.pod import Node

Check = Callable[[Node], Iterable[Finding]]

#: In the order in which they are shown. Those of CHEAP send nothing and wait for nobody.
CHEAP: tuple[tuple[str, Check], ...] = (
    ("gpus", gpus.check),
    ("software", software.check),
    ("model", model.check),
    ("shm", memory.check_shm),
    ("memory", memory.check_limit),
    ("disk", disk.check),
    ("memlock", limits.check_memlock),
    ("nofile", limits.check_nofile),
    ("pids", limits.check_pids),
    ("network", network.check),
    ("ports", ports.check),
    ("init", process.check_init),
    ("links", process.check_links),
    ("grace", process.check_grace),
)
ALL: tuple[tuple[str, Check], ...] = (
    *CHEAP[:-4],
    ("own name", names.check_own),
    ("leader", names.check_leader),
    *CHEAP[-4:],
)
START_SECONDS = 2.0  #: a start waits no longer for its findings
DOCTOR_SECONDS = 15.0


def run(node: Node, checks: Iterable[tuple[str, Check]] = ALL, seconds: float = DOCTOR_SECONDS) -> tuple[Finding, ...]:
    """All findings, in the order of ``checks``. A check that is not done by the deadline is a finding itself."""
    chosen = tuple(checks)
    results: dict[str, tuple[Finding, ...]] = {}
    threads = []
    for name, check in chosen:
        thread = threading.Thread(target=_one, args=(name, check, node, results), name=f"check {name}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # EAGAIN: the limit of processes and threads
            results[name] = (skipped(name, "no thread could be started for it: a limit of processes (pids.max)?"),)
        else:
            threads.append(thread)
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = f"not done within {seconds:g} s: a file system or DNS that does not answer?"
    return tuple(f for name, _ in chosen for f in results.get(name) or (skipped(name, late),))


def _one(name: str, check: Check, node: Node, results: dict[str, tuple[Finding, ...]]) -> None:
    try:
        found = tuple(check(node))
    except Exception as error:
        text = f"the check itself failed: {type(error).__name__}: {error}"
        found = (replace(fail(name, text, "a bug of the launcher", "please report it"), level=Level.SKIPPED),)
    results[name] = found
