"""The smallest agent: runs one program under the guard, and does what the test asks for in MINI_* variables.

    mini_agent.py PROGRAM [ARGUMENT...]

TERM is a stop with MINI_GRACE seconds, every other signal is passed on, and it exits with the program's code. Reports
are written to MINI_LOG, one JSON line each; orders are read from the FIFO MINI_ORDERS, one JSON line each, in the form
of a frame's body.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))))

from launcher.guard import guard
from launcher.guard.channel import (
    Deadline,
    Deliver,
    Exited,
    GuardChannel,
    Guarding,
    GuardLost,
    Handoff,
    Incarnation,
    NotStarted,
    Policy,
    Report,
    SignalReceived,
    Spawn,
    Started,
    Stop,
    Stopped,
    decode,
)
from launcher.node.tree import descendants, kill_tree_without_guard


class MiniAgent:
    def __init__(self, fd: int) -> None:
        self.channel = GuardChannel(fd)
        self.log = os.open(os.environ.get("MINI_LOG", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.orders = os.open(os.environ["MINI_ORDERS"], os.O_RDWR) if "MINI_ORDERS" in os.environ else -1
        self.guard: Guarding | None = None
        self.recorded: set[tuple[int, int]] = set()
        self.code: int | None = None
        self.seen = float(os.environ.get("MINI_LEASE", "0"))

    def start(self) -> None:
        env = {name: value for name, value in os.environ.items() if not name.startswith("MINI_")}
        argv = tuple(sys.argv[1:])
        if "MINI_HANDOFF" in os.environ:
            self.channel.send(Handoff(argv, env))
            self.code = 0
            return
        self.channel.send(Policy("MINI_RESTART" in os.environ))
        self.channel.send(Incarnation(f"life{os.getpid()}"))
        if self.seen:
            self.channel.send(Deadline(time.monotonic() + self.seen))
        if argv:
            env["LAUNCHER_COOKIE"] = os.environ.get("MINI_COOKIE", "mini")
            self.channel.send(Spawn("main", "main", argv, env, capture="MINI_CAPTURE" in os.environ))

    def run(self) -> int:
        self.note(
            "agent",
            {k: v for k, v in os.environ.items() if k.startswith("LAUNCHER_")}
            | {"pid": os.getpid(), "guard": os.getppid()},
        )
        self.start()
        poll = select.poll()
        while self.code is None:
            poll.register(self.channel.fileno(), select.POLLIN | (select.POLLOUT if self.channel.wants_write else 0))
            if self.orders >= 0:
                poll.register(self.orders, select.POLLIN)
            ready = dict(poll.poll(100))
            self.channel.flush()
            if self.orders in ready:
                for line in os.read(self.orders, 1 << 16).splitlines():
                    self.channel.send(decode(line))
                    self.note("ordered", {})
            for report in self.channel.receive():
                self.take(report)
            if self.seen:
                self.channel.send(Deadline(time.monotonic() + self.seen))
            if self.guard and "MINI_RECORD" in os.environ:
                self.recorded.update(p.key for p in descendants(self.guard.pid))
        self.channel.flush()
        return self.code

    def take(self, report: Report) -> None:
        self.note(type(report).__name__, report._asdict())
        if isinstance(report, Guarding):
            self.guard = report
        elif isinstance(report, Started):
            self.recorded.add((report.pid, report.start_time))
        elif isinstance(report, SignalReceived):
            if report.number == signal.SIGTERM:
                self.channel.send(Stop("term", None, float(os.environ.get("MINI_GRACE", "10"))))
            else:
                self.channel.send(Deliver(report.number))
        elif isinstance(report, NotStarted) and report.id == "main":
            self.code = 127
        elif isinstance(report, Exited) and report.id == "main" and "MINI_STAY" not in os.environ:
            self.code = report.code if report.code is not None else 128 + (report.signal or 0)
        elif isinstance(report, Stopped) and report.id == "term":
            self.code = self.code or 0
        elif isinstance(report, GuardLost):
            left = kill_tree_without_guard(self.recorded, cookie=os.environ.get("MINI_COOKIE", "mini"))
            self.note("without_guard", {"left": len(left)})
            self.code = 99

    def note(self, kind: str, fields: dict[str, Any]) -> None:
        if kind == "Output":
            fields = {**fields, "data": fields["data"][:1000]}
        os.write(self.log, json.dumps([time.monotonic(), kind, fields], default=list).encode() + b"\n")


if __name__ == "__main__":
    guard.FROZEN = float(os.environ.get("MINI_FROZEN", guard.FROZEN))
    guard.run(lambda fd: MiniAgent(fd).run())
