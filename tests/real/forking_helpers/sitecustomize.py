"""Put on PYTHONPATH of an engine: once one of its processes is named a worker, it forks helpers, as TorchInductor does.

Each takes from 0 to 5 s from fork to exec, or never execs; they exit with 0, with a code, or by a signal. A bounded
number of them, one after the other and some at a time; each is reaped. They begin when the file FORKING_HELPERS_LOG +
".begin" exists; what was forked is written to FORKING_HELPERS_LOG.
"""

import contextlib
import os
import signal
import threading
import time

NAMES = (b"VLLM::Worker", b"VLLM::EngineCore", b"sglang::scheduler")
DELAYS = (0.0, 0.03, 0.3, 1.0, 2.0, 5.0)
WAYS = ("exits", "execs", "fails", "killed")


def helper(delay: float, way: str) -> None:
    time.sleep(delay)
    if way == "execs":
        os.execv("/bin/sh", ["sh", "-c", "sleep 0.2"])
    if way == "fails":
        os._exit(3)
    if way == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(0)


def named() -> bool:
    with open("/proc/self/cmdline", "rb") as file:
        return file.read(64).startswith(NAMES)


def fork_helpers(log: str, rounds: int) -> None:
    while not named() or not os.path.exists(log + ".begin"):
        time.sleep(0.5)
    for _ in range(rounds):
        for delay in DELAYS:
            children = []
            for way in WAYS:
                pid = os.fork()
                if pid == 0:
                    helper(delay, way)
                children.append(pid)
            for pid in children:
                with contextlib.suppress(ChildProcessError):  # the engine reaps what it did not start
                    os.waitpid(pid, 0)
            with open(log, "a") as file:
                file.write(f"{os.uname().nodename}.{os.getpid()} {len(WAYS)}\n")


if os.environ.get("FORKING_HELPERS_LOG"):
    threading.Thread(
        target=fork_helpers,
        args=(os.environ["FORKING_HELPERS_LOG"], int(os.environ.get("FORKING_HELPERS_ROUNDS", "5"))),
        daemon=True,
    ).start()
