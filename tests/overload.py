"""What the runs on an overloaded machine share: requests all the while, a witness of restarts, a rank that is frozen.

LAUNCHER_OVERLOAD_SECONDS (120) says how long, LAUNCHER_TEST_LOAD (20) how many busy processes run beside.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

SECONDS = float(os.environ.get("LAUNCHER_OVERLOAD_SECONDS", "120"))
LOAD = int(os.environ.get("LAUNCHER_TEST_LOAD", "20"))
FOUND_WITHIN = 10.0  #: seconds from SIGSTOP of a process until the leader has ended the epoch for it


class Requests:
    """Asks again and again from some threads. ``ask`` raises AssertionError or OSError when it was not served."""

    def __init__(self, ask: Callable[[], object]) -> None:
        self._ask = ask
        self._over = threading.Event()
        self.took: list[float] = []
        self.failed: list[str] = []

    def again_and_again(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            try:
                self._ask()
            except (AssertionError, OSError) as error:
                if self._over.is_set():
                    return
                self.failed.append(f"{type(error).__name__}: {str(error)[:300]}")
                self._over.wait(1.0)
            else:
                self.took.append(time.monotonic() - began)

    def stop(self) -> None:
        """No more are begun; those under way may fail."""
        self._over.set()


@contextmanager
def requests(ask: Callable[[], object], callers: int) -> Iterator[Requests]:
    made = Requests(ask)
    threads = [threading.Thread(target=made.again_and_again, daemon=True) for _ in range(callers)]
    for thread in threads:
        thread.start()
    try:
        yield made
    finally:
        made.stop()
        for thread in threads:
            thread.join(60)


def watch(status: Callable[[], dict[str, Any]], seconds: float, words: Callable[[], str]) -> list[float]:
    """Look at the leader for so long: one epoch, no failure. Returns the load averages that were seen."""
    loads, epoch, until = [], 0, time.monotonic() + seconds
    while time.monotonic() < until:
        loads.append(os.getloadavg()[0])
        said = status()
        if said:  # a page may be late on such a machine
            epoch = epoch or said["epoch"]
            assert said["epoch"] == epoch and not said["first_failure"], f"restarted: {said}\n{words()}"
        time.sleep(2)
    assert epoch, words()
    return loads


def found(status: Callable[[], dict[str, Any]], epoch: int, stopped_at: float) -> tuple[float, str]:
    """Seconds from ``stopped_at`` until the leader ends that epoch, and why."""
    took = 0.0
    while time.monotonic() < stopped_at + 120:
        said = status()
        if said and not took and (said["phase"] != "running" or said["epoch"] != epoch):
            took = time.monotonic() - stopped_at
        if said and said["failures"]:
            return took or time.monotonic() - stopped_at, str(said["failures"][-1]["text"])
        time.sleep(0.05)
    raise AssertionError("nobody noticed a frozen process within 120 s")
