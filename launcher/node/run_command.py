"""A short program run to its end for its answer, by a command that has no guard: `plan` and `doctor`."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Awaitable, Callable, Mapping, Sequence

#: run a program with arguments within seconds: its exit code and output
Ask = Callable[[Sequence[str], float], Awaitable[tuple[int, str]]]


def asker(environ: Mapping[str, str]) -> Ask:
    """A function that runs ``argv`` in ``environ`` and gives its exit code and output.

    127 is "it cannot be started", 124 "no answer within the seconds given", as the guard's answers are to the agent.
    """

    def ask_now(argv: Sequence[str], timeout: float) -> tuple[int, str]:
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False, env=dict(environ))
        except OSError as error:
            return 127, error.strerror or str(error)
        except subprocess.TimeoutExpired:
            return 124, "no answer"
        return done.returncode, done.stdout + done.stderr

    async def ask(argv: Sequence[str], timeout: float) -> tuple[int, str]:
        return await asyncio.to_thread(ask_now, argv, timeout)

    return ask
