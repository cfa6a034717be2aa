"""The nouns that the packages share: identity, plan, epoch, fingerprint, cause. Pure data, nothing that acts.

`identity`, `engines`, `network`, `guard` and `group` do not import one another; what `agent` passes between them is
made of these. No I/O, no clock and no third-party import may enter this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any

EMPTY: Mapping[str, str] = MappingProxyType({})
EMPTY_NUMBERS: Mapping[str, float] = MappingProxyType({})

#: The phases of a launcher and its group, as people see them.
PHASES = (
    *("setup", "seeking", "gathering", "fenced", "mismatched", "leaving", "backoff"),
    *("preparing", "starting", "running", "draining", "stopping", "aborted"),
)


# --------------------------------------------------------------------------------------------------- identity


@dataclass(frozen=True)
class Identity:
    """What a pod knows of itself before it has spoken to anybody."""

    group: str  #: opaque id of the group: namespace and the leader's configured name; never an index
    rank: int  #: 0 is the leader
    size: int  #: pods in the group
    name: str  #: this pod's own name, as short as its source knows it ("vllm-3")
    leader: str  #: DNS name or IP of rank 0; opaque, never parsed
    source: str  #: the source that decided: explicit, lws, job, slurm, statefulset or alone
    peers: tuple[str, ...] = ()  #: DNS names or IPs by rank where the source knows them, else empty
    address: str | None = None  #: own IP where the pod was told (``--address``, POD_IP); else found by route
    waits_forever: bool = False  #: the platform restarts nothing for us: no ``--join-timeout`` by default

    @property
    def is_leader(self) -> bool:
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """One pod: no network, no coordination."""
        return self.size == 1

    def name_of(self, rank: int) -> str:
        """What to call a rank before its address is known: its DNS name, else ``rank N``."""
        if rank == 0 and self.leader:
            return self.leader
        if self.peers:
            return self.peers[rank]
        return f"rank {rank}"


@dataclass(frozen=True)
class SourceReport:
    """Why one source of identity did or did not apply (shown by ``launcher plan``)."""

    name: str
    applied: bool
    why: str


# ------------------------------------------------------------------------------------------------------- plan


@dataclass(frozen=True)
class Gate:
    """When a started process counts as ready, so that the next stage may begin.

    ``kind`` is one of

    - ``started``: it was executed and still lives after ``settle`` seconds;
    - ``exited``: it ended with 0 (anything else is a failure);
    - ``line``: it printed a line that contains ``target`` (colours are taken out before);
    - ``pattern``: it printed a line in which the regular expression ``target`` matches (without colours, too);
    - ``tcp``: ``target`` = ``host:port`` accepts a connection;
    - ``http``: a GET of the URL ``target`` is answered with 200.
    """

    kind: str = "started"
    target: str = ""
    settle: float = 0.0  #: seconds

    @property
    def question(self) -> str:
        """What is asked or waited for, shortly: "GET http://127.0.0.1:8000/health"."""
        if self.kind == "http":
            return f"GET {self.target}"
        return f"TCP {self.target}" if self.kind == "tcp" else self.words

    @property
    def words(self) -> str:
        """What it waits for: "until ..."."""
        return {
            "started": f"it has run for {self.settle:g} s" if self.settle else "it runs",
            "exited": "it has ended with 0",
            "line": f"it prints a line that contains {self.target!r}",
            "pattern": f"it prints a line in which /{self.target}/ matches",
            "tcp": f"{self.target} takes connections",
            "http": f"{self.target} answers 200",
        }.get(self.kind, self.kind)


@dataclass(frozen=True)
class Process:
    """One process of a plan. ``env`` is laid over the launcher's own environment after ``unset`` was taken out."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    unset: tuple[str, ...] = ()
    gate: Gate = field(default_factory=Gate)
    completes: bool = False  #: ending with 0 is no failure (a check, or an engine that finishes its work)
    secret_env: frozenset[str] = frozenset()  #: names in ``env`` whose values are printed as ``***``
    cwd: str | None = None
    #: laid *under* the launcher's own environment: they hold only where the user has not set the name himself
    defaults: Mapping[str, str] = field(default_factory=lambda: EMPTY)
    #: how the names (comm) of processes begin that this one makes and that must live as long as the engine serves
    vital: tuple[str, ...] = ()
    #: variables of this node that the launcher must not add here; a value that the user has set stays
    withheld: frozenset[str] = frozenset()

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """The whole environment: ``base`` less ``unset``, the plan's over it, its defaults under it."""
        return {**self.defaults, **{k: v for k, v in base.items() if k not in self.unset}, **self.env}


