"""The TOML of an engine file, parsed and validated: every key known, every value of its type, no part missing.

Errors name the file, the place in it (``leader.command[2]``), the value and what to write instead. docs/engine-file.md
describes the format; ``engine.py`` makes the plan.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.common import files
from launcher.common.numbers import check_document
from launcher.common.text import did_you_mean
from launcher.engines.file import patterns, placeholders
from launcher.engines.file.placeholders import PORT_NAMES, Command, Template
from launcher.errors import ConfigError
from launcher.model import ENGINE_STEPS, REST, StepLine

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LARGEST = 1 << 20
MOST_SECONDS = 1e9  #: compared before conversion: a whole number of 400 digits does not fit a float
LEADER, WORKER, ALL = "leader", "worker", "all"
API = "api"  #: the port of [ports] that --port overrides
GATES = ("started", "exited", "line", "pattern", "tcp", "http")
ENGINE_STAGE = "engine"  #: name of the only stage where the file has no [[stages]]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

TOP = (
    *("name", "summary", "python", "versions", "owned", "topology", "completes", "stop_grace", "unset", "env"),
    *("ports", "health", "progress", LEADER, WORKER, ALL, "stages"),
)
COMMAND = ("command", "env", "gate")
STAGE = ("name", "on", "command", "env", "gate", "timeout", "completes")
GATE = ("kind", "target", "settle")
PORT = ("number", "external", "on")
PROGRESS = (*ENGINE_STEPS, "over")
SHARE_GROUPS = ("percent", "done", "total", "took")
MOST_PATTERNS = 32  #: of [progress]: each is tried on every line of a start
METRICS = ("running", "waiting", "progress", "sleeping")
HEALTH = ("url", "path", "port", "metrics", *METRICS, "canary", "canary_body", "insecure")


@dataclass(frozen=True)
class GateSpec:
    kind: str
    target: Template | None
    settle: float


@dataclass(frozen=True)
class Step:
    """One command of a stage, and the ranks that run it."""

    on: str  #: leader, worker or all
    command: Command
    env: Mapping[str, Template]
    gate: GateSpec | None
    completes: bool

    def runs_on(self, rank: int) -> bool:
        return self.on in (ALL, LEADER if rank == 0 else WORKER)


@dataclass(frozen=True)
class StageSpec:
    name: str
    steps: tuple[Step, ...]
    timeout: float | None


@dataclass(frozen=True)
class PortSpec:
    name: str
    number: int
    external: bool
    on: str


@dataclass(frozen=True)
class HealthSpec:
    """``url`` or ``path`` with ``port`` (a number, or a name of [ports]; None: the API's)."""

    url: Template | None
    path: str
    port: int | str | None
    metrics: Template | None
    names: Mapping[str, tuple[str, ...]]  #: running, waiting, progress, sleeping
    canary: Template | None
    canary_body: Mapping[str, Any]
    insecure: bool


@dataclass(frozen=True)
class EngineFile:
    """A valid engine file."""

    path: str
    name: str
    summary: str
    python: str | None
    versions: tuple[str, ...]
    owned: tuple[str, ...]
    topology: bool
    completes: bool
    stop_grace: float | None
    unset: tuple[str, ...]
    env: Mapping[str, Template]
    ports: Mapping[str, PortSpec]
    health: HealthSpec | None
    step_lines: tuple[StepLine, ...]
    stages: tuple[StageSpec, ...]
    content: bytes = field(repr=False)  #: as it was read

    @property
    def digest(self) -> str:
        """A hash of the content, for the fingerprint."""
        import hashlib  # it loads OpenSSL, and only a group needs the digest

        return "sha256:" + hashlib.sha256(self.content).hexdigest()[:12]

    @property
    def templates(self) -> tuple[Template, ...]:
        """Every text with placeholders."""
        found = list(self.env.values())
        if self.health is not None:
            found += [t for t in (self.health.url, self.health.metrics, self.health.canary) if t is not None]
        for step in (step for stage in self.stages for step in stage.steps):
            found += [*step.command.templates, *step.env.values()]
            if step.gate is not None and step.gate.target is not None:
                found.append(step.gate.target)
        return tuple(found)


def load(path: str) -> EngineFile:
    """An engine file from the disk.

    Raises:
        ConfigError: it cannot be read, or is no valid engine file.
    """
    try:
        raw = files.read(path, LARGEST)
    except OSError as error:
        raise ConfigError(
            f"--engine-file {path} cannot be read: {error.strerror}", "give the path of a TOML file"
        ) from None
    return parse(raw, path)


def parse(raw: bytes, path: str) -> EngineFile:
    """An engine file from its bytes; ``path`` is for errors."""
    try:
        content = tomllib.loads(raw.decode())
        check_document(content)
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8, an invalid date, a number that is too long
        raise ConfigError(f"{path} is not TOML: {error}", "mend the file there") from None
    top = TomlTable(path, "", content, TOP)
    ports = {name: _port(top, name) for name in top.table("ports")}
    read = Reader(tuple(ports))
    completes = top.flag("completes")
    return EngineFile(
        path=path,
        content=raw,
        name=_name(top, "name"),
        summary=top.text("summary") or f"declared in {path}",
        python=top.text("python"),
        versions=top.texts("versions"),
        owned=_owned(top),
        topology=top.flag("topology"),
        completes=completes,
        stop_grace=top.seconds("stop_grace"),
        unset=top.texts("unset"),
        env=read.env(top),
        ports=ports,
        health=read.health(top),
        step_lines=_step_lines(top),
        stages=read.stages(top, completes),
    )


class TomlTable:
    """One table of the file, with known keys only. Errors name the place and the value."""

    def __init__(self, path: str, where: str, content: Mapping[str, Any], keys: Collection[str] | None) -> None:
        self.path, self.where, self.content = path, where, content
        for key in content:
            if keys is not None and key not in keys:
                raise ConfigError(
                    f"{path}: {self.place(key)} is no key of an engine file",
                    did_you_mean(key, keys, f"{f'[{where}]' if where else 'The top level'} has {', '.join(keys)}"),
                )

    def place(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def wrong(self, key: str, is_what: str, fix: str) -> ConfigError:
        value = self.content.get(key)
        return ConfigError(f"{self.path}: {self.place(key)} is {_shown(value)}: {is_what}", fix)

    def missing(self, key: str, fix: str) -> ConfigError:
        return ConfigError(f"{self.path}: {self.place(key)} is missing", fix)

    def text(self, key: str) -> str | None:
        value = self.content.get(key)
        if value is not None and not (isinstance(value, str) and value):
            raise self.wrong(key, "not a text", f'write {key} = "..."')
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.content.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "neither true nor false", f"write {key} = true or {key} = false, without quotes")
        return value

    def seconds(self, key: str) -> float | None:
        value = self.content.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MOST_SECONDS:
            raise self.wrong(
                key, f"no number of seconds from 0 to {MOST_SECONDS:g}", f"write {key} = 30, without quotes"
            )
        return float(value)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts; one text is a list of one."""
        value = self.content.get(key, [])
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) and item for item in items):
            raise self.wrong(key, "not a list of texts", f'write {key} = ["...", "..."]')
        return tuple(items)

    def choice(self, key: str, allowed: Collection[str], default: str | None = None) -> str:
        value = self.content.get(key, default)
        if value is None:
            raise self.missing(key, f"write {key} = one of {', '.join(allowed)}")
        if value not in allowed:
            raise self.wrong(key, f"not one of {', '.join(allowed)}", f"write one of {', '.join(allowed)}")
        return str(value)

    def table(self, key: str) -> Mapping[str, Any]:
        value = self.content.get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, "not a table", f"write [{self.place(key)}] and its entries below")
        return value

    def below(self, key: str, keys: Collection[str] | None) -> TomlTable:
        return TomlTable(self.path, self.place(key), self.table(key), keys)


class Reader:
    """Reads the parts that hold placeholders; ``ports`` are the names of [ports]."""

    def __init__(self, ports: tuple[str, ...]) -> None:
        self.ports = ports

    def template(self, table: TomlTable, key: str) -> Template | None:
        text = table.text(key)
        return None if text is None else placeholders.read(text, f"{table.path}: {table.place(key)}", self.ports)

    def env(self, above: TomlTable) -> Mapping[str, Template]:
        table = above.below("env", None)
        found = {}
        for name, value in table.content.items():
            if not _VARIABLE.fullmatch(name):
                raise ConfigError(
                    f"{table.path}: {table.place(name)}: {name!r} cannot be the name of a variable",
                    "use letters, digits and _",
                )
            if isinstance(value, bool) or not isinstance(value, (str, int, float)):
                raise table.wrong(name, "not a text", f'write {name} = "..."')
            found[name] = placeholders.read(str(value), f"{table.path}: {table.place(name)}", self.ports)
        return found

    def stages(self, top: TomlTable, completes: bool) -> tuple[StageSpec, ...]:
        """[[stages]], or one stage of [leader] and [worker], or of [all]."""
        said = [key for key in (LEADER, WORKER, ALL, "stages") if key in top.content]
        if said == ["stages"]:
            return self._stages(top, completes)
        if said not in ([LEADER, WORKER], [ALL]):
            raise ConfigError(
                f"{top.path} has {' and '.join(f'[{key}]' for key in said) or 'no command'}: no whole engine",
                "write [leader] and [worker] with a command each, or [all] where every rank runs the same command, or"
                " [[stages]] where one command waits for another",
            )
        steps = [self._step(top.below(key, COMMAND), key, completes, completes) for key in said]
        return (StageSpec(ENGINE_STAGE, tuple(steps), None),)

    def _stages(self, top: TomlTable, completes: bool) -> tuple[StageSpec, ...]:
        entries = top.content["stages"]
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
            raise top.wrong("stages", "not a list of stages", "write [[stages]] above the entries of each")
        stages: list[StageSpec] = []
        for place, entry in enumerate(entries):
            table = TomlTable(top.path, f"stages[{place}]", entry, STAGE)
            name, last = _name(table, "name"), place == len(entries) - 1
            joins = bool(stages) and stages[-1].name == name
            if not joins and name in (stage.name for stage in stages):
                raise table.wrong(
                    "name", "the name of an earlier stage", "stages of one name stand one after the other"
                )
            on = table.choice("on", (LEADER, WORKER, ALL), ALL)
            ends = completes and (last or name == entries[-1].get("name"))
            step = self._step(table, on, table.flag("completes", ends), ends)
            timeout = table.seconds("timeout")
            if not joins:
                stages.append(StageSpec(name, (step,), timeout))
                continue
            before = stages[-1]
            if any(on in (ALL, other.on) or other.on == ALL for other in before.steps):
                raise table.wrong("on", f"said already by a command of stage {name}", "give this one a name of its own")
            longest = max((t for t in (before.timeout, timeout) if t is not None), default=None)
            stages[-1] = StageSpec(name, (*before.steps, step), longest)
        return tuple(stages)

    def _step(self, table: TomlTable, on: str, completes: bool, ends: bool) -> Step:
        """``ends``: when this command has ended with 0 the engine's work is done, so that is what is waited for."""
        gate = self._gate(table) if "gate" in table.content else GateSpec("exited", None, 0.0) if ends else None
        return Step(
            on=on,
            command=self._command(table),
            env=self.env(table),
            gate=gate,
            completes=completes or (gate is not None and gate.kind == "exited"),
        )

    def _command(self, table: TomlTable) -> Command:
        fix = 'write command = ["engine", "--option", "value"], one element a word; no shell reads it'
        value = table.content.get("command")
        if value is None:
            raise table.missing("command", fix)
        if not isinstance(value, list) or not value:
            raise table.wrong("command", "not a list of texts", fix)
        where = f"{table.path}: {table.place('command')}"
        elements: list[Template | tuple[Template, ...]] = []
        for place, item in enumerate(value):
            if isinstance(item, list) and item:
                group = [self._element(part, f"{where}[{place}][{n}]", False) for n, part in enumerate(item)]
                elements.append(tuple(group))
            else:
                elements.append(self._element(item, f"{where}[{place}]", place > 0))
        return Command(tuple(elements))

    def _element(self, item: object, where: str, args: bool) -> Template:
        if not isinstance(item, str):
            raise ConfigError(f"{where} is {_shown(item)}: not a text", f'write "{item}"')
        return placeholders.read(item, where, self.ports, args=args)

    def _gate(self, above: TomlTable) -> GateSpec:
        table = above.below("gate", GATE)
        kind = table.choice("kind", GATES)
        target, settle = self.template(table, "target"), table.seconds("settle")
        examples = {"tcp": "{address:8000}", "http": "http://{address:8000}/health", "line": "ready"}
        examples["pattern"] = "listening on .*:8000"
        if kind in examples and target is None:
            raise table.missing("target", f'a gate of kind {kind} needs one: target = "{examples[kind]}"')
        if kind not in examples and target is not None:
            raise table.wrong(
                "target", f"a gate of kind {kind} has none", f"leave it out, or use {', '.join(examples)}"
            )
        if kind != "started" and settle is not None:
            raise table.wrong("settle", "only a gate of kind started has it", "leave it out")
        return GateSpec(kind, target, settle or 0.0)

    def health(self, top: TomlTable) -> HealthSpec | None:
        if "health" not in top.content:
            return None
        table = top.below("health", HEALTH)
        url, path, port = self.template(table, "url"), table.text("path"), table.content.get("port")
        if url is not None and (path is not None or port is not None):
            raise table.wrong("url", "said beside path or port", "say the url, or path and port")
        if path is not None and not path.startswith("/"):
            raise table.wrong("path", "not an absolute path", 'write path = "/health"')
        if isinstance(port, str) and port not in (*self.ports, "port"):
            raise table.wrong(
                "port", "no port of [ports]", did_you_mean(port, self.ports, "Give a number or such a name")
            )
        if port is not None and not isinstance(port, str):
            _number(table, "port", port)
        metrics = self.template(table, "metrics")
        names = {name: table.texts(name) for name in METRICS}
        for name, said in names.items():
            if said and metrics is None:
                raise table.missing("metrics", f'{name} is read there: write metrics = "/metrics"')
        canary = self.template(table, "canary")
        body = table.table("canary_body")
        if (canary is None) != (not body):
            raise table.missing(
                "canary" if canary is None else "canary_body",
                'say both: canary = "/v1/completions" and canary_body = { prompt = "1", max_tokens = 1 }',
            )
        return HealthSpec(url, path or "/health", port, metrics, names, canary, body, table.flag("insecure"))


def _step_lines(top: TomlTable) -> tuple[StepLine, ...]:
    """[progress]: regular expressions, without placeholders, by the step that they tell of."""
    table = top.below("progress", PROGRESS)
    found = []
    for step in PROGRESS:
        for pattern in table.texts(step):
            if wrong := patterns.problem(pattern):
                raise table.wrong(
                    step, f"{_shown(pattern)} is {wrong}", "write a pattern like 'loading +(?P<percent>[0-9]+)%'"
                )
            groups = re.compile(pattern).groupindex
            unknown = next((name for name in groups if name not in SHARE_GROUPS), None)
            if unknown is not None:
                known = f"The groups are {', '.join(SHARE_GROUPS)}"
                raise table.wrong(
                    step, f"the group {unknown} means nothing", did_you_mean(unknown, SHARE_GROUPS, known)
                )
            if ("done" in groups) != ("total" in groups):
                raise table.wrong(step, "only one of the groups done and total is there", "say both, or percent")
            found.append(StepLine(REST if step == "over" else step, pattern))
    if len(found) > MOST_PATTERNS:
        raise top.wrong("progress", f"more than {MOST_PATTERNS} patterns", "keep those that tell most")
    return tuple(found)


def _port(top: TomlTable, name: str) -> PortSpec:
    ports = top.below("ports", None)
    if name in PORT_NAMES or name.isdigit() or not _NAME.fullmatch(name):
        raise ports.wrong(name, f"a port cannot be called {name}", f"call it otherwise; the API's port is called {API}")
    value = ports.content[name]
    default_on = LEADER if name == API else ALL
    if not isinstance(value, dict):
        return PortSpec(name, _number(ports, name, value), name == API, default_on)
    table = ports.below(name, PORT)
    if "number" not in value:
        raise table.missing("number", "write number = 8000")
    return PortSpec(
        name,
        _number(table, "number", value["number"]),
        table.flag("external", name == API),
        table.choice("on", (LEADER, WORKER, ALL), default_on),
    )


def _number(table: TomlTable, key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65535:
        raise table.wrong(key, "no port", f"write {key} = 8000, a number from 1 to 65535 without quotes")
    return value


def _name(table: TomlTable, key: str) -> str:
    name = table.text(key)
    if name is None:
        raise table.missing(key, f'write {key} = "my-engine"')
    if not _NAME.fullmatch(name):
        raise table.wrong(key, "no name", "use letters, digits, dots, - and _, 63 at most")
    return name


def _owned(top: TomlTable) -> tuple[str, ...]:
    owned = top.texts("owned")
    for option in owned:
        if not option.startswith("-"):
            raise top.wrong("owned", f"{option!r} is no option", 'write owned = ["--rank", "-r"]')
    return owned


def _shown(value: object) -> str:
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
