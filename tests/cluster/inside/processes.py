"""The processes of a pod, for what must happen to one of them. Run in the engine's container: `python3 - ... < this`.

processes.py list             all of them, as JSON
processes.py kill PID         SIGKILL
processes.py starve PID       use up the container's memory, with this process marked as the first that the kernel ends
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

PROC = "/proc"


def processes(proc: str = PROC) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for name in sorted((n for n in os.listdir(proc) if n.isdigit()), key=int):
        try:
            with open(f"{proc}/{name}/stat") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
            with open(f"{proc}/{name}/cmdline", "rb") as raw:
                words = raw.read().decode(errors="replace").split("\0")
        except (OSError, ValueError):
            continue  # it has just ended
        found.append({"pid": int(name), "parent": int(parent), "state": state, "command": " ".join(words).strip()})
    return found


def starve(pid: int, most: int) -> None:
    """Only a process of the same user may be marked; the kernel ends the marked one, or all of the container."""
    with open(f"{PROC}/{pid}/oom_score_adj", "w") as file:
        file.write("1000")
    with open(f"{PROC}/self/oom_score_adj", "w") as file:
        file.write("0")
    taken = []
    for _ in range(most // 2**20):
        taken.append(bytearray(os.urandom(2**12) * 2**8))
        if not os.path.exists(f"{PROC}/{pid}"):
            break
        time.sleep(0.001)
    print(f"took {len(taken)} MiB, and process {pid} {'lives' if os.path.exists(f'{PROC}/{pid}') else 'is gone'}")


def main(arguments: list[str]) -> None:
    what = arguments[0] if arguments else "list"
    if what == "list":
        print(json.dumps(processes()))
    elif what == "kill":
        os.kill(int(arguments[1]), signal.SIGKILL)
    elif what == "starve":
        starve(int(arguments[1]), int(arguments[2]) if len(arguments) > 2 else 2**30)
    else:
        sys.exit(f"processes.py: {what} is neither list nor kill nor starve")


if __name__ == "__main__":
    main(sys.argv[1:])
