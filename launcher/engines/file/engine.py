"""An engine without Python: the plan that an engine file declares (docs/engine-file.md).

The file is read once (``schema.py``) and its placeholders are filled for each rank (``placeholders.py``). The variables
for ``{env:NAME}`` are taken when the file is read, so that planning stays a pure function.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from launcher.common.addresses import from_inside, host_port
from launcher.common.numbers import is_whole
from launcher.engines import arguments, ports, topology, weights
from launcher.engines.arguments import Owned
from launcher.engines.base import Checked, Engine, PlanContext
from launcher.engines.file import patterns
from launcher.engines.file.placeholders import Slot, Template, Values, command, fill, secrets
from launcher.engines.file.schema import API, LEADER, EngineFile, GateSpec, HealthSpec, Step, load
from launcher.engines.fingerprint import fingerprint
from launcher.errors import ConfigError
from launcher.model import Epoch, Fingerprint, Gate, Health, Identity, NodeFacts, Plan, Port, Process, Shared
from launcher.model import Stage as PlanStage
from launcher.settings import Settings

API_PORT = 8000
MASTER_PORT = 29500


def load_engine_file(path: str, environ: Mapping[str, str] | None = None) -> DeclarativeEngine:
    """The engine that a file declares.

    Args:
        environ: what ``{env:NAME}`` reads; the process's own environment by default.
    Raises:
        ConfigError: the file is no valid engine file; the message names the place in it and the fix.
    """
    return DeclarativeEngine(load(path), dict(os.environ if environ is None else environ))


class DeclarativeEngine(Engine):
    """An engine that an engine file declares."""

    variable_prefixes = ("VLLM_", "SGLANG_", "SGL_", "RAY_")  # it may wrap any of them

    def __init__(self, file: EngineFile, environ: Mapping[str, str]) -> None:
        self.file, self.environ = file, environ
        self.name, self.summary = file.name, file.summary

    def distributions(self, settings: Settings) -> tuple[str, ...]:
        return self.file.versions

    def interpreter(self, settings: Settings) -> str:
        return settings.python or self.file.python or "python3"

    def check(self, settings: Settings, identity: Identity, facts: NodeFacts) -> Checked:
        if self.file.owned:
            owned = (Owned((option,), option, why=f"{self.file.path} says it") for option in self.file.owned)
            arguments.refuse_owned(settings.engine_args, owned, settings)
        self._ports_apart(settings)
        # A placeholder without a value on this rank is an error here, before the group forms; no address is known yet.
        addresses = tuple(f"<rank {rank}>" for rank in range(identity.size))
        self.plan(PlanContext(settings, identity, facts, Shared(Epoch(1, ""), addresses)), identity.rank)
        fits = topology.check(settings, facts, identity.size, topology.world(settings)) if self.file.topology else None
        stages = " then ".join(self._told(stage.name) for stage in self.file.stages)
        return Checked(
            why=(f"engine file {self.file.path}: {stages}", *(fits.why if fits else ())),
            warnings=(*self._shown_secrets(), *(fits.warnings if fits else ())),
        )

    def plan(self, context: PlanContext, rank: int) -> Plan:
        file, values = self.file, self._values(context, rank)
        health = self._health(file.health, values) if rank == 0 and file.health is not None else Health()
        args_stage = None if any(s.command.places_args for s in self._steps()) else file.stages[-1].name
        stages = []
        for spec in file.stages:
            last = spec is file.stages[-1]
            more = context.settings.engine_args if spec.name == args_stage else ()
            processes = [
                Process(
                    name=spec.name,
                    argv=command(step.command, values, more),
                    env={name: fill(text, values) for name, text in {**file.env, **step.env}.items()},
                    unset=file.unset,
                    gate=self._gate(step.gate, values, health.url if last else None),
                    completes=step.completes,
                    secret_env=self._secret(step),
                )
                for step in spec.steps
                if step.runs_on(rank)
            ]
            late = f"{file.path} gives stage {spec.name} {spec.timeout:g} s" if spec.timeout is not None else ""
            stages.append(PlanStage(spec.name, tuple(processes), spec.timeout, late))
        return Plan(
            rank=rank,
            stages=tuple(stages),
            health=health,
            ports=self._opened(values, rank),
            stop_grace=file.stop_grace,
            step_lines=file.step_lines,
            weights=weights.of_settings(context.settings, context.identity.size, rank),
            completes=file.completes and all(s.gate and s.gate.kind == "exited" for s in file.stages[-1].steps),
        )

    def fingerprint(self, settings: Settings, facts: NodeFacts) -> Fingerprint:
        versions = self.file.versions
        found = fingerprint(
            settings, facts, distribution=versions[0] if versions else "", version=settings.engine_version or ""
        )
        others = {f"{name}.version": facts.versions[name] for name in versions[1:] if name in facts.versions}
        return {**found, **others, "engine": self.name, "engine.file": self.file.digest}

    # ---------------------------------------------------------------------------------------------- parts

    def _values(self, context: PlanContext, rank: int) -> Values:
        settings = context.settings
        numbers = {name: port.number for name, port in self.file.ports.items()}
        api = settings.port or numbers.get(API, API_PORT)
        numbers[API] = api
        master = ports.of_epoch(
            settings.master_port or MASTER_PORT,
            context.shared.epoch,
            taken=ports.taken(settings, *numbers.values()),
        )
        return Values(context, rank, api, master, self.interpreter(settings), numbers, self.environ)

    def _gate(self, spec: GateSpec | None, values: Values, health: str | None) -> Gate:
        """The file's gate; else, for the leader's last command, its health; else that it was started."""
        if spec is None:
            return Gate("http", health) if health else Gate()
        target = ""
        if spec.target is not None:
            target = _pattern(spec.target, values) if spec.kind == "pattern" else fill(spec.target, values)
        if spec.kind == "tcp" and not is_whole(target.rpartition(":")[2]):
            raise _bad(spec.target, target, "no host:port", 'write target = "{address:8000}"')
        if spec.kind == "http" and not target.startswith(("http://", "https://")):
            raise _bad(spec.target, target, "no URL", 'write target = "http://{address:8000}/health"')
        if spec.kind == "line" and not target.strip():
            raise _bad(spec.target, target, "empty, and every line contains that", 'write target = "ready"')
        if spec.kind == "pattern" and (wrong := patterns.problem(target)):
            raise _bad(
                spec.target, target, wrong, 'write target = "listening on .*:8000"; braces are doubled: [0-9]{{4}}'
            )
        return Gate(spec.kind, target, spec.settle)

    def _health(self, spec: HealthSpec, values: Values) -> Health:
        if spec.url is not None:
            url = fill(spec.url, values)
            if not url.startswith(("http://", "https://")):
                raise _bad(spec.url, url, "no URL", 'write url = "http://127.0.0.1:8000/health", or path and port')
            from urllib.parse import urlsplit

            parts = urlsplit(url)
            base = f"{parts.scheme}://{parts.netloc}"
        else:
            number = values.number(str(spec.port)) if spec.port is not None else values.port
            bind = values.context.bind
            base = f"http://{host_port(from_inside(bind), number)}"
            url = base + spec.path

        def whole(text: Template | None) -> str | None:
            said = None if text is None else fill(text, values)
            return base + said if said is not None and said.startswith("/") else said

        import json

        return Health(
            url=url,
            metrics_url=whole(spec.metrics),
            running=spec.names.get("running", ()),
            waiting=spec.names.get("waiting", ()),
            progress=spec.names.get("progress", ()),
            sleeping=spec.names.get("sleeping", ()),
            canary_url=whole(spec.canary),
            canary_body=json.dumps(_filled(spec.canary_body, values)) if spec.canary else "",
            insecure=spec.insecure,
            timeout=Health.timeout,
            dead=Health.dead,
        )

    def _opened(self, values: Values, rank: int) -> tuple[Port, ...]:
        role = LEADER if rank == 0 else "worker"
        opened = [
            Port(values.number(port.name), port.name, port.external)
            for port in self.file.ports.values()
            if port.on in ("all", role)
        ]
        if rank == 0:
            used, health = {slot for text in self.file.templates for slot in text.slots}, self.file.health
            asked = health is not None and health.url is None and health.port is None
            if API not in self.file.ports and (asked or any(_uses(slot, "port") for slot in used)):
                opened.append(Port(values.port, API, external=True))
            if any(_uses(slot, "master_port") for slot in used):
                opened.append(Port(values.master_port, "master"))
        return tuple(opened)

    def _ports_apart(self, settings: Settings) -> None:
        own = {settings.group_port: "group_port", settings.agent_port: "agent_port"}
        for port in self.file.ports.values():
            if port.number in own and not (port.name == API and settings.port):
                raise ConfigError(
                    f"{self.file.path}: ports.{port.name} is {port.number}, and so is"
                    f" {settings.said(own[port.number])}",
                    "give one of them another number",
                )

    def _steps(self) -> tuple[Step, ...]:
        return tuple(step for stage in self.file.stages for step in stage.steps)

    def _secret(self, step: Step) -> frozenset[str]:
        env = {**self.file.env, **step.env}
        return frozenset(n for n, text in env.items() if secrets(text) or arguments.is_secret(n.replace("_", "-")))

    def _shown_secrets(self) -> tuple[str, ...]:
        return tuple(
            f"{text.where} puts {', '.join(secrets(text))} on a command line, where every process list shows it:"
            " put it under [env] if the engine can read it there"
            for step in self._steps()
            for text in step.command.templates
            if secrets(text)
        )

    def _told(self, stage: str) -> str:
        ranks = {step.on for spec in self.file.stages if spec.name == stage for step in spec.steps}
        return f"{stage} ({' and '.join(sorted(ranks))})"


def _filled(value: Any, values: Values) -> Any:
    """The body of the canary. Its braces are JSON's, so only a whole text such as ``{model}`` is replaced."""
    if isinstance(value, dict):
        filled = {key: _filled(item, values) for key, item in value.items()}
        return {key: item for key, item in filled.items() if item is not None}
    if isinstance(value, list):
        return [_filled(item, values) for item in value]
    if value in ("{model}", "{served_model_name}"):
        return values.of(Slot(value[1:-1]))
    return value


def _uses(slot: Slot, port: str) -> bool:
    return slot.detail == port or (slot.name == port and not slot.detail)


def _pattern(template: Template, values: Values) -> str:
    """A regular expression with its values, which are escaped."""
    filled = fill(template, values)  # raises for what has no value
    if not template.slots:
        return filled
    parts = (
        p if isinstance(p, str) else re.escape(fill(Template(template.where, (p,)), values)) for p in template.parts
    )
    return "".join(parts)


def _bad(text: Template | None, value: str, is_what: str, fix: str) -> ConfigError:
    return ConfigError(f"{text.where if text else ''} is {value!r}: {is_what}", fix)
