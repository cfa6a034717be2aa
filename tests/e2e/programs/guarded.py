"""What the tests of the guard hold on to: a mini_agent started as a real process, its log, its orders, its tree."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from launcher.guard.channel import Order, encode
from launcher.node.tree import Proc, descendants

HERE = Path(__file__).parent
#: The guard needs no package, so any interpreter from 3.10 on can be tried in this one's place.
PYTHON = os.environ.get("GUARD_PYTHON", sys.executable)
#: The machine is noisy: how long anything may take before a test calls it lost.
PATIENCE = 30.0

T = TypeVar("T")


def until(condition: Callable[[], T], what: str, patience: float = PATIENCE) -> T:
    """Poll until ``condition`` is true; its value."""
    end = time.monotonic() + patience
    while not (value := condition()):
        assert time.monotonic() < end, f"after {patience} s still not: {what}"
        time.sleep(0.01)
    return value


class Fifo:
    """Held open by every process of a nasty tree: end of file is the proof that all are dead."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "alive"
        os.mkfifo(self.path)
        self.fd = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        self.ready = 0

    def wait_ready(self, count: int) -> None:
        def enough() -> bool:
            if select.select([self.fd], [], [], 0.05)[0]:
                with contextlib.suppress(BlockingIOError):
                    self.ready += len(os.read(self.fd, 4096))
            return self.ready >= count

        until(enough, f"{count} processes of the nasty tree ready")

    @property
    def all_dead(self) -> bool:
        """No process has the other end open."""
        try:
            while data := os.read(self.fd, 4096):
                self.ready += len(data)
        except BlockingIOError:
            return False
        return True

    def seconds_until_dead(self, patience: float = PATIENCE) -> float:
        begun = time.monotonic()
        until(lambda: self.all_dead, "every process of the nasty tree dead", patience)
        return time.monotonic() - begun


class Launched:
    """A mini_agent under the guard. ``options`` become MINI_* variables."""

    def __init__(
        self,
        folder: Path,
        *argv: str | Path,
        stdout: Any = subprocess.PIPE,
        before: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        fifo: bool = True,
        program: str = "mini_agent.py",
        **options: object,
    ) -> None:
        self.log_path = folder / "log"
        self.log_path.touch()
        self._orders = -1
        variables = {f"MINI_{name.upper()}": str(value) for name, value in options.items()}
        variables["MINI_LOG"] = str(self.log_path)
        # As in an image, where bytecode is there already: compiling the room takes longer than most of these tests.
        variables["PYTHONDONTWRITEBYTECODE"] = ""
        variables["PYTHONPYCACHEPREFIX"] = str(Path(tempfile.gettempdir()) / "launcher-tests-pycache")
        if fifo:
            os.mkfifo(folder / "orders")
            self._orders = os.open(folder / "orders", os.O_RDWR)
            variables["MINI_ORDERS"] = str(folder / "orders")
        command = [*before, PYTHON, str(HERE / program), *map(str, argv)]
        self.process = subprocess.Popen(
            command, stdout=stdout, stderr=subprocess.PIPE, env={**os.environ, **variables, **(env or {})}
        )

    @property
    def pid(self) -> int:
        """Of the guard, as seen from here."""
        return int(self.reported("agent")["guard"])

    @property
    def agent(self) -> int:
        return int(self.reported("agent")["pid"])

    def log(self) -> list[tuple[float, str, dict[str, Any]]]:
        lines = self.log_path.read_text().splitlines(keepends=True)
        return [tuple(json.loads(line)) for line in lines if line.endswith("\n")]

    def all_reported(self, kind: str, **fields: object) -> list[dict[str, Any]]:
        wanted = fields.items()
        return [
            found for _, k, found in self.log() if k == kind and wanted <= {n: found.get(n) for n in fields}.items()
        ]

    def reported(self, kind: str, **fields: object) -> dict[str, Any]:
        """Wait for a report, and return it: the first of its kind with these fields."""
        return until(lambda: self.all_reported(kind, **fields), f"a report {kind} {fields}")[0]

    def order(self, order: Order) -> None:
        os.write(self._orders, encode(order)[4:] + b"\n")

    def wait(self, patience: float = PATIENCE) -> int:
        """The exit code as a shell would say it."""
        code = self.process.wait(patience)
        return code if code >= 0 else 128 - code

    def tree(self) -> tuple[Proc, ...]:
        return tuple(p for p in descendants(self.process.pid) if not p.gone)

    def close(self) -> None:
        """End what a failed test left: the guard last, so that nothing gets away."""
        if self._orders >= 0:
            os.close(self._orders)
        if self.process.poll() is None:
            for victim in [*reversed(descendants(self.process.pid)), None]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim.pid if victim else self.process.pid, signal.SIGKILL)
        self.process.wait(PATIENCE)
        for stream in (self.process.stdout, self.process.stderr):
            if stream:
                stream.close()
