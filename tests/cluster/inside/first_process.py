"""Kills the first process of a pod's container with SIGKILL, from the node: from inside, the kernel protects it.

first_process.py POD_UID COMMAND     in a privileged pod with hostPID, on the same node

COMMAND is what its command line holds.
"""

from __future__ import annotations

import os
import signal
import sys

PROC = "/proc"


def first_processes(uid: str, command: str, proc: str = PROC) -> list[int]:
    """Pids, as seen from the node, of the processes of this pod that are number 1 in their own PID namespace."""
    marks = (uid, uid.replace("-", "_"))  # the second is systemd's form
    found = []
    for name in (n for n in os.listdir(proc) if n.isdigit()):
        try:
            with open(f"{proc}/{name}/cgroup") as file:
                cgroup = file.read()
            with open(f"{proc}/{name}/status") as file:
                inner = next((line.split()[1:] for line in file if line.startswith("NSpid:")), [])
            with open(f"{proc}/{name}/cmdline", "rb") as raw:
                line = raw.read().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue  # it has just ended
        if any(mark in cgroup for mark in marks) and len(inner) > 1 and inner[-1] == "1" and command in line:
            found.append(int(name))
    return found


def main() -> None:
    uid, command = sys.argv[1:]
    found = first_processes(uid, command)
    if len(found) != 1:
        sys.exit(f"{len(found)} processes of pod {uid} are number 1 of their container and hold {command!r}: {found}")
    os.kill(found[0], signal.SIGKILL)
    print(f"killed {found[0]}")


if __name__ == "__main__":
    main()
