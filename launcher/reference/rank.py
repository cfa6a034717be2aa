"""The main process of a rank: takes the port, forks the workers, watches them, and exits in an orderly way."""

from __future__ import annotations

import os
import signal
import socket
from functools import partial
from time import monotonic

from launcher.reference.chain import Worker, listen, receive, start
from launcher.reference.faults import Faults
from launcher.reference.options import Options
from launcher.reference.process import end, log
from launcher.reference.reactor import READ, Reactor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

LAST_WAIT = 0.5  #: seconds before workers that have not exited are killed


class Rank:
    """A rank's main process. Ranks above 0 use this class as it is; rank 0 is ``leader.Leader``."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.reactor = Reactor()
        self.began = monotonic()
        self.serving = False
        self.farewell = False  #: rank 0 has announced a clean shutdown
        self.lives: list[socket.socket] = []
        self.pids: list[int] = []
        self.said = [bytearray() for _ in range(options.workers)]
        self.peers = self.listen(options.peers[options.rank], options.peer_port) if options.size > 1 else None

    # ------------------------------------------------------------------------------------- the life of a rank

    def run(self) -> NoReturn:
        """Start, then serve until the process exits."""
        self.fork()
        self.faults = Faults(self.options, self.reactor, self.pids)
        for number in (signal.SIGTERM, signal.SIGINT):
            self.reactor.on_signal(number, self.terminated)
        for place, life in enumerate(self.lives):
            self.reactor.watch(life.fileno(), READ, partial(self._heard, place))
        o = self.options
        self.log(
            f"started, size {o.size}, {o.workers} worker{'s' * (o.workers != 1)}, epoch {o.epoch_token or '-'}, "
            f"address {o.peers[o.rank]}, port between ranks {o.peer_port}"
        )
        self.faults.started()
        self._starting()
        if o.join_seconds:
            self.reactor.after(o.join_seconds, self._joined)
        self.started()
        while True:
            self.reactor.turn()

    def fork(self) -> None:
        """Fork the workers, each with a socket to the next one."""
        self._fork(source=None, listener=self.peers, target=None)
        if self.peers is not None:
            self.peers.close()

    def _fork(self, source: socket.socket | None, listener: socket.socket | None, target: socket.socket | None) -> None:
        o = self.options
        row = [socket.socketpair() for _ in range(o.workers - 1)]
        for place in range(o.workers):
            ours, theirs = socket.socketpair()
            first, last = place == 0, place == o.workers - 1
            worker = Worker(
                o,
                o.rank * o.workers + place,
                theirs,
                source=source if first else row[place - 1][1],
                listener=listener if first else None,
                target=target if last else row[place][0],
            )
            mine = {worker.life, worker.source, worker.listener, worker.target}
            kept = [ours, *self.lives, *self.leaders_own()]
            kept += [s for s in (source, listener, target, *(s for pair in row for s in pair)) if s not in mine and s]
            self.pids.append(start(worker, f"reference: worker {place}", kept))
            theirs.close()
            ours.setblocking(False)
            self.lives.append(ours)
        for sock in (source, target, *(s for pair in row for s in pair)):
            if sock is not None:
                sock.close()

    def finish(self, code: int) -> NoReturn:
        """Stop the workers, then exit."""
        for life in self.lives:
            life.close()
        deadline = monotonic() + LAST_WAIT
        left = list(self.pids)
        while left and monotonic() < deadline:
            left = [pid for pid in left if _running(pid)]
            if left:
                signal.sigtimedwait([signal.SIGCHLD], 0.005)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        end(code)

    def listen(self, host: str, port: int, backlog: int = 64) -> socket.socket:
        """A listening socket, bound before anything starts, so that a port in use is reported at once."""
        try:
            return listen(host, port, backlog)
        except OSError as error:
            self.log(f"cannot listen on {host} port {port}: {error.strerror}")
            end(1)

    def log(self, line: str) -> None:
        log(self.options.rank, line)

    # ------------------------------------------------------------------------- what rank 0 overrides

    def leaders_own(self) -> list[socket.socket]:
        """Sockets that workers must close."""
        return []

    def started(self) -> None:
        """Called once, before the loop."""

    def passed(self) -> None:
        """Called when the first frame reaches this rank's workers."""
        self.serve_now()

    def ready(self) -> None:
        """Called once, when the chain is complete."""

    def broken(self, why: str) -> None:
        """A batch cannot be forwarded, or a process of this rank is gone."""
        self.log(why)
        self.finish(1)

    def lost(self, why: str) -> None:
        """A neighbour in the chain is gone."""
        if self.farewell:
            self.log("rank 0 has ended in good order")
            self.finish(0)
        if self.options.on_peer_loss == "exit":
            self.broken(why)

    def terminated(self) -> None:
        """Handle SIGTERM."""
        if not (self.options.ignore_term and self.options.faulty):
            self.log("terminated")
            self.finish(0)

    # ------------------------------------------------------------------------------------------- the workers

    def _heard(self, place: int, _events: int) -> None:
        data = receive(self.lives[place], 1 << 12)
        if data is None:
            return
        if not data:
            self.reactor.unwatch(self.lives[place].fileno())
            self.broken(f"worker {place} (process {self.pids[place]}) {_ending(self.pids.pop(place))}")
            return
        self.said[place] += data
        *lines, rest = self.said[place].split(b"\n")
        self.said[place] = bytearray(rest)
        for line in lines:
            self._told(line.decode())

    def _told(self, line: str) -> None:
        if line == "bye":
            self.farewell = True
        elif line == "serving":
            self.passed()
        elif line.startswith("lost"):
            self.lost(line)
        elif self.options.on_peer_loss != "hang":
            self.broken(line)

    def serve_now(self) -> None:
        """The chain is complete, as far as this rank can tell."""
        if not self.serving:
            self.serving = True
            self.log(f"the chain is whole after {monotonic() - self.began:.2f} s")
            self.faults.serving()
            self.ready()

    def _starting(self) -> None:
        passed = monotonic() - self.began
        o = self.options
        if passed < o.startup_seconds and not o.startup_quiet:
            self.log(f"loading, {passed:.0f} of {o.startup_seconds:g} s")
            self.reactor.after(1.0, self._starting)

    def _joined(self) -> None:
        if not self.serving:
            self.broken(f"the chain of {self.options.size} ranks was not whole after {self.options.join_seconds:g} s")


def _running(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == 0
    except ChildProcessError:
        return False


def _ending(pid: int) -> str:
    try:
        status = os.waitpid(pid, 0)[1]
    except ChildProcessError:
        return "is gone"
    code = os.waitstatus_to_exitcode(status)
    return f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
