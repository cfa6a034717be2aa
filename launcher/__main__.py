"""Where every `launcher` command begins. Decides one thing: whether this is a run, which the guard must start.

The guard has to be the first process and small, so nothing but it is imported before the fork; options are read in the
agent. Where the engine may take the launcher's place at once, that is tried before. All other commands are plain
programs.
"""

from __future__ import annotations

import gc
import sys

from launcher.cli.commands import asks_for_handoff, is_run


def main() -> None:
    """The console script. Ctrl-C ends any command without a traceback, whatever it was doing."""
    try:
        _command()
    except KeyboardInterrupt:
        sys.exit(130)


def _command() -> None:
    if is_run(sys.argv[1:]):
        gc.disable()  # what imports make stays; guard and agent turn it on again when they are up: a tenth of the start
        if asks_for_handoff(sys.argv[1:]):
            from launcher.agent import handoff

            handoff.attempt()
        from launcher.guard import guard

        guard.run(_agent)
    from launcher.cli import main as cli

    cli.main()


def _agent(fd: int) -> int:
    from launcher.cli import main as cli

    return cli.run_agent(fd)


if __name__ == "__main__":
    main()
