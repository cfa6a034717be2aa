"""Runs all checks concurrently under one deadline.

A check that hangs (a dead NFS mount, DNS that is down) is reported and left behind in its daemon thread, so that it
delays neither doctor nor a start.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import replace

from launcher.preflight.checks.registry import CHECKS, Check
from launcher.preflight.finding import Finding, Level, fail, skipped
from launcher.preflight.pod import Node

START_SECONDS = 2.0  #: the longest that a start waits for its findings
DOCTOR_SECONDS = 15.0


def run(node: Node, checks: Iterable[Check] = CHECKS, seconds: float = DOCTOR_SECONDS) -> tuple[Finding, ...]:
    """All findings, in the order of ``checks``. A check that misses the deadline is a skipped finding."""
    chosen = tuple(checks)
    results: dict[str, tuple[Finding, ...]] = {}
    threads = []
    for check in chosen:
        thread = threading.Thread(target=_one, args=(check, node, results), name=f"check {check.name}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # EAGAIN: no more processes or threads are allowed
            why = "no thread could be started for it: a limit of processes (pids.max)?"
            results[check.name] = (skipped(check.name, why),)
        else:
            threads.append(thread)
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = f"not done within {seconds:g} s: a file system or DNS that does not answer?"
    return tuple(f for c in chosen for f in results.get(c.name) or (skipped(c.name, late),))


def _one(check: Check, node: Node, results: dict[str, tuple[Finding, ...]]) -> None:
    try:
        found = tuple(check.run(node))
    except Exception as error:
        text = f"the check itself failed: {type(error).__name__}: {error}"
        found = (replace(fail(check.name, text, "a bug of the launcher", "please report it"), level=Level.SKIPPED),)
    results[check.name] = found
