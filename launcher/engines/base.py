"""The contract between the launcher and an engine: an engine is a planner, a pure function from facts to a Plan.

An engine checks that the settings can work (with the numbers in the error) and plans any rank. It starts nothing, opens
nothing and imports none of the engine's own code. `launcher plan` calls it for every rank with names in place of
addresses; the agent calls it for its own rank with real addresses.

All that the rest of the launcher knows of an engine is a member of ``Engine``. Only ``name`` and ``plan`` have no
default. To add an engine, write a subclass and register it as an entry point of the group ``launcher.engines``
(docs/plugins.md), or write an engine file, which needs no Python (docs/engine-file.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from launcher.engines.arguments import Owned, last, refuse_owned
from launcher.engines.fingerprint import fingerprint
from launcher.model import EMPTY, Fingerprint, Identity, NodeFacts, Plan, Shared
from launcher.settings import Settings

#: Values of --load-format, the same in several engines, that read no weight files from the model's folder.
_WEIGHTS_FROM_ELSEWHERE = (
    *("dummy", "runai_streamer", "runai_streamer_sharded", "tensorizer", "ipc_cache", "remote", "remote_instance"),
)


@dataclass(frozen=True)
class PlanContext:
    """All that a plan depends on. Equal contexts give equal plans."""

    settings: Settings
    identity: Identity  #: of this pod; ``Engine.plan`` takes the rank separately, so that all ranks can be planned
    facts: NodeFacts
    shared: Shared  #: addresses by rank (IPs, or names in angle brackets for ``launcher plan``), epoch, token
    bind: str = "0.0.0.0"  #: where servers for outside callers listen; under ``local`` the rank's loopback address
    environ: Mapping[str, str] = field(default_factory=lambda: EMPTY)  #: the engine's own, as the user and image set it


@dataclass(frozen=True)
class Checked:
    """What an engine says about settings that can work."""

    why: tuple[str, ...] = ()  #: choices and their reasons ("backend mp: this interpreter has no ray")
    warnings: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Requirements:
    """What the engine needs of a pod, for `doctor` and `render`."""

    torch: bool = False  #: it runs on torch: it wants GPUs, a model and room for the caches of torch and the hub
    weight_files: bool = True  #: it reads weight files from a local --model
    folders: Mapping[str, str] = field(default_factory=lambda: EMPTY)  #: more folders it writes to: purpose -> path


@dataclass(frozen=True)
class Local:
    """How the ranks of a group share one machine under ``launcher local``."""

    first_host: int = 1  #: rank r has 127.0.0.(first_host + r)
    private_shm: str = ""  #: why each rank needs a /dev/shm of its own; empty: it does not
    completions: str = ""  #: path of the API that takes OpenAI's completion requests; empty: it has none


class Engine(ABC):
    """An engine that the launcher can start."""

    name: str
    summary: str = ""  #: one line for ``launcher engines``
    #: The engine's options that the launcher sets: refused after ``--``, and translated where they stand before it.
    owned: tuple[Owned, ...] = ()
    #: The engine's option for a number that a user puts behind a flag of ours: {"--ep": "--ep-size"}.
    numbered: Mapping[str, str] = EMPTY
    #: Repositories of images whose release tags are the engine's version: ("vllm/vllm-openai",).
    images: tuple[str, ...] = ()
    #: Prefixes of the variables that the engine reads: `plan` and `doctor` show those that are set.
    variable_prefixes: tuple[str, ...] = ()
    #: Why the plan sets or unsets a variable: name -> reason.
    variable_reasons: Mapping[str, str] = EMPTY
    #: Patterns of functions, besides collectives, in which a process waits for other ranks: for an autopsy.
    waits: tuple[str, ...] = ()
    #: Whether ``PlanContext.shared.token`` is a secret of this epoch, the same on all ranks; else it is empty.
    epoch_token: bool = False

    def distributions(self, settings: Settings) -> tuple[str, ...]:
        """Distributions whose versions are asked of the interpreter, the engine's own first; empty: none is asked."""
        return ()

    def interpreter(self, settings: Settings) -> str:
        """The Python that runs the engine (a name on PATH or a path)."""
        return settings.python or "python3"

    def check(self, settings: Settings, identity: Identity, facts: NodeFacts) -> Checked:
        """Refuse what cannot work, before anything starts.

        Raises:
            UsageError: an engine argument that the launcher owns, or that cannot be read.
            ConfigError: a topology, version or combination that cannot work; both values are in the message.
        """
        refuse_owned(settings.engine_args, self.owned, settings)
        return Checked()

    @abstractmethod
    def plan(self, context: PlanContext, rank: int) -> Plan:
        """What ``rank`` will run. Every rank's plan has the same stage names in the same order."""

    def fingerprint(self, settings: Settings, facts: NodeFacts) -> Fingerprint:
        """The engine's part of what must be equal on all ranks (versions, arguments, topology)."""
        own = next(iter(self.distributions(settings)), "")
        return fingerprint(settings, facts, distribution=own, version=settings.engine_version or "")

    def requirements(self, settings: Settings, environ: Mapping[str, str]) -> Requirements:
        """What the engine needs of a pod. ``environ``: that of the engine."""
        return Requirements(
            torch="torch" in self.distributions(settings),
            weight_files=last(settings.engine_args, "--load-format") not in _WEIGHTS_FROM_ELSEWHERE,
        )

    def local(self, settings: Settings, size: int, facts: NodeFacts) -> Local:
        """What ``size`` ranks on one machine need."""
        return Local()
