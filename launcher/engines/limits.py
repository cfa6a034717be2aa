"""Timeouts of the engines themselves, recognised in their last lines and named in the failure.

On an overloaded machine or with a slow model folder an engine runs into its own timeouts, many of them hard-coded; the
traceback then looks like a bug of the engine or of the launcher. Read from vLLM 0.32.0 and 0.33.0, SGLang 0.5.23, Ray
2.60.0 and torch 2.13; docs/troubleshooting.md lists the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from launcher.common.last_lines import without_colours
from launcher.model import Cause, CauseKind

SLOW = "this machine is overloaded or the model folder is slow"
PEERS = "a rank is overloaded, hangs or cannot be reached"


@dataclass(frozen=True)
class Limit:
    """One timeout. ``says`` matches what the engine prints; its group ``n`` counts the ``unit`` that ran out."""

    engine: str
    what: str  #: what had to happen in time
    prints: str  #: what the engine prints, shortened
    says: str  #: a regular expression
    seconds: int  #: if the line has no number; 0: it depends on several settings
    why: str = SLOW
    raise_it: str = ""  #: what raises it; empty: it is hard-coded
    unit: int = 1  #: seconds in one unit of ``n``; 0: milliseconds

    def ran_out(self, line: str) -> int | None:
        """The seconds that ran out, if this line tells of this timeout."""
        found = re.search(self.says, line)
        if found is None:
            return None
        n = found.groupdict().get("n")
        if n is None:
            return self.seconds
        return int(n) * self.unit if self.unit else round(int(n) / 1000)


LIMITS = (
    Limit(
        "vLLM",
        "its data-parallel coordinator reports its addresses",
        "DP Coordinator process failed to report ZMQ addresses within timeout=120 seconds",
        r"DP Coordinator process failed to report ZMQ addresses(?: within (?:timeout=)?(?P<n>\d+))?",
        120,
    ),
    Limit(
        "vLLM",
        "an engine core hears from its front end",
        "Did not receive response from front-end process within 5 minutes",
        r"Did not receive response from front-end process within (?P<n>\d+) minutes",
        300,
        unit=60,
    ),
    Limit(
        "vLLM",
        "the engine cores are ready",
        "Timed out waiting for engine core processes to start. ... Waited 600s",
        r"Timed out waiting for (?:new )?engine core processes to start(?:.*?Waited (?P<n>\d+)s)?",
        600,
        raise_it="VLLM_ENGINE_READY_TIMEOUT_S",
    ),
    Limit(
        "vLLM",
        "Ray places its workers",
        "Cannot provide a placement group requiring 16 GPUs ... within 1800 seconds",
        r"Cannot provide a placement group (?:requiring|of)\b(?:.*? within (?P<n>\d+) seconds)?",
        1800,
        why="Ray has fewer free GPUs than vLLM asks for, or a node joins slowly",
    ),
    Limit(
        "vLLM",
        "a worker answers a call",
        "RPC call to execute_model timed out",
        r"RPC call to \w+ timed out",
        300,
        why=PEERS,
        raise_it="VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS",
    ),
    Limit(
        "vLLM",
        "a shared memory file is complete",
        "Timed out waiting for mmap file to reach 1073741824 bytes",
        r"Timed out waiting for (?:EC )?mmap file to reach",
        30,
    ),
    Limit(
        "SGLang",
        "rank 0 tells its workers' ports",
        "Failed to receive worker ports from node 0 within timeout",
        r"Failed to receive worker ports from node 0 within timeout",
        600,
    ),
    Limit(
        "SGLang",
        "the scheduler makes a step",
        "Scheduler watchdog timeout (self.watchdog_timeout=300, self.soft=False)",
        r"watchdog timeout \(self\.watchdog_timeout=(?P<n>\d+)(?:\.\d+)?, self\.soft=False",
        300,
        why=PEERS,
        raise_it="--watchdog-timeout",
    ),
    Limit(
        "SGLang",
        "the weights are loaded",
        "Weights are not ready after waiting 120 seconds",
        r"Weights are not ready after waiting (?P<n>\d+) seconds",
        120,
        raise_it="SGLANG_WAIT_WEIGHTS_READY_TIMEOUT",
    ),
    Limit(
        "SGLang",
        "the weight cache is ready",
        "Weight cache daemon for pp_rank=0 tp_rank=1 did not become ready within 600s",
        r"Weight cache daemon .*did not become ready within (?P<n>\d+)",
        600,
        raise_it="--weight-cache-timeout",
    ),
    Limit(
        "Ray",
        "a node is up",
        "The current node timed out during startup",
        r"The current node timed out during startup",
        30,
    ),
    Limit(
        "Ray",
        "a node comes up",
        "Timed out after 30 seconds while waiting for node to startup",
        r"Timed out after (?P<n>\d+) seconds while waiting for node to startup",
        30,
    ),
    Limit(
        "Ray",
        "a node is registered",
        "Timed out waiting for node info for node_id=",
        r"Timed out waiting for node info for node_id",
        30,
    ),
    Limit(
        "Ray",
        "the head answers a health check",
        "this node manager has mistakenly been marked as dead by the GCS: GCS failed to check the health of this node",
        r"node manager has mistakenly been marked as dead by the GCS: GCS failed to check the health",
        0,
        raise_it="RAY_health_check_failure_threshold",
    ),
    Limit(
        "Ray",
        "its runtime environment agent answers",
        "the runtime env agent timed out when Raylet try to connect to it",
        r"runtime env agent timed out when Raylet try to connect",
        30,
        raise_it="RAY_agent_register_timeout_ms",
    ),
    Limit(
        "torch",
        "all ranks join the rendezvous",
        "Timed out after 601 seconds waiting for clients. 1/2 clients joined.",
        r"Timed out after (?P<n>\d+) seconds waiting for clients",
        600,
        why=PEERS,
        raise_it="--distributed-timeout-seconds (vLLM), --dist-timeout (SGLang)",
    ),
    Limit(
        "torch",
        "a rank reaches the rendezvous",
        "The client socket has timed out after 600000ms while trying to connect to",
        r"[Tt]he client socket has timed out after (?P<n>\d+)ms",
        600,
        why=PEERS,
        raise_it="--distributed-timeout-seconds (vLLM), --dist-timeout (SGLang)",
        unit=0,
    ),
    Limit(
        "torch",
        "a collective over gloo ends",
        "Timed out waiting 1800000ms for recv operation to complete",
        r"Timed out waiting (?P<n>\d+)ms for (?:recv|send) operation to complete",
        1800,
        why=PEERS,
        raise_it="--cpu-distributed-timeout-seconds (vLLM), --dist-timeout (SGLang)",
        unit=0,
    ),
    Limit(
        "torch",
        "a collective over NCCL ends",
        "Watchdog caught collective operation timeout: WorkNCCL(... Timeout(ms)=600000)",
        r"Watchdog caught collective operation timeout: .*Timeout\(ms\)=(?P<n>\d+)",
        600,
        why=PEERS,
        raise_it="--distributed-timeout-seconds (vLLM), --dist-timeout (SGLang)",
        unit=0,
    ),
)

#: How an engine that gave up waiting ends: by itself, with any code.
_BY_ITSELF = (CauseKind.EXITED, CauseKind.SIGNALLED, CauseKind.DIED, CauseKind.HEALTH)


def explained(cause: Cause) -> Cause:
    """The same cause, which names the engine's own timeout if its last lines show that one ran out.

    ``Cause.limit`` is set if slowness alone explains it: the next attempt then waits longer.
    """
    if cause.kind not in _BY_ITSELF:
        return cause
    for line in map(without_colours, cause.tail):
        for limit in LIMITS:
            seconds = limit.ran_out(line)
            if seconds is not None:
                number = f" {seconds} s" if seconds else ""
                words = f"{limit.engine}'s own{number} limit ran out, until {limit.what}: {limit.why}"
                more = f" (raise it with {limit.raise_it})" if limit.raise_it else ""
                slow = f"{limit.engine}: {limit.what}" if limit.why == SLOW else ""
                return replace(cause, text=f"{cause.text}; {words}{more}", limit=slow)
    return cause
