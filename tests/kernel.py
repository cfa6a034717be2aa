"""What the kernel under the tests can do."""

from __future__ import annotations

import os
import subprocess

from launcher.node import exit_watcher


def tells_the_reaped() -> bool:
    """Whether it tells how a process ended whose parent was faster (6.15)."""
    child = subprocess.Popen(["true"])
    fd = os.pidfd_open(child.pid)
    try:
        child.wait()
        return exit_watcher.told_by_pidfd(fd) is not None
    finally:
        os.close(fd)
