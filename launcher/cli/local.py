"""`launcher local --size N`: a whole group on this machine, for trying things out and for demos.

Each rank r is its own launcher on 127.0.0.(1+r), so all ranks use the same ports, as pods do; an engine may ask for
other addresses (``Engine.local``). Their output becomes one stream, with a prefix for each rank, and a banner once the
group serves. Ctrl-C and SIGTERM reach all ranks, as SIGTERM. The exit code is that of the lowest rank that failed.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import queue
import selectors
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

from launcher.engines.base import Local
from launcher.errors import ConfigError, LauncherError
from launcher.model import NodeFacts
from launcher.node import reexec
from launcher.node.run_command import asker
from launcher.planning import steps
from launcher.settings import AGENT_PORT, Settings

PR_SET_PDEATHSIG = 1  #: prctl(2)
LOOK_EVERY = 0.3  #: seconds between looks whether the group serves
NO_SETTLE = "50ms"  #: of --drain-settle, where the user says nothing
COLOURS = (36, 33, 35, 32, 34, 31)


def run(size: int, args: Sequence[str], settings: Settings) -> int:
    """Start ``size`` ranks with the command line ``args`` (without the word local) and wait for all."""
    if size > 250:
        raise ConfigError(f"--size {size} is more than this machine's loopback ranks", "give 250 or less")
    engine = steps.engine_of(settings)
    facts = asyncio.run(steps.learn(settings, engine, os.environ, asker(os.environ))) if size > 1 else NodeFacts()
    needs = engine.local(settings, size, facts)
    wrap = _own_shm(needs.private_shm)
    ranks: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []

    def pass_on(number: int, _: object) -> None:
        asked.append(number)
        _stop(ranks)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # SIGHUP: the terminal closed
        signal.signal(number, pass_on)
    banner = Banner(f"http://127.0.0.{needs.first_host}:{settings.agent_port}", size, settings, needs)
    print(banner.begins, flush=True)
    environ = _environment(size, settings, needs.first_host)
    for rank in range(size):
        if not asked:
            ranks.append(_start(rank, args, wrap, {**environ, **_of_rank(rank, needs.first_host)}))
    if asked:
        _stop(ranks)  # the last one may have been started as the signal came
    banner.watch()
    _prefix_all(ranks, banner)
    codes = [r.wait() for r in ranks]
    codes = [c if c >= 0 else 128 - c for c in codes]
    if asked and (not ranks or {128 + signal.SIGTERM} == {c for c in codes if c}):
        return 128 + asked[0]  # it came before a rank could heed it
    return next((c for c in codes if c), 0)


class Banner:
    """What a person who tries this out wants next: where the API is, a request to paste, and the status command."""

    def __init__(self, agent: str, size: int, settings: Settings, needs: Local) -> None:
        self._agent = agent
        self._settings = settings
        self._needs = needs
        self._ready: queue.SimpleQueue[str] = queue.SimpleQueue()
        count = f"{size} rank{'s' if size > 1 else ''}"
        self.begins = f"launcher local: starting {count}; {self._status} shows how far; Ctrl-C stops all"

    @property
    def _status(self) -> str:
        own = self._agent == f"http://127.0.0.1:{AGENT_PORT}"
        return "`launcher status" + ("`" if own else f" --url {self._agent}`")

    def watch(self) -> None:
        """Look in the background until the group serves."""
        threading.Thread(target=self._until_ready, name="banner", daemon=True).start()

    def due(self) -> str:
        """The banner, once it is due; empty before and after."""
        return "" if self._ready.empty() else self._ready.get()

    def _until_ready(self) -> None:
        from launcher.api import client

        while True:
            try:
                status = client.fetch(self._agent, self._settings.token_file)
            except client.NoAnswer:
                status = {}
            except LauncherError:
                return  # somebody else has this port: the ranks say so
            if status.get("ready"):
                self._ready.put(self._serves(status))
                return
            time.sleep(LOOK_EVERY)

    def _serves(self, status: Mapping[str, Any]) -> str:
        lines, api = ["launcher local: serving"], status.get("api_url")
        if isinstance(api, str):
            lines += [f"  API     {api}", f"  try     {self._request(api, status)}"]
        return "\n".join([*lines, f"  status  {self._status.strip('`')}", "  stop    Ctrl-C; again to stop at once"])

    def _request(self, api: str, status: Mapping[str, Any]) -> str:
        if not self._needs.completions:
            return f"curl -i {api}/"
        names = self._settings.served_model_name
        body = {"model": names[0] if names else status.get("model") or "", "prompt": "Hello,", "max_tokens": 16}
        data = shlex.quote(json.dumps(body))
        return f"curl {api}{self._needs.completions} -H 'Content-Type: application/json' -d {data}"


def _environment(size: int, settings: Settings, first: int) -> dict[str, str]:
    """What the ranks have in common."""
    environ = {k: v for k, v in os.environ.items() if k not in ("LAUNCHER_PEERS", "LAUNCHER_LEADER")}
    if "drain_settle" not in settings.origins:
        environ["LAUNCHER_DRAIN_SETTLE"] = NO_SETTLE  # no Service must hear first that this group is leaving
    return environ | {
        "LAUNCHER_SIZE": str(size),
        "LAUNCHER_LEADER": f"127.0.0.{first}",
        "LAUNCHER_GROUP_ID": os.environ.get("LAUNCHER_GROUP_ID", f"local/{os.getpid()}"),
        "LAUNCHER_TERMINATION_LOG": os.devnull,
    }


def _of_rank(rank: int, first: int) -> dict[str, str]:
    return {"LAUNCHER_RANK": str(rank), "LAUNCHER_ADDRESS": f"127.0.0.{first + rank}"}


def _start(rank: int, args: Sequence[str], wrap: list[str], environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
    command = [*wrap, reexec.python(), "-m", "launcher", "run", *args]
    # Each rank gets its own session, so that Ctrl-C reaches it only once, through this process.
    return subprocess.Popen(
        command,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_end_with(os.getpid()),  # noqa: PLW1509  # there is one thread
    )


def _end_with(parent: int) -> Callable[[], None]:
    """A hook for a rank: the kernel sends it SIGTERM if this process is killed, since nothing else would stop it."""
    prctl = ctypes.CDLL(None).prctl

    def bind() -> None:
        prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGTERM), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(127)

    return bind


def _stop(ranks: list[subprocess.Popen[bytes]]) -> None:
    """SIGTERM, which a launcher takes for Ctrl-C, and which ends one that has just been started without a word."""
    for rank in ranks:
        if rank.poll() is None:
            rank.send_signal(signal.SIGTERM)


def _prefix_all(ranks: list[subprocess.Popen[bytes]], banner: Banner) -> None:
    """Copy lines, with a prefix, until every rank has closed its output; the banner between them."""
    paint = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    out = sys.stdout.buffer
    with selectors.DefaultSelector() as selector:
        parts: dict[int, bytes] = {}
        for rank, process in enumerate(ranks):
            assert process.stdout is not None
            os.set_blocking(process.stdout.fileno(), False)
            selector.register(process.stdout, selectors.EVENT_READ, rank)
            parts[rank] = b""
        while selector.get_map():
            for key, _ in selector.select(LOOK_EVERY):
                stream: IO[bytes] = key.fileobj  # type: ignore[assignment]
                data: bytes | None = stream.read(1 << 16)
                rank = key.data
                if data is None:
                    continue
                *lines, parts[rank] = (parts[rank] + data).split(b"\n")
                if not data:
                    selector.unregister(stream)
                    lines += [parts[rank]] if parts[rank] else []
                for line in lines:
                    out.write(_mark(rank, paint) + line + b"\n")
            if text := banner.due():
                out.write(f"\n{text}\n\n".encode())
            out.flush()


def _mark(rank: int, paint: bool) -> bytes:
    text = f"[{rank}] "
    return (f"\x1b[{COLOURS[rank % len(COLOURS)]}m{text}\x1b[0m" if paint else text).encode()


def _own_shm(why: str) -> list[str]:
    """The wrapper command that gives each rank its own /dev/shm; empty without a reason for one."""
    if not why:
        return []
    wrap = [reexec.python(), "-m", "launcher.cli.private_shm", "--"]
    probe: Any = subprocess.run([*wrap, "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        raise ConfigError(
            f"each rank on this machine needs a /dev/shm of its own ({why}), "
            f"and this user may not mount one ({probe.stderr.strip()})",
            "run as root or where unprivileged user namespaces are allowed; or run the ranks in containers",
        )
    return wrap