@dataclass(frozen=True)
class Stage:
    """A step that every rank of the group takes at the same time. A rank with nothing to do has no processes."""

    name: str
    processes: tuple[Process, ...] = ()
    timeout: float | None = None  #: seconds; None waits for ever (the engine's own start has its own limits)
    on_timeout: str = ""  #: what to say and to try when it passes


@dataclass(frozen=True)
class Health:
    """Where and how an engine's truth is asked. Only rank 0 is asked; None anywhere means "cannot be asked"."""

    url: str | None = None  #: GET answers 200 when the engine serves
    metrics_url: str | None = None  #: Prometheus text
    running: tuple[str, ...] = ()  #: gauges: requests running (prefill counted)
    waiting: tuple[str, ...] = ()  #: gauges: requests waiting
    progress: tuple[str, ...] = ()  #: counters that move while requests run (tokens, prompts)
    sleeping: tuple[str, ...] = ()  #: gauges that are non-zero while the engine sleeps
    canary_url: str | None = None  #: POST of ``canary_body`` makes one token
    canary_body: str = ""
    insecure: bool = False  #: https with a certificate that is not verified (the pod asks itself)
    timeout: float = 5.0  #: seconds to wait for ``url``: SGLang's makes a token and gives itself 20 s
    outside: int = 0  #: port at which other pods reach the API on this pod's own address; 0: it listens elsewhere
    dead: int = 0  #: with this status and no body ``url`` says that the engine is dead for good; 0: it never says so


@dataclass(frozen=True)
class Port:
    """A port that the plan opens. ``external``: meant for callers outside the group."""

    number: int
    name: str
    external: bool = False


@dataclass(frozen=True)
class StepLine:
    """A line by which an engine tells how far its start is.

    ``pattern`` is a regular expression, searched in each line without colours. Its groups are optional: ``percent``, or
    ``done`` and ``total``, say how much of the step is done; ``took`` says that it is over, and how many seconds it
    took.
    """

    step: str  #: one of `ENGINE_STEPS` begins or goes on; REST: the step that went on is over
    pattern: str


