"""A whole group as real processes: N launchers with the reference engine, on loopback addresses of their own.

Every group gets its own /24 of 127.0.0.0/8 and its own ports, so tests run next to each other. The test process adopts
orphans (a child subreaper), so whatever a group leaves behind, renamed or in its own session, is found at the end.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from launcher.guard.children import adopt_orphans
from launcher.node.tree import Key, Proc, descendants, read, scan
from launcher.reference.tokens import expected_text

PATIENCE = 120.0  #: the machine is noisy: how long anything may take before a test calls it lost
POLL = 0.04  #: a look at the process table or at a page costs some milliseconds of the cores that the group needs
TICK = 1 / os.sysconf("SC_CLK_TCK")
LAUNCHER = Path(sys.executable).with_name("launcher")

APART: set[int] = set()  #: children of the test process whose trees belong to no group: a browser

T = TypeVar("T")


def until(what: str, true: Callable[[], T], patience: float = PATIENCE, words: Callable[[], str] = str) -> T:
    """Poll until ``true()`` is true; its value. ``words`` tells what was there instead."""
    end = time.monotonic() + patience
    while not (value := true()):
        if time.monotonic() > end:
            raise AssertionError(f"after {patience:g} s still not: {what}\n{words()}")
        time.sleep(POLL)
    return value


def seconds(event: Callable[[], object], what: str, patience: float = PATIENCE) -> float:
    """How long it takes until ``event()`` is true."""
    began = time.monotonic()
    until(what, event, patience)
    return time.monotonic() - began


@dataclass
class Answer:
    """An HTTP answer."""

    status: int
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


def fetch(host: str, port: int, path: str, body: object = None, timeout: float = 10.0, **headers: str) -> Answer:
    """GET, or POST a JSON body. Raises OSError when nobody answers."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        sent = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, sent, headers)
        response = connection.getresponse()
        return Answer(response.status, response.read())
    except http.client.HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from None
    finally:
        connection.close()


