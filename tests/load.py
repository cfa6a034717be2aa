"""Makes the machine busy: processes that only compute, as many as asked for, beside a command or a block of a test.

    python -m tests.load 30 ./run.sh test -m timing

They end with the process that started them, however that ends, and after an hour in any case.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

LONGEST = 3600.0

#: Computes until nobody holds the other end of its stdin.
BUSY = f"""
import select, sys, time
until = time.monotonic() + {LONGEST}
while time.monotonic() < until and not select.select([sys.stdin], [], [], 0)[0]:
    for _ in range(100_000):
        pass
"""


@contextlib.contextmanager
def busy(count: int, apart: bool = False) -> Iterator[None]:
    """``count`` busy processes for the time of the block.

    ``apart``: each in a session of its own. With CONFIG_SCHED_AUTOGROUP sessions share the CPUs, not processes, so in
    one session they are a load of 1 to every other.
    """
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            command = [sys.executable, "-S", "-c", BUSY]
            processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=apart))
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.communicate()


def main() -> int:
    if len(sys.argv) < 3 or not sys.argv[1].isdigit():
        print("usage: python -m tests.load COUNT COMMAND [ARGUMENT...]", file=sys.stderr)
        return 64
    with busy(int(sys.argv[1])):
        return subprocess.run(sys.argv[2:], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
