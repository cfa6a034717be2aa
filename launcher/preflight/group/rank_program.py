"""What a rank runs in each stage of `launcher doctor --group`: listen, check, collective, report.

Every stage exits with 0 whatever it finds: it posts its findings to the leader, and only the report judges.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.cli import sources
from launcher.cli.options import DOCTOR
from launcher.engines.base import Engine
from launcher.planning import variables
from launcher.preflight import doctor
from launcher.preflight.checks import run
from launcher.preflight.checks.registry import CHECKS
from launcher.preflight.finding import Finding, fail, ok, skipped, warn
from launcher.preflight.group import engine as group
from launcher.preflight.group import exchange, report
from launcher.preflight.pod import Node
from launcher.settings import PORTS, flag_of

INSIDE = str(Path(__file__).with_name("collective_program.py"))
RESULT = "COLLECTIVE "  #: as in collective_program.py
SKEW_WARN = 1.0  #: seconds
REPORT_SECONDS = 40.0


@dataclass(frozen=True)
class Order:
    """This process's instructions from the engine's plan."""

    rank: int
    addresses: tuple[str, ...]
    port: int
    args: tuple[str, ...]
    json: bool
    collective: bool
    verdict: str
    warnings: tuple[str, ...]
    given: frozenset[str]
    token: str

    @property
    def own(self) -> str:
        return self.addresses[self.rank]

    def ask(self, question: dict[str, Any], seconds: float = exchange.SECONDS) -> Any:
        """Send a request to the leader. Raises ExchangeError."""
        return exchange.ask(self.addresses[0], self.port, self.token, question, seconds)

    def post(self, kind: str, body: Any) -> None:
        self.ask({"is": "post", "kind": kind, "rank": self.rank, "body": body}, seconds=15.0)


def order_of(environ: dict[str, str]) -> Order:
    order = json.loads(environ[group.VARIABLE])
    for name in ("addresses", "args", "warnings"):
        order[name] = tuple(order[name])
    return Order(**{**order, "given": frozenset(order["given"])}, token=environ.get(group.TOKEN, ""))


def main(argv: list[str]) -> int:
    if group.VARIABLE not in os.environ or argv[:1] not in (["listen"], ["check"], ["collective"], ["report"]):
        sys.stderr.write("this is a part of `launcher doctor --group`\n")
        return 64
    order = order_of(dict(os.environ))
    try:
        {"listen": listen, "check": check, "collective": collective, "report": report_all}[argv[0]](order)
    except exchange.ExchangeError as error:
        where = f"rank 0 at {order.addresses[0]} port {order.port}"
        sys.stderr.write(f"launcher doctor: rank {order.rank} cannot reach {where}: {error}\n")
        sys.stderr.write(
            "  fix: give rank 0 an --address that the other pods reach, and allow all ports between them\n"
        )
        return 1
    return 0


# ------------------------------------------------------------------------------------------------ listen (leader)


def listen(order: Order) -> None:
    """Serve the board, and listen on the ports that the engine will use, until SIGTERM."""
    node, _, _ = _learned(order)
    wanted = {p.number: p.name for p in node.plan.ports} if node.plan else {}
    wanted.pop(order.port, None)
    held, busy = [], []
    for number, name in sorted(wanted.items()):
        try:
            held.append(_accept_all(order.own, number))
        except OSError as error:
            busy.append((number, name, error.strerror or str(error)))
    board = exchange.Board(order.token, [order.port, *(s.getsockname()[1] for s in held)])
    findings = [
        fail(
            "ports",
            f"port {number} ({name}) is not available: {why}",
            "the engine cannot listen there",
            f"end what holds it (`ss -ltnp`), or choose another with one of {', '.join(map(flag_of, PORTS))}",
        )
        for number, name, why in busy
    ]
    if not busy:
        findings.append(ok("ports", "free: " + ", ".join(map(str, board.ports))))
    board.answer({"is": "post", "kind": "listen", "rank": 0, "body": [f.as_object() for f in findings]})
    server = exchange.BoardServer(order.own, order.port, board)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    server.close()


def _accept_all(address: str, port: int) -> socket.socket:
    """A listener that accepts connections and closes them at once."""
    listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(64)
    except OSError:
        listener.close()
        raise

    def serve() -> None:
        while True:
            try:
                listener.accept()[0].close()
            except OSError:
                return

    threading.Thread(target=serve, name=f"port {port}", daemon=True).start()
    return listener


# ------------------------------------------------------------------------------------------------------ check (all)


def check(order: Order) -> None:
    """Run this pod's own checks, then check its path to the leader and back."""
    node, findings, engine = _learned(order)
    taken = ("ports",) if order.rank == 0 else ()  # `listen` occupies the leader's
    chosen = [one for one in CHECKS if one.in_group and one.name not in taken]
    found = [*findings, *run.run(node, chosen)]
    found += [warn("settings", text, "", "") for text in order.warnings]
    measured: dict[str, Any] = {}
    if order.rank:
        found += reach(order, node, measured)
    name = node.identity.name if node.identity else socket.gethostname()
    own = report.post_of(name, order.own, found, node.network.facts if node.network else {})
    order.post("check", {**own, "variables": variables.as_objects(doctor.variables_of(engine, node)), **measured})