class Group:
    """N launchers. ``args`` are the launcher's options on every rank; what follows ``--`` is the engine's."""

    def __init__(
        self,
        folder: Path,
        size: int,
        *args: str,
        env: Mapping[str, str] | None = None,
        workers: int = 1,
        start: bool = True,
        group_id: str = "",
        nofile: tuple[int, int] | None = None,
    ) -> None:
        self.nofile = nofile  #: soft and hard limit of open files of the launchers
        chance = random.SystemRandom()
        self.folder, self.size, self.workers = folder, size, workers
        self.args, self.env, self.group_id = args, dict(env or {}), group_id
        self.prefix = f"127.{chance.randrange(16, 250)}.{chance.randrange(1, 250)}"
        self.addresses = [f"{self.prefix}.{rank + 1}" for rank in range(size)]
        base = chance.randrange(10000, 30000)
        self.port, self.agent_port, self.group_port, self.peer_port = base, base + 1, base + 2, base + 3
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.ended: list[subprocess.Popen[bytes]] = []  #: former launchers of ranks that were started again
        adopt_orphans()
        self._before = {p.key for p in descendants(os.getpid())}
        if start:
            self.start_all()

    # ------------------------------------------------------------------------------------------------- starting

    def command(self, rank: int, *more: str) -> list[str]:
        """The same command line on every rank."""
        own, dashes, engine = self._split(self.args)
        extra, more_dashes, more_engine = self._split(more)
        ports = ["--port", str(self.port), "--agent-port", str(self.agent_port), "--group-port", str(self.group_port)]
        fixed = ["run", "--engine", "reference", *ports, "--master-port", str(self.peer_port)]
        command = [str(LAUNCHER), *fixed, *own, *extra, *(dashes or more_dashes), *engine, *more_engine]
        if self.nofile is None:
            return command
        soft, hard = self.nofile
        return ["sh", "-c", f'ulimit -Sn {soft}; ulimit -Hn {hard}; exec "$@"', "sh", *command]

    @staticmethod
    def _split(args: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        at = args.index("--") if "--" in args else len(args)
        return args[:at], args[at : at + 1], args[at + 1 :]

    def environ(self, rank: int, size: int | None = None) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("LAUNCHER_", "REFERENCE_", "POD_"))}
        identity = {
            "LAUNCHER_RANK": str(rank),
            "LAUNCHER_SIZE": str(size or self.size),
            "LAUNCHER_LEADER": self.addresses[0],
            "LAUNCHER_ADDRESS": self.addresses[rank],
            "LAUNCHER_TERMINATION_LOG": str(self.termination_path(rank)),
            "LAUNCHER_GROUP_ID": self.group_id,
        }
        return {**clean, **identity, **self.env}

    def start(
        self,
        rank: int,
        *more: str,
        env: Mapping[str, str] | None = None,
        size: int | None = None,
        stdout: int | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start one rank's launcher; what it prints goes to its file, or to ``stdout``."""
        self.termination_path(rank).touch()
        with self.output_path(rank).open("ab") as output:
            process = subprocess.Popen(
                self.command(rank, *more),
                env={**self.environ(rank, size), **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=stdout if stdout is not None else output,
                stderr=stdout if stdout is not None else subprocess.STDOUT,
                start_new_session=True,
            )
        if rank in self.processes:
            self.ended.append(self.processes[rank])
        self.processes[rank] = process
        return process

    def start_all(self) -> None:
        for rank in range(self.size):
            self.start(rank)

    def restart(self, rank: int, *more: str, address: str = "", **options: Any) -> subprocess.Popen[bytes]:
        """A new launcher for a rank whose old one has ended; perhaps at another address of this machine."""
        assert self.processes[rank].poll() is not None, f"rank {rank} still runs"
        if address:
            self.addresses[rank] = address
        return self.start(rank, *more, **options)

    # ------------------------------------------------------------------------------------------------- what it says

    def output_path(self, rank: int) -> Path:
        return self.folder / f"rank{rank}.log"

    def termination_path(self, rank: int) -> Path:
        return self.folder / f"termination{rank}"

    def output(self, rank: int) -> str:
        return self.output_path(rank).read_text(errors="replace")

    def termination(self, rank: int) -> str:
        return self.termination_path(rank).read_text()

    def ask(self, rank: int, path: str, timeout: float = 5.0, **headers: str) -> Answer:
        """A page of the agent."""
        return fetch(self.addresses[rank], self.agent_port, path, timeout=timeout, **headers)

    def status(self, rank: int) -> dict[str, Any]:
        """/status, or nothing while nobody answers."""
        try:
            answer = self.ask(rank, "/status")
        except OSError:
            return {}
        return dict(json.loads(answer.body))

    def phase(self, rank: int) -> str:
        return str(self.status(rank).get("phase", "silent"))

    def epoch(self, rank: int = 0) -> int:
        return int(self.status(rank).get("epoch") or 0)

    def words(self) -> str:
        """Everything that a person would look at after a failure."""
        said = []
        for rank in sorted(self.processes):
            status = self.status(rank)
            shown = {k: status.get(k) for k in ("phase", "epoch", "why", "waiting_for", "restarts")}
            said.append(f"--- rank {rank}, exit code {self.processes[rank].poll()}, {shown}\n{self.output(rank)}")
        return "\n".join(said)

    # --------------------------------------------------------------------------------------------------- conditions

    def until(self, what: str, true: Callable[[], T], patience: float = PATIENCE) -> T:
        return until(what, true, patience, self.words)

    def until_phase(self, phase: str, *ranks: int, patience: float = PATIENCE) -> None:
        for rank in ranks or range(self.size):
            self.until(f"rank {rank} in phase {phase}", lambda r=rank: self.phase(r) == phase, patience)  # type: ignore[misc]

    def until_said(self, text: str, rank: int) -> None:
        """A page may tell of it a moment before the log does: what the launcher writes passes its guard's queue."""
        self.until(f"rank {rank} said {text!r}", lambda: text in self.output(rank))

    def serves(self, after: int = 0) -> bool:
        """All ranks are ready, in an epoch later than ``after``."""
        said = [self.status(rank) for rank in range(self.size)]
        return all(s.get("ready") and s["epoch"] > after for s in said) and len({s["epoch"] for s in said}) == 1

    def until_serving(self, after: int = 0, patience: float = PATIENCE) -> int:
        """Wait until the group serves, and see that it does; the epoch."""
        self.until(f"serving in an epoch after {after}", lambda: self.serves(after), patience)
        self.complete("is anybody there?", 5)
        return self.epoch()

    def complete(self, prompt: str, tokens: int = 8, timeout: float = 120.0) -> str:
        """Ask for tokens; the answer is right or the test fails."""
        answer = fetch(
            self.addresses[0], self.port, "/v1/completions", {"prompt": prompt, "max_tokens": tokens}, timeout
        )
        assert answer.status == 200, answer
        text = str(json.loads(answer.body)["choices"][0]["text"])
        assert text == expected_text(prompt, tokens, self.size, self.workers)
        return text

    def code(self, rank: int, patience: float = PATIENCE) -> int:
        """Wait for a launcher's end; its exit code as a shell would say it."""
        process = self.processes[rank]
        self.until(f"rank {rank} ends", lambda: process.poll() is not None, patience)
        return process.returncode if process.returncode >= 0 else 128 - process.returncode

    def codes(self, patience: float = PATIENCE) -> list[int]:
        return [self.code(rank, patience) for rank in sorted(self.processes)]

    # ----------------------------------------------------------------------------------------------------- processes

    def guard(self, rank: int) -> int:
        return self.processes[rank].pid

    def tree(self, rank: int) -> list[Proc]:
        return [p for p in descendants(self.guard(rank)) if not p.gone]

    def agent(self, rank: int) -> int:
        """The guard's first child: it has the guard's own command line."""
        own = _cmdline(self.guard(rank))
        found = [p.pid for p in self.tree(rank) if p.ppid == self.guard(rank) and _cmdline(p.pid) == own]
        assert len(found) == 1, (found, self.words())
        return found[0]

    def resident(self, rank: int) -> tuple[int, int]:
        """Memory of a rank's guard and agent, KiB."""
        return _resident(self.guard(rank)), _resident(self.agent(rank))

    def engine(self, rank: int) -> list[Proc]:
        """The engine's processes of a rank, the root first."""
        agent = self.agent(rank)
        return [p for p in self.tree(rank) if p.pid != agent]

    def root(self, rank: int) -> int:
        return self.engine(rank)[0].pid

    def worker(self, rank: int) -> int:
        """A child of the engine's root process."""
        engine = self.engine(rank)
        return next(p.pid for p in engine if p.ppid == engine[0].pid)

    def left(self) -> list[Proc]:
        """What lives of this group, launchers included."""
        found = descendants(os.getpid())
        parents = {p.pid: p.ppid for p in found}

        def apart(pid: int) -> bool:
            while pid in parents and pid not in APART:
                pid = parents[pid]
            return pid in APART

        return [p for p in found if not p.gone and p.key not in self._before and not apart(p.pid)]

    def engines(self) -> list[Proc]:
        """Engine processes of all ranks, orphans too."""
        shown = [(p, _cmdline(p.pid)) for p in self.left()]
        return [p for p, line in shown if line and str(LAUNCHER).encode() not in line]

    def kill_rank(self, rank: int) -> None:
        """The whole pod at once: guard, agent, engine."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.guard(rank), signal.SIGSTOP)  # else it may start a new agent between two kills
        victims = [*self.tree(rank), *(p for p in [read(self.guard(rank))] if p)]
        for one in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one.pid, signal.SIGKILL)
        self.processes[rank].wait(PATIENCE)

    def terminate(self, *ranks: int) -> None:
        for rank in ranks or sorted(self.processes):
            if self.processes[rank].poll() is None:
                self.processes[rank].send_signal(signal.SIGTERM)

    # --------------------------------------------------------------------------------------------------------- ends

    def close(self, left_over: bool = True) -> None:
        """End the group as a person would who is in a hurry (SIGTERM twice), and see that nothing is left of it."""
        for proc in self.left():
            if proc.stopped:
                os.kill(proc.pid, signal.SIGCONT)
        for _ in range(2):
            self.terminate()
            time.sleep(0.05)  # two SIGTERMs at once are one
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and any(p.poll() is None for p in self.processes.values()):
            time.sleep(POLL)
        late = [rank for rank, p in self.processes.items() if p.poll() is None]
        left = [(p.pid, p.comm, p.state, _cmdline(p.pid)[-300:]) for p in self.left()]
        self._kill_rest()
        assert not late, f"ranks {late} took no notice of two SIGTERMs\n{self.words()}"
        assert not left, f"left over: {left}\n{self.words()}"

    def _kill_rest(self) -> None:
        end = time.monotonic() + PATIENCE
        while (left := self.left()) and time.monotonic() < end:
            for proc in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(proc.pid, signal.SIGKILL)
            time.sleep(POLL)
        for process in (*self.processes.values(), *self.ended):
            process.wait(PATIENCE)
        self._reap_orphans()

    def _reap_orphans(self) -> None:
        """Zombies of processes that fell to us."""
        for proc in descendants(os.getpid()):
            if proc.ppid == os.getpid() and proc.gone and proc.key not in self._before:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(proc.pid, os.WNOHANG)


@dataclass
class Witness:
    """Watches a group's engine processes; afterwards it can tell whether two epochs ever ran at the same time."""

    group: Group
    started: dict[str, float] = field(default_factory=dict)  #: epoch -> when its first process started
    alive: dict[str, float] = field(default_factory=dict)  #: epoch -> when a process of it was last seen alive
    last: dict[str, Proc] = field(default_factory=dict)  #: epoch -> that process
    seen: dict[Key, str] = field(default_factory=dict)
    _sessions: dict[int, str] = field(default_factory=dict)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Witness:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(POLL):
            self.look()

    def look(self) -> None:
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        others = []
        living = [proc for proc in scan().procs.values() if not proc.gone]
        for proc in living:
            if proc.key not in self.seen:
                words = _cmdline(proc.pid).split(b"\0")
                mine = any(w.startswith(self.group.prefix.encode() + b".") for w in words)
                if not mine or b"--epoch-token" not in words:
                    others.append(proc)
                    continue
                token = words[words.index(b"--epoch-token") + 1].decode()
                self._take(read(proc.pid) or proc, token)  # anew: it may have been scanned before its setsid
            self.alive[self.seen[proc.key]], self.last[self.seen[proc.key]] = now, proc
        for proc in others:  # workers have renamed themselves; their session tells
            if proc.session in self._sessions:
                self._take(proc, self._sessions[proc.session])
                self.alive[self.seen[proc.key]], self.last[self.seen[proc.key]] = now, proc
        # A session whose last member has ended can't come back, but its number can: pids are used again.
        alive = {proc.session for proc in living}
        self._sessions = {number: token for number, token in self._sessions.items() if number in alive}

    def _take(self, proc: Proc, token: str) -> None:
        self.seen[proc.key] = token
        self._sessions.setdefault(proc.session, token)
        start = proc.start_time * TICK
        self.started[token] = min(start, self.started.get(token, start))
        self.alive.setdefault(token, 0.0)

    def check(self) -> None:
        """All processes of an epoch were gone before the first of the next one started."""
        order = sorted(self.started, key=lambda token: self.started[token])
        for i, later in enumerate(order):
            for earlier in order[:i]:
                overlap = self.alive[earlier] - (self.started[later] + TICK)
                words = f"epoch {earlier} was alive {overlap:.3f} s after the start of epoch {later}"
                assert overlap < 0, f"{words}, last seen: {self.last[earlier]}"


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _resident(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None, f"process {pid} is ending"
    return int(found[1])


@contextlib.contextmanager
def running(folder: Path, size: int, *args: str, **options: Any) -> Iterator[Group]:
    """A group for the length of a block; closed, and held to leaving nothing, at its end."""
    group = Group(folder, size, *args, **options)
    try:
        yield group
    except BaseException:
        print(group.words())
        with contextlib.suppress(AssertionError):
            group.close()
        raise
    group.close()
