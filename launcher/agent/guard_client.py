"""The agent's end of the guard's channel: orders go out, reports come in, and short programs are run for their output.

The agent starts no process itself, neither an engine nor a version query: the guard does, and this file tells the
reports on the two apart. It knows nothing of groups or epochs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from launcher.guard import channel as guard

SILENT = 5  #: pings in a row without an answer, after which the guard is frozen: it answers at once
ANSWER = 1 << 16  #: characters kept of a program's answer


class GuardClient:
    """Talks with the guard on the event loop that runs when `open` is called.

    ``heard`` gets every report that does not belong to `ask`.
    """

    def __init__(self, channel: guard.GuardChannel, heard: Callable[[guard.Report], None]) -> None:
        self._channel = channel
        self._heard = heard
        self._loop: asyncio.AbstractEventLoop | None = None
        self._questions = 0
        self._pings = 0
        self._ponged = 0
        self._asks: dict[str, asyncio.Future[guard.Exited | guard.NotStarted]] = {}
        self._output: dict[str, str] = {}
        self.guarding: guard.Guarding | None = None  #: the guard's pid and start time, once it has reported them

    def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._channel.fileno(), self._read)

    def send(self, order: guard.Order) -> None:
        """Never blocks: what the guard does not take at once is queued."""
        self._channel.send(order)
        if self._channel.wants_write and self._loop is not None:
            self._loop.add_writer(self._channel.fileno(), self._write)

    def send_and_wait(self, order: guard.Order) -> None:
        """For the last order: returns when the guard has it."""
        self._channel.send(order)
        os.set_blocking(self._channel.fileno(), True)
        self._channel.flush()

    def say(self, text: str) -> None:
        """Write to the launcher's standard error, which only the guard does."""
        self.send(guard.Say(2, text))

    def ping(self) -> bool:
        """Check that the guard lives. False: it has not answered the last pings.

        They are counted, not timed, because this process may have been frozen itself.
        """
        if self._pings - self._ponged >= SILENT:
            return False
        self._pings += 1
        self.send(guard.Ping(self._pings))
        return True

    async def ask(self, argv: Sequence[str], timeout: float, environ: Mapping[str, str]) -> tuple[int, str]:
        """Have the guard run a short program, for at most ``timeout`` seconds.

        Returns its exit code (127: it can't be started, 124: no answer in time) and its output.
        """
        self._questions += 1
        name = f"ask-{self._questions}"
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asks[name] = future
        self._output[name] = ""
        self.send(guard.Spawn(name, "question", tuple(argv), environ, None, True))
        try:
            report = await asyncio.wait_for(future, timeout)
            output = self._output[name]
        except asyncio.TimeoutError:
            self.send(guard.Kill(name, (name,)))
            return 124, f"no answer within {timeout:g} s"
        finally:
            self._asks.pop(name, None)
            self._output.pop(name, None)
        if isinstance(report, guard.NotStarted):
            return 127, report.text
        return report.code if report.code is not None else 128 + (report.signal or 0), output

    def _write(self) -> None:
        self._channel.flush()
        if not self._channel.wants_write and self._loop is not None:
            self._loop.remove_writer(self._channel.fileno())

    def _read(self) -> None:
        for report in self._channel.receive():
            if isinstance(report, guard.Pong):
                self._ponged = self._pings
            elif not self._is_answer(report):
                if isinstance(report, guard.Guarding):
                    self.guarding = report
                self._heard(report)

    def _is_answer(self, report: guard.Report) -> bool:
        if not isinstance(report, (guard.Started, guard.NotStarted, guard.Output, guard.Exited)):
            return False
        if report.id not in self._asks:
            return False
        if isinstance(report, guard.Output):
            self._output[report.id] = (self._output[report.id] + report.data)[-ANSWER:]
        elif not isinstance(report, guard.Started) and not self._asks[report.id].done():
            self._asks[report.id].set_result(report)
        return True
