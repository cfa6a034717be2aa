"""`launcher wait`: until a pod is ready, or its group is in a phase. For scripts, and for people who deploy."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from launcher.api import client
from launcher.cli.status import ago, clean, objects, starting, verdict
from launcher.log import LONG_SECONDS, WaitLines

LOOK_EVERY = 0.3  #: seconds
NOT_YET = os.EX_TEMPFAIL  #: 75


def run(base: str, token_file: str | None, phases: tuple[str, ...], timeout: float | None) -> int:
    """0 when it is so, 75 if it is not within ``timeout`` seconds. ``phases``: empty: until it is ready.

    Nobody who answers is waited for, too: a pod that has just been made answers soon.
    """
    what = f"until it is {' or '.join(phases)}" if phases else "until it is ready"
    end = None if timeout is None else time.monotonic() + timeout
    wait, before, words = WaitLines(), None, ""
    while True:
        try:
            status = client.fetch(base, token_file)
        except client.NoAnswer as error:
            words = error.message
        else:
            if _is_so(status, phases, before):
                return 0
            before = before if before is not None else _visits(status)
            words = _words(status)
        left = float("inf") if end is None else end - time.monotonic()
        if left <= 0:
            print(f"launcher: not {what.removeprefix('until it is ')} after {timeout:g} s: {words}", file=sys.stderr)
            return NOT_YET
        line, lasted = wait.line(f"waiting {what}: {words}", time.monotonic()), wait.lasted(time.monotonic())
        if line:
            since = f" (for {ago(lasted)})" if lasted >= 1 else ""
            hint = f"; look at: launcher status --url {base}" if lasted >= LONG_SECONDS else ""
            print(f"launcher: {line}{since}{hint}", file=sys.stderr, flush=True)
        time.sleep(min(LOOK_EVERY, left))


def _is_so(status: Mapping[str, Any], phases: tuple[str, ...], before: set[tuple[str, str]] | None) -> bool:
    if not phases:
        return bool(status.get("ready"))
    # A phase may be shorter than the time between two looks: the pod's timeline has it.
    since = _visits(status) - before if before is not None else set()
    return status.get("phase") in phases or any(phase in phases for phase, _ in since)


def _visits(status: Mapping[str, Any]) -> set[tuple[str, str]]:
    return {(str(visit.get("phase")), str(visit.get("at"))) for visit in objects(status.get("timeline"))}


def _words(status: Mapping[str, Any]) -> str:
    """What the group does now. Numbers that change all the time are left out, since each change is printed."""
    waits = str(status.get("waiting_for") or "").partition("; ")[0]
    more = waits or ("ranks are starting" if starting(objects(status.get("members"))) else "")
    return f"it is {clean(verdict(status))}" + (f", {clean(more)}" if more else "")