def reach(order: Order, node: Node, measured: dict[str, Any]) -> list[Finding]:
    """Check clock, path MTU and ports from this worker to the leader, and from the leader back."""
    leader, found = order.addresses[0], []
    try:
        skew, sure = exchange.clock_skew(leader, order.port, order.token)
        ports = [int(p) for p in order.ask({"is": "ports"})]
    except exchange.ExchangeError as error:
        return [_blocked(f"{leader} port {order.port}: {error}")]
    measured["clock_ms"] = round(skew * 1000, 2)
    found.append(judge_clock(skew, sure))
    closed = {port: why for port in ports if (why := _connects(leader, port))}
    if closed:
        shown = ", ".join(f"{port}: {said}" for port, said in closed.items())
        found.append(_blocked(f"the leader {leader} cannot be reached from here on {shown}"))
    else:
        found.append(ok("to leader", f"{leader} answers on {', '.join(map(str, ports))}"))
    found.append(_back(order))
    largest = int(node.network.facts.get("mtu", "0") or 0) if node.network else 0
    # A loopback packet of 64 KiB proves nothing.
    mtu = exchange.path_mtu(leader, order.port, min(largest, 9216)) if 0 < largest < 65536 else None
    if mtu is not None:
        measured["path_mtu"] = mtu
    found.append(judge_mtu(mtu, largest))
    return found


def judge_clock(skew: float, sure: float) -> Finding:
    what = f"{abs(skew) * 1000:.3g} ms {'behind' if skew > 0 else 'ahead of'} the leader (+- {sure * 1000:.2g} ms)"
    if abs(skew) < SKEW_WARN:
        return ok("clock", what)
    return warn("clock", what, "logs cannot be put in order, and tokens with a time are refused", "run NTP on the node")


def judge_mtu(mtu: int | None, largest: int) -> Finding:
    """``mtu``: what reaches the leader (0: only small packets, None: unknown). ``largest``: this pod's MTU."""
    if not largest or largest >= 65536:
        return skipped("path mtu", "no network interface between these pods")
    if mtu is None:
        return skipped("path mtu", "UDP does not pass between the pods (a NetworkPolicy for TCP only?)")
    if mtu >= largest:
        return ok("path mtu", f"packets of {mtu} bytes arrive whole")
    arrive = f"packets of {mtu} bytes do" if mtu else "only small ones do"
    return fail(
        "path mtu",
        f"the interface sends packets of {largest} bytes, and those do not arrive: {arrive}",
        "connections open and then hang as soon as much is sent (a large tensor, weights)",
        f"set the MTU of the pod network to {mtu or 1280} (the CNI's setting), or mend the path",
    )


def _back(order: Order) -> Finding:
    """Let the leader connect to a random port of this pod, as engines do."""
    try:
        listener = _accept_all(order.own, 0)
    except OSError as error:
        return fail("from leader", f"no port can be opened on {order.own}: {error.strerror}", "", "")
    with listener:
        port = listener.getsockname()[1]
        try:
            trouble = str(order.ask({"is": "back", "address": order.own, "port": port}))
        except exchange.ExchangeError as error:
            trouble = str(error)
    if trouble:
        return _blocked(f"the leader cannot reach this pod on {order.own} port {port}: {trouble}", "from leader")
    return ok("from leader", f"the leader reaches {order.own} port {port} (a random one)")


def _blocked(what: str, check: str = "to leader") -> Finding:
    return fail(
        check,
        what,
        "engines open random ports on every pod: one that is closed is a hang at the first collective",
        "allow all ports between the pods of the group in the NetworkPolicy (podSelector on both sides)",
    )


