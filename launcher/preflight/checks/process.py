"""The launcher as a process: PID 1, subreaper, service links, and whether the grace period is long enough."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from launcher.cli.commands import COMMANDS
from launcher.identity.service_links import strip
from launcher.preflight.finding import Finding, fail, ok, skipped, warn
from launcher.preflight.pod import Node, text

SHELLS = ("sh", "bash", "dash", "ash", "zsh", "busybox")
INITS = ("tini", "dumb-init", "catatonit", "docker-init", "systemd", "init", "pause", "s6-svscan")


def check_init(node: Node) -> Iterator[Finding]:
    """Who gets the pod's SIGTERM, and who reaps the engine's orphans."""
    name, command = text(node.proc / "1/comm"), text(node.proc / "1/cmdline").replace("\0", " ")
    yield judge_init(name, command, True if node.agent else None)


def judge_init(name: str, command: str, reaps: bool | None) -> Finding:
    """``reaps``: whether the launcher's guard, if not PID 1, is a subreaper; None: there is no guard here."""
    words = command.split()
    if not name:
        return skipped("init", "PID 1 cannot be seen from here")
    if options_in(words) is not None:
        return ok("init", "PID 1 is the launcher: it gets the pod's signals and reaps")
    if name in SHELLS and "-c" in words:
        return warn(
            "init",
            f"PID 1 is a shell: {command[:120]}",
            "a shell does not pass SIGTERM on: the pod is killed after its grace, and requests are cut",
            "put `exec` before the launcher in that command, or make the launcher the container's command",
        )
    if reaps:
        return ok("init", f"PID 1 is {name}; the launcher adopts and reaps the engine's orphans itself")
    if name in INITS:
        return ok("init", f"PID 1 is {name}, which passes signals on; the launcher reaps its own engine's orphans")
    return ok("init", f"PID 1 is {name}")


def options_in(words: Sequence[str]) -> list[str] | None:
    """The options of a launcher's command line; None: it is not a launcher run."""
    at = next((i for i, word in enumerate(words[:5]) if _is_launcher(word)), None)
    if at is None or "-c" in words[:at] or {*words[at + 1 : at + 2]} & {*COMMANDS, "-m"}:
        return None
    options = list(words[at + 1 :])
    return options[1:] if options[:1] == ["run"] else options


def _is_launcher(word: str) -> bool:
    """Whether it is the console script, ``-m launcher``, or the self-contained folder's program (``images/bundle``)."""
    return os.path.basename(word) == "launcher" or word.endswith("launcher/run.py")


def options_of_pid_1(proc: str) -> list[str] | None:
    """The options of this container's launcher; None: PID 1 is not a launcher, or is not readable."""
    return options_in([word for word in text(Path(proc) / "1/cmdline").split("\0") if word])


def check_links(node: Node) -> Iterator[Finding]:
    """Variables of Kubernetes' service links that engines would read as settings."""
    _, warnings = strip(node.raw)
    for warning in warnings:
        what, _, fix = warning.partition("; ")
        yield warn("links", what, "a Service's name is read as a setting of the engine", fix)
    if not warnings:
        links = sum(1 for name in node.raw if name.endswith("_SERVICE_HOST"))
        yield ok("links", f"{links} Services leave variables here, none of them disturbs")


def check_grace(node: Node) -> Iterator[Finding]:
    """The pod's grace period against what a drain needs, and the startup limits against each other."""
    s = node.settings
    need = s.drain_settle + s.stop_grace + 2
    if s.grace < need:
        yield fail(
            "grace",
            f"{s.said('grace')} is less than the {need:g} s that a drain takes without any request",
            "the kubelet kills the pod while it still serves",
            "raise terminationGracePeriodSeconds and --grace alike, or lower --drain-settle",
        )
    elif "KUBERNETES_SERVICE_HOST" in node.raw and "grace" not in s.origins:
        yield warn(
            "grace",
            f"--grace is not said: {s.grace:g} s are assumed, {s.grace - need:g} of them for requests in flight",
            "longer answers are cut when a pod goes",
            "set the pod's terminationGracePeriodSeconds and --grace to the same number",
        )
    else:
        yield ok("grace", f"{s.grace:g} s, {s.grace - need:g} of them for requests in flight")
    if s.startup_timeout and node.plan:
        stages = sum(stage.timeout or 0 for stage in node.plan.stages)
        if stages >= s.startup_timeout:
            yield warn(
                "startup",
                f"{s.said('startup_timeout')} is not more than its stages may take ({stages:g} s)",
                "the whole start is given up before a stage says what is wrong",
                "raise --startup-timeout, or lower the limits of the engine's stages (`launcher plan` shows them)",
            )
