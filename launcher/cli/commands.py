"""The names of the commands, and which command lines start an engine.

Imported before the guard forks, so it imports next to nothing itself.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

#: every command but `run`
COMMANDS = (
    *("plan", "doctor", "status", "status-token", "wait", "logs", "restart"),
    *("engines", "local", "render", "completion"),
)
#: options of doctor that check the whole group
GROUPED = ("--group", "--collective")
_ASKS = ("--help", "-h", "--version")


def is_run(args: Sequence[str]) -> bool:
    """Whether these arguments start an engine. All other commands only print."""
    own = args[: args.index("--")] if "--" in args else args
    if "_LAUNCHER_COMPLETE" in os.environ or any(a in _ASKS for a in own):
        return False
    if own[:1] and own[0] == "doctor" and any(a in GROUPED for a in own):
        return True  # the group's checks are started like an engine
    return not own or own[0] not in COMMANDS


def asks_for_handoff(args: Sequence[str]) -> bool:
    """Whether to try a handoff before the guard starts. If only a `--config` file asks for it, the agent does it."""
    return args[:1] != ["doctor"] and ("--handoff" in args or "LAUNCHER_HANDOFF" in os.environ)
