"""Where every `launcher` command begins. Decides one thing: whether this is a run, which the guard must start.

The guard has to be the first process and small, so nothing but it is imported before the fork; options are read in the
agent. Where the engine may take the launcher's place at once, that is tried before. All other commands are plain
programs.
"""

from __future__ import annotations

import gc
import os
import sys

COMMANDS = ("plan", "doctor", "status", "status-token", "engines", "local", "render", "completion")
GROUPED = ("--group", "--collective")
ASKS = ("--help", "-h", "--version")


def main() -> None:
    """The console script."""
    if is_run(sys.argv[1:]):
        gc.disable()  # what imports make stays; guard and agent turn it on again when they are up: a tenth of the start
        if asks_for_handoff(sys.argv[1:]):
            from launcher.agent import handoff

            handoff.attempt()
        from launcher.guard import guard

        guard.run(_agent)
    from launcher.cli import main as cli

    cli.main()


def is_run(args: list[str]) -> bool:
    """A run starts an engine; everything else only prints."""
    own = args[: args.index("--")] if "--" in args else args
    if "_LAUNCHER_COMPLETE" in os.environ or any(a in ASKS for a in own):
        return False
    first = next((a for a in own if not a.startswith("-")), "run")
    if own and own[0] == "doctor" and any(a in GROUPED for a in own):
        return True  # the group's checks are started as an engine is
    return not own or own[0].startswith("-") or first not in COMMANDS


def asks_for_handoff(args: list[str]) -> bool:
    """Whether it is worth trying. Where only a `--config` file asks for it, it is done all the same, the long way."""
    return args[:1] != ["doctor"] and ("--handoff" in args or "LAUNCHER_HANDOFF" in os.environ)


def _agent(fd: int) -> int:
    from launcher.cli import main as cli

    return cli.run_agent(fd)


if __name__ == "__main__":
    main()
