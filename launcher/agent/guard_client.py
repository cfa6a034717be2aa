"""The agent's end of the guard's channel: orders go out, reports come in, and short questions are put to programs.

The agent starts nothing itself, a version query as little as an engine: the guard does, and this file keeps the two
kinds apart. It knows nothing of groups or epochs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from launcher.guard import channel as guard

SILENT = 5  #: the guard answers pings at once; so many in a row without an answer and it is frozen
ANSWER = 1 << 16  #: characters kept of a program's answer


class GuardClient:
    """Talks with the guard on the event loop that is running when :meth:`open` is called.

    ``heard`` gets every report that is not an answer to a question of ours.
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
        self.guarding: guard.Guarding | None = None  #: who the guard is, once it has said so

    def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._channel.fileno(), self._read)

    def send(self, order: guard.Order) -> None:
        """Never blocks: what the guard does not take at once waits here."""
        self._channel.send(order)
        if self._channel.wants_write and self._loop is not None:
            self._loop.add_writer(self._channel.fileno(), self._write)

    def send_and_wait(self, order: guard.Order) -> None:
        """For the last order of all: returns when the guard has it."""
        self._channel.send(order)
        os.set_blocking(self._channel.fileno(), True)
        self._channel.flush()

    def say(self, text: str) -> None:
        """Words for people, on the launcher's standard error; the guard alone writes there."""
        self.send(guard.Say(2, text))

    def ping(self) -> bool:
        """Ask whether the guard lives. False: it has been silent to the last pings.

        They are counted, not timed: we may have been frozen ourselves.
        """
        if self._pings - self._ponged >= SILENT:
            return False
        self._pings += 1
        self.send(guard.Ping(self._pings))
        return True

    async def ask(self, argv: Sequence[str], timeout: float, environ: Mapping[str, str]) -> tuple[int, str]:
        """Have the guard run a short program for at most ``timeout`` seconds.

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
