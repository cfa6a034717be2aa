"""Placeholders in the commands of an engine file: ``"{workers:rpc}"`` becomes ``10.0.0.2:50052,10.0.0.3:50052``.

Templates are parsed with the file, so that a mistyped placeholder is an error before anything starts, and filled for
each rank. If a placeholder has no value on a rank (no workers in a group of one, no ``--model``), a nested list that
holds it is left out of the command; anywhere else it is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from launcher.common.addresses import host_port
from launcher.common.numbers import is_whole
from launcher.common.text import did_you_mean
from launcher.engines import arguments
from launcher.engines.base import PlanContext
from launcher.errors import ConfigError

#: Every placeholder: what it is, and what may follow its colon.
PLACEHOLDERS: Mapping[str, str] = {
    "model": "--model",
    "served_model_name": "the first --served-model-name, else --model",
    "tp": "--tp, 1 if not given",
    "pp": "--pp, 1 if not given",
    "dp": "--dp, 1 if not given",
    "world": "tp x pp x dp",
    "rank": "this rank, 0 is the leader",
    "size": "ranks in the group",
    "gpus": "GPUs of this pod",
    "leader": "IP of rank 0; {leader:PORT} is host:port",
    "address": "own IP; {address:PORT} is host:port",
    "addresses": "IPs of all ranks by rank, comma-separated; {addresses:PORT} with the port on each",
    "workers": "the same without rank 0",
    "bind": "where a server for callers outside listens; {bind:PORT} is host:port",
    "port": "the API's port; {port:NAME} is a port of [ports]",
    "master_port": "a port on the leader for the ranks to meet at, another each epoch",
    "python": "the engine's interpreter",
    "epoch": "number of the epoch",
    "env": "{env:NAME} is a variable of the pod",
    "args": "all after --, each an element of its own",
}
ARGS = "args"
HOSTS = ("leader", "address", "addresses", "workers", "bind")
PORT_NAMES = ("port", "master_port")  #: names of ports after a colon, besides those of [ports]


@dataclass(frozen=True)
class Slot:
    """One placeholder of a template."""

    name: str
    detail: str = ""  #: what stood after the colon

    def __str__(self) -> str:
        return f"{{{self.name}:{self.detail}}}" if self.detail else f"{{{self.name}}}"


@dataclass(frozen=True)
class Template:
    """A text with placeholders, and its place in the file (``my.toml: leader.command[2]``)."""

    where: str
    parts: tuple[str | Slot, ...]

    @property
    def slots(self) -> tuple[Slot, ...]:
        return tuple(part for part in self.parts if isinstance(part, Slot))

    @property
    def is_args(self) -> bool:
        return self.parts == (Slot(ARGS),)


@dataclass(frozen=True)
class Command:
    """The elements of a command; a tuple among them is left out if a placeholder in it has no value."""

    elements: tuple[Template | tuple[Template, ...], ...]

    @property
    def templates(self) -> Iterator[Template]:
        for element in self.elements:
            yield from element if isinstance(element, tuple) else (element,)

    @property
    def places_args(self) -> bool:
        return any(template.is_args for template in self.templates)


@dataclass(frozen=True)
class Values:
    """The values of placeholders on one rank."""

    context: PlanContext
    rank: int
    port: int  #: of the API
    master_port: int
    interpreter: str
    ports: Mapping[str, int]  #: by name
    environ: Mapping[str, str] = field(repr=False)

    def of(self, slot: Slot) -> str | None:
        """The value of a placeholder; None if it has none."""
        value = _VALUES[slot.name](self, slot.detail)
        return None if value in (None, "") else value

    def number(self, detail: str) -> int:
        """The port after a colon."""
        if is_whole(detail):
            return int(detail)
        return {"port": self.port, "master_port": self.master_port, **self.ports}[detail]


def read(text: str, where: str, ports: Collection[str], *, args: bool = False) -> Template:
    """A template from the text of a file.

    Args:
        ports: names of the file's [ports].
        args: ``{args}`` may be this text as a whole.
    Raises:
        ConfigError: braces that do not match, or a placeholder that does not exist; the nearest one is named.
    """
    parts: list[str | Slot] = []
    literal, rest = "", text
    while rest:
        head, brace, rest = _next_brace(rest)
        literal += head
        if not brace:
            break
        if rest.startswith(brace):
            literal, rest = literal + brace, rest[1:]
            continue
        inner, closed, rest = rest.partition("}") if brace == "{" else ("", "", rest)
        if not closed or "{" in inner:
            raise ConfigError(
                f"{where}: {text!r} has a {brace} without its other half", f"write {brace}{brace} for the character"
            )
        if literal:
            parts.append(literal)
        parts.append(_slot(inner, where, ports))
        literal = ""
    if literal:
        parts.append(literal)
    template = Template(where, tuple(parts))
    if Slot(ARGS) in parts and not (args and template.is_args):
        raise ConfigError(
            f"{where}: {text!r} holds {{args}}, which stands for a list",
            'give it an element of its own in a command: ["engine", "--flag", "{args}"]',
        )
    return template


def fill(template: Template, values: Values) -> str:
    """A template with its values.

    Raises:
        ConfigError: a placeholder has no value here; the text says why and what to do.
    """
    found, missing = _fill(template, values)
    if missing is not None:
        why, fix = _missing(missing, values)
        raise ConfigError(f"{template.where}: {missing} has no value: {why}", fix)
    return found


def command(template: Command, values: Values, more: Sequence[str]) -> tuple[str, ...]:
    """A command as its elements, ``more`` appended."""
    argv: list[str] = []
    for element in template.elements:
        if isinstance(element, Template):
            if element.is_args:
                argv += values.context.settings.engine_args
            else:
                argv.append(fill(element, values))
            continue
        filled = [_fill(item, values) for item in element]
        if all(missing is None for _, missing in filled):
            argv += [text for text, _ in filled]
    return (*argv, *more)


def secrets(template: Template) -> tuple[str, ...]:
    """Variables in a template that are named like a secret."""
    return tuple(
        s.detail for s in template.slots if s.name == "env" and arguments.is_secret(s.detail.replace("_", "-"))
    )


# ------------------------------------------------------------------------------------------------- reading


def _next_brace(text: str) -> tuple[str, str, str]:
    places = [place for place in (text.find("{"), text.find("}")) if place >= 0]
    if not places:
        return text, "", ""
    place = min(places)
    return text[:place], text[place], text[place + 1 :]


def _slot(inner: str, where: str, ports: Collection[str]) -> Slot:
    name, colon, detail = inner.partition(":")
    known = (*PORT_NAMES, *ports)
    if name not in PLACEHOLDERS:
        raise ConfigError(
            f"{where}: {{{inner}}} is no placeholder",
            did_you_mean(name, PLACEHOLDERS, f"There are {', '.join(PLACEHOLDERS)}; write {{{{ and }}}} for braces"),
        )
    if name == "env":
        if not detail:
            raise ConfigError(f"{where}: {{env}} does not say which variable", "write {env:NAME}")
    elif colon and name not in (*HOSTS, "port"):
        raise ConfigError(f"{where}: {{{inner}}}: {{{name}}} takes nothing after a colon", f"write {{{name}}}")
    elif colon and name == "port":
        if detail not in ports:
            raise ConfigError(
                f"{where}: {{{inner}}} names no port of [ports]",
                did_you_mean(detail, ports, f"There are {', '.join(ports)}" if ports else f"Add {detail} to [ports]"),
            )
    elif colon and not _is_port(detail) and detail not in known:
        raise ConfigError(
            f"{where}: {{{inner}}}: {detail!r} is no port",
            did_you_mean(detail, known, f"Give a number from 1 to 65535, or one of {', '.join(known)}"),
        )
    return Slot(name, detail)


def _is_port(text: str) -> bool:
    return is_whole(text) and 1 <= int(text) <= 65535


# ------------------------------------------------------------------------------------------------- filling


def _fill(template: Template, values: Values) -> tuple[str, Slot | None]:
    """The text, and the first placeholder that has no value."""
    text = ""
    for part in template.parts:
        value = values.of(part) if isinstance(part, Slot) else part
        if value is None:
            assert isinstance(part, Slot)
            return "", part
        text += value
    return text, None


def _missing(slot: Slot, values: Values) -> tuple[str, str]:
    """Why a placeholder has no value, and what to do."""
    own = f'or put it with its option in a list of their own, [..., ["--option", "{slot}"]], which is left out then'
    if slot.name in ("model", "served_model_name"):
        return "--model was not given", f"give --model, {own}"
    if slot.name == "gpus":
        return "the GPUs of this pod are not known", f"give --gpus-per-pod, {own}"
    if slot.name == "env":
        return f"the variable {slot.detail} is not set in this pod, or empty", f"set it, {own}"
    if slot.name == "workers":
        return f"a group of {values.context.identity.size} has no workers", f"give --size 2 or more, {own}"
    return "it is empty", own[3:]


def _hosts(hosts: Sequence[str], values: Values, detail: str) -> str:
    return ",".join(host_port(host, values.number(detail)) if detail else host for host in hosts)


def _gpus(values: Values) -> str | None:
    said = values.context.settings.gpus_per_pod
    count = values.context.facts.gpus if said is None else said
    return None if count is None else str(count)


def _addresses(values: Values) -> tuple[str, ...]:
    return values.context.shared.addresses


_VALUES: Mapping[str, Callable[[Values, str], str | None]] = {
    "model": lambda v, _: v.context.settings.model,
    "served_model_name": lambda v, _: (*v.context.settings.served_model_name, v.context.settings.model)[0],
    "tp": lambda v, _: str(v.context.settings.tp or 1),
    "pp": lambda v, _: str(v.context.settings.pp or 1),
    "dp": lambda v, _: str(v.context.settings.dp or 1),
    "world": lambda v, _: str(v.context.settings.world),
    "rank": lambda v, _: str(v.rank),
    "size": lambda v, _: str(v.context.identity.size),
    "gpus": lambda v, _: _gpus(v),
    "leader": lambda v, detail: _hosts(_addresses(v)[:1], v, detail),
    "address": lambda v, detail: _hosts((_addresses(v)[v.rank],), v, detail),
    "addresses": lambda v, detail: _hosts(_addresses(v), v, detail),
    "workers": lambda v, detail: _hosts(_addresses(v)[1:], v, detail),
    "bind": lambda v, detail: _hosts((v.context.bind,), v, detail),
    "port": lambda v, detail: str(v.number(detail or "port")),
    "master_port": lambda v, _: str(v.master_port),
    "python": lambda v, _: v.interpreter,
    "epoch": lambda v, _: str(v.context.shared.epoch.n),
    "env": lambda v, detail: v.environ.get(detail),
}
