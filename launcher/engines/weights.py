"""Which weight files a rank reads: those of the model's folder, of a snapshot in the hub's cache, or one file.

Engines take safetensors before other formats. Where an index says which files belong to the model, only those count:
folders often hold the same weights twice (``consolidated.safetensors`` beside ``model-*``).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase

from launcher.common import files
from launcher.common.folders import home
from launcher.engines.arguments import last
from launcher.model import Weights
from launcher.settings import Settings

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".tensors")
_INDEX = "model.safetensors.index.json"
_MOST_INDEX = 16 << 20
_TWICE = "consolidated*"
_OPTIMIZER = ("training_args.bin", "optimizer.*", "scheduler.pt", "rng_state*", "tokenizer*")


def of_settings(settings: Settings, size: int, rank: int) -> Weights | None:
    """The files of ``--model`` that one of ``size`` ranks reads; None: none, or which ones is unknown."""
    load_format = last(settings.engine_args, "--load-format")
    if settings.model is None or "://" in settings.model or load_format not in (None, *_FROM_FILES):
        return None
    if load_format == "sharded_state":  # saved in parts, one for each tensor parallel rank
        share, tp = settings.world // size, settings.tp or 1
        parts = sorted({worker % tp for worker in range(rank * share, (rank + 1) * share)})
        return Weights(settings.model, tuple(f"model-rank-{part}-part-*" for part in parts)) if parts else None
    return Weights(settings.model, (_TWICE,) if load_format == "mistral" else ())


#: Values of --load-format, the same in several engines, that read the files of the model's folder.
_FROM_FILES = (
    *("auto", "safetensors", "hf", "pt", "npcache", "mistral", "gguf", "fastsafetensors", "sharded_state"),
    *("bitsandbytes", "instanttensor", "layered", "flash_rl"),
)


def find(weights: Weights, environ: Mapping[str, str]) -> dict[str, int]:
    """Sizes of the files by real path, in the order in which engines take them; empty: none is there (yet)."""
    folder = weights.model
    try:
        if os.path.isfile(folder):
            return {os.path.realpath(folder): os.stat(folder).st_size}
        if not os.path.isdir(folder):
            folder = _snapshot(weights.model, environ)
        sizes = in_folder(folder) if folder else {}
    except (OSError, ValueError):
        return {}
    names = _chosen(folder, sizes, weights.names)
    return {os.path.realpath(f"{folder}/{name}"): sizes[name] for name in sorted(names, key=_natural)}


def in_folder(folder: str) -> dict[str, int]:
    """Sizes of a folder's weight files by name. Follows symlinks, which the hub's cache consists of."""
    with os.scandir(folder) as entries:
        found = {e.name: e.stat().st_size for e in entries if e.name.endswith(SUFFIXES) and e.is_file()}
    # If both formats exist, engines load safetensors.
    tensors = {name: size for name, size in found.items() if name.endswith(".safetensors")}
    return tensors or found


def _chosen(folder: str, sizes: Mapping[str, int], patterns: tuple[str, ...]) -> list[str]:
    if patterns:
        return [name for name in sizes if any(fnmatchcase(name, pattern) for pattern in patterns)]
    indexed = _indexed(f"{folder}/{_INDEX}") & set(sizes)
    if indexed:
        return list(indexed)
    plain = [name for name in sizes if not any(fnmatchcase(name, other) for other in (_TWICE, *_OPTIMIZER))]
    return plain or list(sizes)


def _indexed(path: str) -> set[str]:
    try:
        index = json.loads(files.read(path, _MOST_INDEX))
    except (OSError, ValueError, RecursionError):
        return set()
    names = index.get("weight_map") if isinstance(index, dict) else None
    return {str(name) for name in names.values()} if isinstance(names, dict) else set()


def _snapshot(model: str, environ: Mapping[str, str]) -> str:
    """The folder of a hub's model in the cache, if exactly one snapshot is there; empty: none."""
    hub = environ.get("HF_HUB_CACHE") or f"{environ.get('HF_HOME') or f'{home(environ)}/.cache/huggingface'}/hub"
    snapshots = f"{hub}/models--{model.replace('/', '--')}/snapshots"
    names = os.listdir(snapshots)
    return f"{snapshots}/{names[0]}" if len(names) == 1 else ""


def _natural(name: str) -> list[tuple[int, str]]:
    """Numbers by value: model-2 before model-10."""
    return [
        (int(part), "") if part.isascii() and part.isdigit() else (0, part) for part in re.split(r"(\d{1,9})", name)
    ]
