"""Put on PYTHONPATH of an engine: a worker hangs in the middle of a forward pass when it is told to.

It is told by the file HANGING_WORKERS, which says how: busy (computes in Python), blocked (in a system call), stopped.
Torch is left to the engine to import; once it is there, every module's forward pass looks for the file.
"""

import os
import signal
import sys
import threading
import time

NAMES = (b"VLLM::Worker", b"sglang::scheduler")


def busy() -> None:
    number = 0
    while True:
        number = (number * 31 + 7) % 1_000_003


def blocked() -> None:
    nothing, _writer = os.pipe()
    os.read(nothing, 1)


def stopped() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def look(*_: object) -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    try:
        with open(os.environ["HANGING_WORKERS"]) as file:
            how = file.read().strip()
    except OSError:
        return
    {"busy": busy, "blocked": blocked, "stopped": stopped}[how]()


def named() -> bool:
    with open("/proc/self/cmdline", "rb") as file:
        return file.read(64).startswith(NAMES)


def lie_in_wait() -> None:
    while not named() or not hasattr(sys.modules.get("torch.nn.modules.module"), "register_module_forward_pre_hook"):
        time.sleep(0.5)
    sys.modules["torch.nn.modules.module"].register_module_forward_pre_hook(look)


def begin() -> None:
    threading.Thread(target=lie_in_wait, daemon=True).start()


if os.environ.get("HANGING_WORKERS"):
    begin()
    os.register_at_fork(after_in_child=begin)  # a thread does not survive a fork, and a worker may be one
