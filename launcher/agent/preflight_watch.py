"""The preflight checks at startup: findings on this pod, and how the group's pods differ.

They only warn, and keep no engine from starting. What is slow to import is imported when it is used.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from launcher.log import Log
from launcher.model import Identity, NodeFacts, Plan
from launcher.planning.pod_network import Network
from launcher.settings import Settings

if TYPE_CHECKING:
    from launcher.preflight.finding import Finding

AFTER = 1.0  #: seconds; in a pod that is alone the engine's start goes first


class PreflightWatch:
    """One pod's view. With ``--preflight off`` it only compares the pods."""

    def __init__(self, settings: Settings, identity: Identity, environ: Mapping[str, str], log: Log) -> None:
        self._settings = settings
        self._identity = identity
        self._environ = environ
        self._log = log
        self._on = settings.preflight == "on"
        self._logged: tuple[str, ...] = ()
        self.findings: tuple[Finding, ...] = ()  #: about this pod
        self.differences: tuple[Finding, ...] = ()  #: between the pods, on the leader

    def warm_up(self) -> None:
        """Import the checks in a thread, while the agent waits for something else."""
        if self._on and not self._identity.alone:
            asyncio.get_running_loop().run_in_executor(None, importlib.import_module, "launcher.preflight.at_start")

    async def preflight(self, facts: NodeFacts, outline: Plan, network: Network | None) -> dict[str, str]:
        """Check this pod for at most 2 s, and return the facts for its hello. A pod that is alone waits for nothing."""
        if not self._on:
            return {}
        if self._identity.alone:
            await asyncio.sleep(AFTER)
        from launcher.preflight import at_start
        from launcher.preflight.pod import Node

        node = Node(self._settings, self._environ, os.environ, self._identity, facts, outline, network, agent=True)
        self.findings = await at_start.examine(node)
        at_start.tell(self.findings, self._log)
        return at_start.as_facts(self.findings, network.facts if network else {})

    def compare(self, facts: Mapping[int, Mapping[str, str]]) -> None:
        """Compare the facts of all hellos, by rank. Logged when the result changes."""
        from launcher.preflight.group import compare

        self.differences = compare.odd_ones(facts)
        for f in self.differences:
            if f.what not in self._logged:
                self._log(f"the pods differ: {f.what}", {"why": f.why, "fix": f.fix}, "warning")
        self._logged = tuple(f.what for f in self.differences)
