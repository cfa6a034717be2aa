"""The names of the commands, and which command lines start an engine.

Read before the guard forks, so it imports next to nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

#: every command but `run`
COMMANDS = ("plan", "doctor", "status", "status-token", "engines", "local", "render", "completion")
#: options of doctor that need all pods
GROUPED = ("--group", "--collective")
_ASKS = ("--help", "-h", "--version")


def is_run(args: Sequence[str]) -> bool:
    """Whether these arguments start an engine. Every other command only prints."""
    own = args[: args.index("--")] if "--" in args else args
    if "_LAUNCHER_COMPLETE" in os.environ or any(a in _ASKS for a in own):
        return False
    if own[:1] and own[0] == "doctor" and any(a in GROUPED for a in own):
        return True  # the group's checks are started as an engine is
    return not own or own[0] not in COMMANDS


def asks_for_handoff(args: Sequence[str]) -> bool:
    """Whether handing off is worth a try. Where only a `--config` file asks for it, the agent does it."""
    return args[:1] != ["doctor"] and ("--handoff" in args or "LAUNCHER_HANDOFF" in os.environ)
