"""Reads YAML with its comments and writes it so that equal data always yields equal text.

Keys are sorted, except for those that a reader looks for first. A comment belongs to the field or entry right below it.
PyYAML parses but drops comments, so this module collects them from the lines and writes the text itself.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.errors import ConfigError

Path = tuple[str, ...]
Comments = dict[Path, tuple[str, ...]]

#: the keys that identify list entries, as in Kubernetes' own merges
KEYS = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "ports": "name",
    "imagePullSecrets": "name",
}
FIRST = ("apiVersion", "kind", "metadata", "spec", "name", "namespace")
#: fields sorted under another name than their own: one comment covers both probes
_SORTED_AS = {"startupProbe": "liveness"}

# Without quotes, _PLAIN is a string to every YAML parser unless it matches _NOT_TEXT, too.
_PLAIN = re.compile(r"[A-Za-z_/.][\w./@%+-]*(?::[\w./@%+-]+)*")
_NOT_TEXT = re.compile(r"(?i)y|n|yes|no|true|false|on|off|null|\.nan|[-+.]?(\.inf|\d).*")


@dataclass
class Document:
    """One object and the comments on its parts; the empty path is the object itself."""

    data: dict[str, Any]
    comments: Comments = field(default_factory=dict)


def yaml(what: str = "reading an InferenceService") -> Any:
    """Import PyYAML, which few commands need. ``what``: the one that needs it, for the error."""
    try:
        import yaml as module
    except ImportError:
        fix = f"install it for this Python: {sys.executable} -m pip install 'PyYAML>=6.0'"
        if sys.flags.no_site:  # the self-contained launcher of images/, which sees no installed package
            fix = "run the command on your machine, where the launcher is installed or from its checkout (./run.sh)"
        raise ConfigError(f"{what} needs PyYAML, which is not installed here", fix) from None
    return module


def step(parent: str, index: int, entry: Any) -> str:
    """The path element of a list entry: its key if it has one, else its index."""
    key = KEYS.get(parent, "")
    if isinstance(entry, Mapping) and isinstance(entry.get(key), str):
        return f"[{entry[key]}]"
    return f"[{index}]"


# ---------------------------------------------------------------------------------------------------------- reading


def read(text: str) -> list[Document]:
    """Every document of a file, with its comments."""
    module = yaml()
    lines = text.splitlines()
    loader = module.SafeLoader(text)
    found = []
    try:
        while loader.check_node():
            node = loader.get_node()
            data = loader.construct_document(node)
            if isinstance(data, dict):
                found.append(Document(data, dict(_comments(node, data, lines))))
    finally:
        loader.dispose()
    return found


def _comments(node: Any, data: Any, lines: list[str], at: Path = ()) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """The comment above each field and entry."""
    if not at and (above := _above(lines, node.start_mark.line)):
        yield at, above
    if isinstance(data, dict):
        for (key_node, value_node), (key, value) in zip(node.value, data.items(), strict=True):
            line = key_node.start_mark.line
            # The first field of a list entry shares the entry's line, so the comment above is the entry's.
            # Likewise, the comment above the document's first field is the document's.
            spoken_for = line == node.start_mark.line and (not at or at[-1].startswith("["))
            if not spoken_for and (above := _above(lines, line)):
                yield (*at, str(key)), above
            yield from _comments(value_node, value, lines, (*at, str(key)))
    elif isinstance(data, list):
        for index, (entry_node, entry) in enumerate(zip(node.value, data, strict=True)):
            place = (*at, step(at[-1] if at else "", index, entry))
            if entry_node.start_mark.line != node.start_mark.line or not node.flow_style:
                above = _above(lines, entry_node.start_mark.line)
                if above:
                    yield place, above
            yield from _comments(entry_node, entry, lines, place)


def _above(lines: list[str], line: int) -> tuple[str, ...]:
    first = line
    while first > 0 and lines[first - 1].lstrip().startswith("#"):
        first -= 1
    return tuple(text.strip().removeprefix("#").removeprefix(" ") for text in lines[first:line])


# ---------------------------------------------------------------------------------------------------------- writing


def write(document: Document) -> str:
    """One object as text, with a newline at the end."""
    lines = [*_said(document.comments, (), 0), *_mapping(document.data, document.comments, (), 0)]
    return "\n".join(lines) + "\n"


def _said(comments: Comments, at: Path, indent: int) -> list[str]:
    return [f"{' ' * indent}# {line}".rstrip() for line in comments.get(at, ())]


def _sorted(data: Mapping[str, Any]) -> list[str]:
    return sorted(data, key=lambda key: (FIRST.index(key) if key in FIRST else len(FIRST), _SORTED_AS.get(key, key)))


def _mapping(data: Mapping[str, Any], comments: Comments, at: Path, indent: int) -> list[str]:
    lines: list[str] = []
    for key in _sorted(data):
        place, value = (*at, key), data[key]
        lines += _said(comments, place, indent)
        head = f"{' ' * indent}{scalar(key)}:"
        if isinstance(value, dict) and value:
            lines += [head, *_mapping(value, comments, place, indent + 2)]
        elif isinstance(value, list) and value:
            lines += [head, *_list(value, comments, place, indent)]
        else:
            lines.append(f"{head} {scalar(value)}")
    return lines


def _list(data: list[Any], comments: Comments, at: Path, indent: int) -> list[str]:
    lines: list[str] = []
    for index, entry in enumerate(data):
        place = (*at, step(at[-1], index, entry))
        lines += _said(comments, place, indent)
        if isinstance(entry, dict) and entry:
            inner = _mapping(entry, comments, place, indent + 2)
            # A comment on the entry's first field goes above the entry.
            while inner[0].lstrip().startswith("#"):
                lines.append(" " * indent + inner.pop(0).lstrip())
            lines += [f"{' ' * indent}- {inner[0].lstrip()}", *inner[1:]]
        elif isinstance(entry, list) and entry:
            raise TypeError(f"a list in a list at {at}: no Kubernetes object that we write has one")
        else:
            lines.append(f"{' ' * indent}- {scalar(entry)}")
    return lines


def scalar(value: Any) -> str:
    """One value, written so that every YAML parser reads it back unchanged."""
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and not _NOT_TEXT.fullmatch(value):
            return value
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(value)
