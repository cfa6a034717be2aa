"""The model's folder: does it exist, is it complete, and which model is it?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.common.folders import home
from launcher.common.text import size_text
from launcher.engines.weights import in_folder
from launcher.errors import UNREPLACED
from launcher.preflight.finding import Finding, fail, ok, skipped, warn
from launcher.preflight.pod import Node

POINTER = b"version https://git-lfs"  # a Git LFS file whose content was not fetched
MOST_CONFIG = 16 << 20
FETCH = "copy the model again, whole (a download that was cut off leaves such a folder)"


def check(node: Node) -> Iterator[Finding]:
    model = node.settings.model
    if not model:
        yield skipped("model", "--model is not given")
        return
    if "$" in model:
        yield fail(
            "model",
            f"{model} is a variable that nothing has replaced",
            "the engine takes it for a name on a hub and fails",
            UNREPLACED,
        )
        return
    if "://" in model:
        yield skipped("model", f"{model} is in an object store, from which the engine streams it: not looked at here")
        return
    path = Path(model)
    try:
        there, is_file = path.exists(), path.is_file()
    except (OSError, ValueError) as error:  # the name is too long or contains a NUL byte
        yield fail("model", f"{model!r} cannot be a path: {error}", "the engine cannot open it", "correct --model")
        return
    if not there:
        yield _absent(node, model)
    elif is_file:
        yield ok("model", f"{model} is a file of {size_text(path.stat().st_size)}")
    else:
        yield from _folder(node, path)


def weight_bytes(model: str | None) -> int:
    """Size of the weight files of a model in a folder; 0: the model is a hub name, or nothing is readable."""
    if not model:
        return 0
    path = Path(model)
    try:
        if path.is_file():
            return path.stat().st_size
        return sum(in_folder(model).values())
    except OSError:
        return 0


def _absent(node: Node, model: str) -> Finding:
    if model.startswith(("/", "./", "../", "~")):
        level = fail if node.requirements.torch else warn
        return level(
            "model",
            f"{model} does not exist in this pod",
            "the engine takes it for a name on a hub and fails",
            "see volumeMounts and the path: `ls` its parent in this pod",
        )
    if not node.requirements.torch:
        return skipped("model", f"{model} is no folder: nothing to look at")
    offline = node.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    cache = Path(
        node.environ.get("HF_HUB_CACHE")
        or Path(node.environ.get("HF_HOME") or Path(home(node.environ), ".cache/huggingface")) / "hub"
    )
    cached = (cache / ("models--" + model.replace("/", "--"))).is_dir()
    if cached:
        return ok("model", f"{model} is in the hub's cache {cache}")
    if offline:
        return fail(
            "model",
            f"{model} is not in {cache}, and HF_HUB_OFFLINE is set",
            "it can be loaded neither from the cache nor from the hub",
            "fill the cache before, unset HF_HUB_OFFLINE, or give --model a folder",
        )
    return skipped("model", f"{model} is a name on a hub: every pod downloads it into {cache}")


def _folder(node: Node, path: Path) -> Iterator[Finding]:
    try:
        raw = _read(path / "config.json")
        sizes = in_folder(str(path))
    except OSError as error:
        yield fail(
            "model",
            f"{error.filename}: {error.strerror}",
            "the engine cannot read the model",
            "see that this user may read the mounted files, and that the mount is alive",
        )
        return
    digest = "sha256:" + hashlib.sha256(raw).hexdigest()[:16] if raw is not None else ""
    facts = {"model.config": digest}
    config = _json(raw)
    if raw is not None and not isinstance(config, dict):
        yield fail("model", f"{path / 'config.json'} is no JSON object", "the engine reads it first", FETCH, facts)
        return
    pointers = [name for name, size in sizes.items() if size < 1024 and _is_pointer(path / name)]
    missing = sorted(_indexed(path) - set(sizes))
    if pointers:
        what = f"{len(pointers)} of {len(sizes)} weight files are Git LFS pointers ({pointers[0]})"
        yield fail("model", what, "their content was never fetched", "run `git lfs pull` where it was cloned", facts)
    elif missing:
        what = f"{len(missing)} weight files of the index are not there: {', '.join(missing[:3])}"
        yield fail("model", what, "the engine fails while it loads, after minutes", FETCH, facts)
    elif raw is None and not sizes:
        what = f"{path} has no config.json and no weight files"
        yield warn("model", what, "most engines cannot load that", "give --model the folder of config.json", facts)
    elif not sizes and node.requirements.torch and node.requirements.weight_files:
        what = f"{path} has config.json and no weight files"
        yield fail("model", what, "the engine ends with 'cannot find any model weights'", FETCH, facts)
    else:
        kind = (config or {}).get("architectures") or [(config or {}).get("model_type")]
        shown = f"{path}: {kind[0] if kind and kind[0] else 'no config.json'}"
        weights = f"{len(sizes)} weight files, {size_text(sum(sizes.values()))}" if sizes else "no weight files"
        yield ok("model", f"{shown}; {weights}", facts)


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(MOST_CONFIG)
    except FileNotFoundError:
        return None


def _json(raw: bytes | None) -> Any:
    try:
        return None if raw is None else json.loads(raw)
    except ValueError:
        return None


def _indexed(path: Path) -> set[str]:
    index = _json(_read(path / "model.safetensors.index.json"))
    names = index.get("weight_map") if isinstance(index, dict) else None
    return {str(name) for name in names.values()} if isinstance(names, dict) else set()


def _is_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(POINTER)) == POINTER
    except OSError:
        return False