@dataclass(frozen=True)
class Weights:
    """The weight files that a rank reads. ``names``: shell patterns of their names; empty: the usual ones."""

    model: str  #: a folder, a file, or a name on a hub
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What one rank will run: ordered stages, the same names on all ranks. Pure data, made without I/O."""

    rank: int
    stages: tuple[Stage, ...]
    health: Health = field(default_factory=Health)  #: empty on ranks whose health says nothing
    ports: tuple[Port, ...] = ()
    why: tuple[str, ...] = ()  #: choices and their reasons, in words, for ``launcher plan``
    scratch: tuple[str, ...] = ()  #: folders that this epoch makes; the newest two epochs' are kept
    stop_grace: float | None = None  #: seconds that this engine wants between TERM and KILL at a failure stop
    completes: bool = False  #: once all stages are done on all ranks the work is done, and the launcher leaves
    step_lines: tuple[StepLine, ...] = ()  #: how the engine tells of its start
    weights: Weights | None = None  #: None: it reads no weight files, or which ones is unknown

    @property
    def api_port(self) -> int | None:
        """The port for callers outside the group; None: this rank has none."""
        return next((port.number for port in self.ports if port.external), None)


# ------------------------------------------------------------------------------------------------------ epoch


@dataclass(frozen=True, order=True)
class Epoch:
    """One attempt to run the engine across the whole group. Compared as a whole, never by its number alone."""

    n: int
    leader: str  #: incarnation of the leader that made it

    def __str__(self) -> str:
        return f"{self.n}.{self.leader[:6]}"


#: The steps of a start, in their usual order. A rank is in one of them at a time, and may come back to an earlier one.
PEERS, PREPARING, IMPORTS, WEIGHTS, COMPILE, GRAPHS, REST = STEPS = (
    *("peers", "preparing", "imports", "weights", "compile", "graphs", "rest"),
)
ENGINE_STEPS = (WEIGHTS, COMPILE, GRAPHS)  #: those that an engine's lines can tell of


@dataclass(frozen=True)
class StartProgress:
    """How far the start of one rank is. None: unknown."""

    stage: str = ""  #: the stage of the plan
    step: str = ""  #: one of `STEPS`
    ratio: float | None = None  #: how much of this step is done, from 0 to 1
    bytes_read: int | None = None  #: of the weight files
    bytes_total: int | None = None  #: their size
    bytes_per_second: float | None = None  #: just now
    eta: float | None = None  #: seconds until this step is done, if it goes on like this
    gate: str = ""  #: what is waited for: "GET http://127.0.0.1:8000/health"
    answer: str = ""  #: and what it answered last: "connection refused"
    steps: Mapping[str, float] = field(default_factory=lambda: EMPTY_NUMBERS)  #: seconds spent in each step so far

    @property
    def seconds(self) -> float:
        return sum(self.steps.values())


class CauseKind(str, Enum):
    """What kind of failure ended an epoch. The value is the ``cause`` label of metrics and of /status."""

    EXITED = "exited"  #: a process ended with a code, 0 too
    SIGNALLED = "signalled"  #: a process was ended by a signal
    DIED = "process_died"  #: a process deep in the engine's tree ended; without ``code``: how is unknown
    OOM = "out_of_memory"  #: the kernel's OOM killer ended a process
    SPAWN = "not_started"  #: a process could not be executed
    STOPPED = "frozen"  #: a process sat stopped (T) for 5 s
    HEALTH = "unhealthy"  #: the health endpoint failed, and no request made progress
    HANG = "no_progress"  #: requests ran and no token moved for ``--hang-timeout``
    STALL = "start_stalled"  #: start-up without output, CPU time, disk or network bytes
    TIMEOUT = "stage_timeout"  #: a stage did not finish in time
    UNABLE = "unable"  #: a member could not prepare
    LOST = "member_lost"  #: a member's connection closed or its lease ran out
    LEADER = "leader_lost"  #: the leader went away (a member's view)
    AGENT = "launcher_died"  #: the launcher itself was killed or broke
    DRAIN = "drain"  #: asked to leave: no failure
    RESTART = "restart"  #: `launcher restart`: no failure
    UNCLEAN = "not_clean"  #: something of an ended epoch could not be removed
    JOIN = "join_timeout"  #: the leader or the peers never came
    MISMATCH = "mismatch"  #: members that are not alike


#: Ends that somebody asked for. They are charged to no budget, and they are never the first failure.
NO_FAILURE = frozenset({CauseKind.DRAIN, CauseKind.RESTART})


@dataclass(frozen=True)
class Cause:
    """Why an epoch ended, so that a person understands it: which rank, which process, how, and its last words."""

    kind: CauseKind
    rank: int
    text: str  #: one sentence, in words
    process: str = ""
    code: int | None = None  #: exit code; 128 + n for signal n
    tail: tuple[str, ...] = ()  #: last lines of output, oldest first
    limit: str = ""  #: the engine's own limit that ran out because all is slow, if its last lines tell of one
    rivals: tuple[int, ...] = ()  #: ranks that may have been the first instead: then this is but probable
    because: tuple[str, ...] = ()  #: a line for each other rank that ended: because of this, as far as is known
    autopsy: str = ""  #: what the ranks were doing when the engine was stopped, in words; empty: not known

    def __str__(self) -> str:
        return f"{'probably ' if self.rivals else ''}rank {self.rank}: {self.text}"


@dataclass(frozen=True)
class ProcessEvidence:
    """What one process of an engine was doing when its epoch ended by a verdict: its part of an autopsy."""

    pid: int
    name: str  #: its title
    state: str = ""  #: R S D T t of /proc/PID/stat, before the launcher touched it; empty: unknown
    wchan: str = ""  #: where it sleeps in the kernel; empty: unknown, or it does not sleep
    syscall: str = ""  #: the first words of /proc/PID/syscall; empty: unknown
    frames: tuple[str, ...] = ()  #: Python frames of its main thread, the innermost first: "forward (model.py:12)"
    text: tuple[str, ...] = ()  #: all that it printed: the stacks of all its threads


#: In the last lines of a process that our stop had reached: what it said before that stands above.
TOLD_TO_STOP = "--- here the launcher asked it to stop ---"


# ------------------------------------------------------------------------------------------------ fingerprint

Fingerprint = Mapping[str, str]  #: named facts that must be equal on all ranks


# ----------------------------------------------------------------------------------------- facts of the node


@dataclass(frozen=True)
class NodeFacts:
    """What was found on this node and in the engine's interpreter: what planning needs and cannot derive."""

    versions: Mapping[str, str] = field(
        default_factory=lambda: EMPTY
    )  #: distribution name -> version, absent if not there
    versions_known: bool = False  #: False: the engine's interpreter could not be asked (``plan`` on a laptop)
    gpus: int | None = None  #: GPUs that this pod may use; None: unknown
    gpu_model: str = ""


@dataclass(frozen=True)
class Shared:
    """What all ranks of an epoch must know alike: handed out by the leader in ``prepare``."""

    epoch: Epoch
    addresses: tuple[str, ...]  #: IP addresses by rank
    token: str = ""  #: secret of this epoch for engines that want one (Ray); empty: none
    values: Mapping[str, Any] = field(default_factory=dict)  #: small JSON values, for engines
