"""A pod that is alone and hands off: its launcher becomes the engine at once, without guard, agent or group.

There is nobody to agree with, and nothing to guard once the engine has taken the launcher's place. So the settings are
read and the plan is made in the process that the pod started, and that process executes the engine.

Only the plain start is made here. Whatever needs words or takes waiting goes the long way, which does it all again from
the beginning: a mistake of the user, a question to the engine's interpreter or to nvidia-smi, a port in use, a folder
that remembers a launcher before us, a signal that asks to end. Until the engine is announced nothing has happened.
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

#: Signals that ask the launcher to end.
ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
UNREAD = 1.0  #: seconds for a reader of our standard error to make room


def attempt() -> None:
    """Become the engine, or return where the long way has to be taken.

    Signals that ask to end stay blocked then, for PID 1 would lose them: the guard lets them in when it can hear them.
    """
    execute.fill_standard_descriptors()
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    with contextlib.suppress(Exception):  # the long way meets it again, and says it
        _become(sys.argv[1:])


def _become(args: Sequence[str]) -> None:
    """Replace this process by the engine that ``args`` ask for, or return."""
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
    log("hands off: the engine takes this process's place", {"program": process.argv[0]})
    env = process.environment(steps.engine_environment(environ, identity.rank))
    execute.mark_inherited_descriptors()
    execute.forget_signals()
    if asked := _asked():  # before there was an engine to ask
        os._exit(128 + asked)
    code, why = execute.engine(process.argv, env, process.cwd)
    _say(f"launcher: {why}\n")
    os._exit(code)


def _plan(settings: Settings, environ: Mapping[str, str]) -> tuple[Identity, Plan, list[tuple[str, str]]] | None:
    """Who this pod is, what it will run, and what there is to say of it (with its level); None: the long way."""
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
    plan = engine.plan(PlanContext(settings, identity, facts, shared, own_ports.bind_address(settings, address)), 0)
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
    """The signal that asks the launcher to end; 0: none."""
    return min(signal.sigpending() & ENDING, default=0)


def _say(text: str) -> None:
    """To our standard error, in pieces that do not block where there is room. What nobody reads is dropped."""
    data = text.encode("utf-8", "replace")
    for at in range(0, len(data), select.PIPE_BUF):
        if select.select((), (2,), (), UNREAD)[1]:
            with contextlib.suppress(OSError):
                os.write(2, data[at : at + select.PIPE_BUF])
