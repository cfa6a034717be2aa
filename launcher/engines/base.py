"""The contract between the launcher and an engine. An engine is a planner: a pure function from facts to a Plan.

An engine says which Python distributions tell its version, checks that the settings can work (topology with the numbers
in the error), and plans any rank. It starts nothing, opens nothing and imports none of the engine's own code. `launcher
plan` calls it for every rank with names in place of addresses; the agent calls it for its own rank with real ones.

To add an engine: one class with these members, registered by the entry point group ``launcher.engines``; or no Python
at all, see ``file/engine.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from launcher.model import Fingerprint, Identity, NodeFacts, Plan, Shared
from launcher.settings import Settings


@dataclass(frozen=True)
class PlanContext:
    """All that a plan depends on. Equal contexts give equal plans."""

    settings: Settings
    identity: Identity  #: of this pod; ``Engine.plan`` takes the rank apart, so that all ranks can be planned
    facts: NodeFacts
    shared: Shared  #: addresses by rank (IPs, or names in angle brackets for ``launcher plan``), epoch, token
    bind: str = "0.0.0.0"  #: where servers for callers outside listen by default; own loopback address under ``local``


@dataclass(frozen=True)
class Checked:
    """What an engine has to say about settings that can work."""

    why: tuple[str, ...] = ()  #: choices and their reasons ("backend mp: this interpreter has no ray")
    warnings: tuple[str, ...] = field(default=())


@runtime_checkable
class Engine(Protocol):
    """An engine that the launcher can start."""

    name: str
    summary: str  #: one line for ``launcher engines``

    def distributions(self, settings: Settings) -> tuple[str, ...]:
        """Distributions whose versions are asked of the engine's interpreter; empty: nothing is asked."""
        ...

    def interpreter(self, settings: Settings) -> str:
        """The Python that runs the engine (a name on PATH or a path)."""
        ...

    def check(self, settings: Settings, identity: Identity, facts: NodeFacts) -> Checked:
        """Refuse what cannot work, before anything starts.

        Raises:
            UsageError: an engine argument that the launcher owns, or that cannot be read.
            ConfigError: a topology, version or combination that cannot work; both values are in the message.
        """
        ...

    def plan(self, context: PlanContext, rank: int) -> Plan:
        """What ``rank`` will run. Every rank's plan has the same stage names in the same order."""
        ...

    def fingerprint(self, settings: Settings, facts: NodeFacts) -> Fingerprint:
        """The engine's part of what must be equal on all ranks (versions, arguments, topology)."""
        ...
