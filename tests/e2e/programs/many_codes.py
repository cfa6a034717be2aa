"""Many guards, cheaply, eight at a time: each forked from here, each running one small program to its end.

    many_codes.py SCRIPT...

For each shell script prints the exit status of the guard that ran it. A guard a Python start would take a minute for
all of 0 to 255; the guards here are as real, only their interpreter was started before.
"""

from __future__ import annotations

import os
import select
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))))

from launcher.guard import guard
from launcher.guard.channel import Exited, GuardChannel, Spawn


def agent(fd: int, script: str) -> int:
    channel = GuardChannel(fd)
    channel.send(Spawn("main", "main", ("sh", "-c", script), dict(os.environ)))
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while True:
        poll.poll()
        for report in channel.receive():
            if isinstance(report, Exited):
                return report.code if report.code is not None else 128 + (report.signal or 0)


def launch(script: str) -> int:
    return os.fork() or guard.run(lambda fd: agent(fd, script))


if __name__ == "__main__":
    scripts = sys.argv[1:]
    running: list[int] = []
    while scripts or running:
        while scripts and len(running) < 8:
            running.append(launch(scripts.pop(0)))
        print(os.waitstatus_to_exitcode(os.waitpid(running.pop(0), 0)[1]), flush=True)
