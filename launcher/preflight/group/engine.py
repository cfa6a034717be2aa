"""`launcher doctor --group`: the group forms as for the engine, over the same link, and runs checks in its place.

Agent, coordinator and guard are those of a run; only the engine differs: its stages are checks, and once all are done
on all ranks the launcher exits. So the checks run where the engine would run, started the way the engine would be.
Each stage runs `rank_program.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.common.addresses import host_port
from launcher.engines.base import Checked, Engine, PlanContext
from launcher.errors import ConfigError, UnavailableError, UsageError
from launcher.model import Fingerprint, Gate, Identity, NodeFacts, Plan, Process, Stage
from launcher.node import reexec
from launcher.planning import own_ports
from launcher.settings import Settings

NAME = "doctor"
VARIABLE = "LAUNCHER_DOCTOR"  #: the order for `rank_program.py`, as JSON
TOKEN = "LAUNCHER_DOCTOR_TOKEN"
ORDER = "LAUNCHER_DOCTOR_ORDER"  #: from the command to the engine: args, json, collective, where the verdict goes
PORT = 29501
CHECK_SECONDS = 90.0
COLLECTIVE_SECONDS = 300.0


class DoctorEngine(Engine):
    """Plans checks in place of an engine. Only `launcher doctor --group` uses it."""

    name = NAME
    summary = "the checks of `launcher doctor --group`"
    epoch_token = True  # authenticates the ranks' reports

    def interpreter(self, settings: Settings) -> str:
        return settings.python or sys.executable

    def check(self, settings: Settings, identity: Identity, facts: NodeFacts) -> Checked:
        if ORDER not in os.environ:
            raise UsageError("--engine doctor is no engine", "run `launcher doctor --group` with the options of a run")
        return Checked()

    def plan(self, context: PlanContext, rank: int) -> Plan:
        order = json.loads(os.environ[ORDER])
        shared = context.shared
        told = {
            **order,
            "rank": rank,
            "addresses": shared.addresses,
            "port": context.settings.master_port or PORT,
            "given": sorted(os.environ),
        }
        env = {VARIABLE: json.dumps(told), TOKEN: shared.token}
        stages = [
            Stage("listen", (_process("listen", env, _listens(told)),) if rank == 0 else (), 30.0),
            Stage("checks", (_process("check", env),), CHECK_SECONDS, "a check hangs: see the last lines"),
        ]
        if order["collective"]:
            stages.append(Stage("collective", (_process("collective", env),), COLLECTIVE_SECONDS + 30))
        stages.append(Stage("report", (_process("report", env),), 60.0))
        return Plan(rank=rank, stages=tuple(stages), completes=True)

    def fingerprint(self, settings: Settings, facts: NodeFacts) -> Fingerprint:
        return {"engine": NAME, "doctor": "collective" if json.loads(os.environ[ORDER])["collective"] else "group"}


def settings_for(settings: Settings) -> Settings:
    """The settings of the checking run: no engine, no restarts, nothing to drain."""
    return settings.replace(
        engine=NAME,
        engine_file=None,
        model=None,
        engine_args=(),
        handoff=False,
        require_same_revision=False,
        preflight="off",
        max_restarts=0,
        drain_settle=0.0,
        state_dir=None,
        startup_timeout=None,
        termination_log=os.devnull,
    )


def run(
    start: Callable[[Settings, Mapping[str, str], Sequence[str]], int],
    settings: Settings,
    environ: Mapping[str, str],
    warnings: tuple[str, ...],
    args: list[str],
    as_json: bool,
    collective: bool,
) -> int:
    """Form the group with ``start``, check it, print on the leader. 0: the group is fit, 1: some check failed.

    If a launcher already runs in this pod, print what its group found at its start instead.
    """
    from launcher.network import probe

    here = host_port(own_ports.listen_host(settings) or "127.0.0.1", settings.agent_port)
    if asyncio.run(probe.reachable(here, 1.0)):
        return _of_the_running(settings, here, as_json, collective)
    with tempfile.TemporaryDirectory(prefix="launcher-doctor-") as folder:
        verdict = Path(folder) / "verdict"
        order = {"args": args, "json": as_json, "collective": collective, "verdict": str(verdict)}
        os.environ[ORDER] = json.dumps({**order, "warnings": warnings})
        code = start(settings_for(settings), environ, warnings)
        if code:
            return code
        return 0 if verdict.exists() and verdict.read_text() == "fit" else 1


def _listens(told: Mapping[str, Any]) -> Gate:
    return Gate("tcp", host_port(told["addresses"][0], told["port"]))


def _of_the_running(settings: Settings, here: str, as_json: bool, collective: bool) -> int:
    """What the launchers of the running group found when they started, from the leader's /status."""
    from launcher.api import client
    from launcher.preflight.group import report

    if collective:
        raise ConfigError(
            f"--collective: a launcher runs in this pod (port {settings.agent_port}), and its engine has the devices",
            "run it in place of the engine: `doctor --collective` before the pod's args",
        )
    status = client.fetch(f"http://{here}", settings.token_file)
    if status.get("rank") != 0:
        leader = str(next((m["address"] for m in status.get("members", []) if m.get("rank") == 0), ""))
        status = client.fetch(f"http://{host_port(leader, settings.agent_port)}", settings.token_file)
    members = [m for m in status.get("members") or () if isinstance(m, dict)]
    if "note" in status and not any(m.get("facts") for m in members):
        raise UnavailableError(
            f"the leader does not show what the preflight found on the pods, if it ran: {status['note']}",
            "run it in rank 0's pod, or give --token-file",
        )
    page = report.of_status(status)
    print(json.dumps(page, indent=2) if as_json else report.as_text(page))
    return 0 if page["ok"] else 1


def _process(what: str, env: Mapping[str, str], gate: Gate | None = None) -> Process:
    return Process(
        name=f"doctor-{what}",
        argv=(reexec.python(), "-m", "launcher.preflight.group.rank_program", what),
        env=env,
        secret_env=frozenset({TOKEN}),
        gate=gate or Gate("exited"),
    )