def _connects(address: str, port: int) -> str:
    try:
        socket.create_connection((address, port), exchange.BACK_SECONDS).close()
    except OSError as error:
        return "no answer" if isinstance(error, TimeoutError) else error.strerror or str(error)
    return ""


# ------------------------------------------------------------------------------------------------- collective (all)


def collective(order: Order) -> None:
    """Run the all-reduce in the engine's interpreter, with this process's whole environment."""
    node, _, engine = _learned(order)
    python = engine.interpreter(node.settings) if engine is not None else "python3"
    if not node.facts.versions.get("torch"):
        why = f"{python} has no torch: nothing to run"
        order.post("collective", {"findings": [skipped("collective", why).as_object()]})
        return
    gpus = node.facts.gpus or 0
    port = _port(order)
    backend = "nccl" if gpus else "gloo"
    argv = [python, INSIDE, "--rank", str(order.rank), "--pods", str(len(order.addresses)), "--local", str(gpus or 1)]
    argv += ["--master", order.addresses[0], str(port), "--backend", backend]
    outcome = run_collective(argv, group.COLLECTIVE_SECONDS)
    order.post("collective", outcome)


def run_collective(argv: list[str], seconds: float) -> dict[str, Any]:
    """Run the program; return findings, and on rank 0 the result that it printed."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds, check=False)
        code, output, errors = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired:
        code, output, errors = 124, "", f"no end within {seconds:g} s"
    except OSError as error:
        code, output, errors = 127, "", error.strerror or str(error)
    if code:
        lines = [line.strip() for line in (errors or output).splitlines() if line.strip()]
        finding = fail(
            "collective",
            f"the all-reduce failed (exit code {code}): {lines[-1][:400] if lines else 'it said nothing'}",
            "the engine's own collectives will fail alike",
            "see `to leader`, `from leader` and the variables NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME and NCCL_IB_*; "
            "NCCL_DEBUG=INFO in the environment says more",
        )
        return {"findings": [finding.as_object()], "tail": lines[-10:]}
    line = next((x for x in output.splitlines() if x.startswith(RESULT)), "")
    return {"findings": [], "result": json.loads(line[len(RESULT) :])} if line else {"findings": []}


def _port(order: Order) -> int:
    """A free port on the leader, which chooses it for all ranks."""
    if order.rank == 0:
        with socket.socket(socket.AF_INET6 if ":" in order.own else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((order.own, 0))
            port = int(probe.getsockname()[1])
        order.post("collective-port", port)
        return port
    return int(_posted(order, "collective-port", 30.0)["0"])


def _posted(order: Order, kind: str, seconds: float) -> dict[str, Any]:
    """Wait for posts of one kind and return them by rank. Raises ExchangeError."""
    deadline = time.monotonic() + seconds
    while True:
        found = order.ask({"is": "all"}).get(kind)
        if found:
            return dict(found)
        if time.monotonic() > deadline:
            raise exchange.ExchangeError(f"the leader posted no {kind} within {seconds:g} s")
        time.sleep(0.1)


# ----------------------------------------------------------------------------------------------------- report (all)


def report_all(order: Order) -> None:
    """The leader judges and prints; the others learn the verdict. All write it down for the exit code."""
    if order.rank == 0:
        page = report.page(order.ask({"is": "all"}), len(order.addresses))
        order.post("verdict", "fit" if page["ok"] else "not fit")
        sys.stdout.write((json.dumps(page, indent=2) if order.json else report.as_text(page)) + "\n")
        sys.stdout.flush()
        word = "fit" if page["ok"] else "not fit"
    else:
        word = str(_posted(order, "verdict", REPORT_SECONDS).get("0"))
        sys.stderr.write(f"launcher doctor: the group is {word}; rank 0 prints what was found\n")
    Path(order.verdict).write_text(word)


# ------------------------------------------------------------------------------------------------- what is learned


def _learned(order: Order) -> tuple[Node, tuple[Finding, ...], Engine | None]:
    """This pod as the user's settings describe it, without the variables that the launcher added."""
    settings, environ, _ = sources.parse(order.args, os.environ, more=DOCTOR)
    if settings.address is None and not environ.get("POD_IP"):
        settings = settings.replace(address=order.own)  # the address that the group uses
    environ = {k: v for k, v in environ.items() if k in order.given and k != group.ORDER}
    node, findings, engine = asyncio.run(doctor.learn(settings, environ, environ))
    # The agent, our parent, listens on its own ports: no conflict.
    return replace(node, agent=True, running=False), findings, engine


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
