"""The manifests of ``k8s/`` as data: base and components, with their comments, combined as kustomize would.

It supports only what those layers use: ``resources``, and strategic merge patches by kind. It does not transform names,
labels or sizes: ``objects.py``, which knows them all, sets them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.errors import ConfigError
from launcher.render import text
from launcher.render.text import KEYS, Comments, Document

_HERE = Path(__file__).resolve().parent
#: in an installed package, and in a checkout
_PLACES = (_HERE / "k8s", _HERE.parent.parent / "k8s")


def folder() -> Path:
    """The folder of the manifests."""
    for place in _PLACES:
        if (place / "base" / "kustomization.yaml").is_file():
            return place
    raise ConfigError(
        "the manifests of k8s/ are not installed with this launcher", "install it from its wheel or checkout"
    )


def load(names: Sequence[str]) -> list[Document]:
    """The objects of these folders of ``k8s/``, each layer applied over the previous ones."""
    objects: list[Document] = []
    for name in names:
        place = folder() / name
        (kustomization,) = text.read((place / "kustomization.yaml").read_text(encoding="utf-8"))
        for resource in kustomization.data.get("resources", []):
            objects += text.read((place / resource).read_text(encoding="utf-8"))
        for patch in kustomization.data.get("patches", []):
            said = patch["patch"] if "patch" in patch else (place / patch["path"]).read_text(encoding="utf-8")
            for change in text.read(said):
                _apply(objects, change)
    return objects


def _apply(objects: list[Document], change: Document) -> None:
    for target in objects:
        if target.data["kind"] == change.data["kind"]:
            name = target.data["metadata"]["name"]
            merge(target, change.data, change.comments)
            target.data["metadata"]["name"] = name


def merge(target: Document, change: dict[str, Any], comments: Comments | None = None) -> None:
    """Merge ``change`` into an object: mappings by field, lists by the key of their entries; replace all else."""
    target.data = _merged(target.data, change)
    target.comments.update({k: v for k, v in (comments or {}).items() if k})


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    result = dict(old)
    for key, value in new.items():
        before = result.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            result[key] = _merged(before, value)
        elif isinstance(value, list) and isinstance(before, list) and key in KEYS:
            result[key] = _merged_list(key, before, value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def _merged_list(name: str, old: list[Any], new: list[Any]) -> list[Any]:
    key = KEYS[name]
    entries = {entry[key]: entry for entry in old}
    for entry in new:
        there = entries.get(entry[key])
        # A variable has a value or a source, and a volume has one kind: replace such an entry, do not merge it.
        mixed = name == "env" or (name == "volumes" and there and there.keys() != entry.keys())
        entries[entry[key]] = _merged(there, entry) if there and not mixed else copy.deepcopy(entry)
    return list(entries.values())
