"""Every check of doctor, in the order shown. To add a check, add a file beside this one and a line below."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from launcher.preflight.checks import disk, gpus, limits, memory, model, names, network, ports, process, software
from launcher.preflight.finding import Finding
from launcher.preflight.pod import Node


@dataclass(frozen=True)
class Check:
    """One check, and where it runs besides `launcher doctor`."""

    name: str  #: the name of its findings
    run: Callable[[Node], Iterable[Finding]]
    at_start: bool = True  #: also at each start of the launcher: it sends nothing and waits for no peer
    in_group: bool = True  #: also in `launcher doctor --group`


CHECKS = (
    Check("gpus", gpus.check),
    Check("software", software.check),
    Check("model", model.check),
    Check("shm", memory.check_shm),
    Check("memory", memory.check_limit),
    Check("disk", disk.check),
    Check("memlock", limits.check_memlock),
    Check("nofile", limits.check_nofile),
    Check("pids", limits.check_pids),
    Check("network", network.check, at_start=False),  # a start logs the network's warnings itself
    Check("own name", names.check_own, at_start=False, in_group=False),  # a group reaches its leader, or reports it
    Check("leader", names.check_leader, at_start=False, in_group=False),
    Check("ports", ports.check, at_start=False),  # a start binds its ports, and its error names a taken one
    Check("init", process.check_init),
    Check("links", process.check_links, at_start=False),  # a start logs them when it reads the options
    Check("grace", process.check_grace),
)
