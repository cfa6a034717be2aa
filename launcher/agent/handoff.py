"""``--handoff`` in a pod that is alone: the launcher becomes the engine at once, without guard, agent or group.

There is no group to agree with, and nothing to guard once the engine has replaced the launcher. So the pod's first
process reads the settings, makes the plan and executes the engine.

Only the plain case is handled here. Anything that needs a message or a wait takes the normal way, which starts from the
beginning: a mistake of the user, a query to the engine's interpreter or to nvidia-smi, a port in use, a state folder,
a signal to stop. Nothing has been changed or logged until the engine is announced.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from launcher.guard import execute

if TYPE_CHECKING:
    from launcher.model import Identity, Plan
    from launcher.settings import Settings

#: Signals that stop the launcher.
ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
UNREAD = 1.0  #: seconds that a write waits for the reader of our standard error


def attempt() -> None:
    """Become the engine, or return if the normal way has to be taken.

    Signals to stop stay blocked then, because PID 1 would lose them: the guard unblocks them when it can handle them.
    """
    execute.fill_standard_descriptors()
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    with contextlib.suppress(Exception):  # the normal way meets it again, and reports it
        _become(sys.argv[1:])


def _become(args: Sequence[str]) -> None:
    """Replace this process by the engine that ``args`` configure, or return."""
    from launcher.cli import sources
    from launcher.log import Log
    from launcher.planning import steps

    settings, environ, warnings = sources.parse(args[args[:1] == ["run"] :], os.environ)
    found = _plan(settings, environ)
    if found is None or _asked():
        return
    identity, plan, notes = found
    (process,) = plan.stages[0].processes
    log = Log(_say, identity.rank, settings.log_format, settings.log_level)
    for warning in warnings:
        log(warning, level="warning")
    log("alone", {"group": identity.group, "source": identity.source})
    for event, level in notes:
        log(event, level=level)
    log("hands off: the engine replaces this process", {"program": process.argv[0]})
    env = process.environment(steps.engine_environment(environ, identity.rank))
    execute.mark_inherited_descriptors()
    execute.forget_signals()
    if asked := _asked():  # before there was an engine to stop
        os._exit(128 + asked)
    code, why = execute.engine(process.argv, env, process.cwd)
    _say(f"launcher: {why}\n")
    os._exit(code)


def _plan(settings: Settings, environ: Mapping[str, str]) -> tuple[Identity, Plan, list[tuple[str, str]]] | None:
    """Who this pod is, what it will run, and what to log about it (with its level); None: the normal way."""
    from launcher.engines.base import PlanContext
    from launcher.model import Epoch, Shared
    from launcher.network import listening
    from launcher.planning import own_ports, pod_network, steps

    identity = steps.identity_of(settings, environ)[0]
    if not settings.handoff or not identity.alone or settings.state_dir:
        return None
    steps.secret_of(settings)
    engine = steps.engine_of(settings)
    facts = steps.known(settings, engine, environ)
    if facts is None:
        return None
    checked = engine.check(settings, identity, facts)
    network = pod_network.find_alone(settings, identity, environ)
    incarnation, address = os.urandom(6).hex(), network.address if network else "127.0.0.1"
    shared = Shared(Epoch(1, incarnation), (address,))
    bind = own_ports.bind_address(settings, address)
    own = steps.engine_environment(environ, identity.rank)
    plan = engine.plan(PlanContext(settings, identity, facts, shared, bind, own), 0)
    plan = steps.with_environment(plan, network.ours if network else {})
    if [len(stage.processes) for stage in plan.stages] != [1] or own_ports.taken_ports(plan, address):
        return None
    for ours in listening.bind(own_ports.listen_host(settings), settings.agent_port):
        ours.close()
    return (
        identity,
        plan,
        [
            *((w, "warning") for w in (*checked.warnings, *(network.warnings if network else ()))),
            *((why, "info") for why in checked.why),
        ],
    )


def _asked() -> int:
    """The pending signal to stop; 0: none."""
    return min(signal.sigpending() & ENDING, default=0)


def _say(text: str) -> None:
    """Write to standard error, in pieces that do not block where there is room. What is not read in time is dropped."""
    data = text.encode("utf-8", "replace")
    for at in range(0, len(data), select.PIPE_BUF):
        if select.select((), (2,), (), UNREAD)[1]:
            with contextlib.suppress(OSError):
                os.write(2, data[at : at + select.PIPE_BUF])
