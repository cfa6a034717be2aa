"""Reading a resource field by field: each error names the path, the value and what to write instead."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from launcher.common.numbers import is_whole
from launcher.common.text import did_you_mean
from launcher.errors import ConfigError


@dataclass(frozen=True)
class Field:
    """A value of the resource and its path."""

    path: str
    value: Any

    def error(self, problem: str, fix: str) -> ConfigError:
        return ConfigError(f"{self.path}: {problem}", fix)

    def mapping(
        self, known: Collection[str] | None = None, reserved: Mapping[str, str] | None = None
    ) -> Mapping[str, Any]:
        """A mapping with known fields only; ``reserved`` fields are rejected with their reason."""
        if not isinstance(self.value, Mapping):
            raise self.error(f"{_shown(self.value)} is no mapping", "write `field: value` lines below it")
        for name in self.value:
            if reserved and name in reserved:
                raise Field(f"{self.path}.{name}", None).error(reserved[name], "leave it out")
            if known is not None and name not in known:
                fix = did_you_mean(str(name), known) or f"known here: {', '.join(sorted(known))}"
                raise Field(f"{self.path}.{name}", None).error("there is no such field", fix)
        return self.value

    def __contains__(self, name: str) -> bool:
        return isinstance(self.value, Mapping) and name in self.value

    def __getitem__(self, name: str) -> Field:
        """A required field."""
        if name not in self:
            raise Field(f"{self.path}.{name}", None).error("is missing", f"add {name}")
        return Field(f"{self.path}.{name}", self.value[name])

    def get(self, name: str, default: Any = None) -> Field:
        return Field(f"{self.path}.{name}", self.value[name] if name in self else default)

    def entries(self) -> Iterator[Field]:
        if not isinstance(self.value, list):
            raise self.error(f"{_shown(self.value)} is no list", "write `- entry` lines below it")
        for index, value in enumerate(self.value):
            yield Field(f"{self.path}[{index}]", value)

    def text(self) -> str:
        if not isinstance(self.value, str) or not self.value:
            fix = "quote it" if isinstance(self.value, (int, float, bool)) else "write text"
            raise self.error(f"{_shown(self.value)} is no text", fix)
        return self.value

    def quiet_text(self) -> str:
        """Text, possibly empty, that may be a secret: errors do not show it."""
        if not isinstance(self.value, str):
            kind = {bool: "true or false", int: "a number", float: "a number", type(None): "nothing"}
            raise self.error(f"is {kind.get(type(self.value), 'no text')}, not text", "quote it")
        return self.value

    def texts(self) -> tuple[str, ...]:
        return tuple(entry.quiet_text() for entry in self.entries())

    def strings(self) -> dict[str, str]:
        """A mapping of text to text, as labels are."""
        for name, value in self.mapping().items():
            if not isinstance(value, str):
                raise Field(f"{self.path}.{name}", value).error(f"{_shown(value)} is no text", "quote it")
        return dict(self.value)

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            raise self.error(f"{_shown(self.value)} is neither true nor false", "write true or false, without quotes")
        return self.value

    def number(self, least: int) -> int:
        if not isinstance(self.value, int) or isinstance(self.value, bool) or self.value < least:
            quoted = isinstance(self.value, str) and is_whole(self.value) and int(self.value) >= least
            fix = "leave the quotes out" if quoted else f"write {least} or more"
            raise self.error(f"{_shown(self.value)} is no whole number from {least} on", fix)
        return self.value


def _shown(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
