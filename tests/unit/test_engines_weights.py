"""Which weight files a rank reads, by --model and --load-format."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from launcher.engines import weights
from launcher.model import Weights
from launcher.settings import Settings


def folder(path: Path, **sizes: int) -> str:
    path.mkdir(parents=True, exist_ok=True)
    for name, size in sizes.items():
        (path / name.replace("__", ".")).write_bytes(bytes(size))
    return str(path)


def names(found: dict[str, int]) -> dict[str, int]:
    return {os.path.basename(path): size for path, size in found.items()}


def test_a_folder_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    model = folder(tmp_path / "m", model_10__safetensors=10, model_2__safetensors=2, config__json=5, old__bin=50)
    assert list(names(weights.find(Weights(model), {})).items()) == [
        ("model_2.safetensors", 2),
        ("model_10.safetensors", 10),
    ]


def test_an_index_says_which_files_belong_to_it(tmp_path: Path) -> None:
    model = folder(tmp_path / "m", a__safetensors=1, b__safetensors=2, consolidated__safetensors=3)
    assert names(weights.find(Weights(model), {})) == {"a.safetensors": 1, "b.safetensors": 2}
    index = Path(model, "model.safetensors.index.json")
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "not-there.safetensors"}}))
    assert names(weights.find(Weights(model), {})) == {"a.safetensors": 1}
    for broken in ("{", "[]", '{"weight_map": 3}', "[" * 100_000):
        index.write_text(broken)
        assert names(weights.find(Weights(model), {})) == {"a.safetensors": 1, "b.safetensors": 2}
    assert names(weights.find(Weights(model, ("consolidated*",)), {})) == {"consolidated.safetensors": 3}


def test_one_file_and_a_folder_of_one_format(tmp_path: Path) -> None:
    model = folder(tmp_path / "m", model__gguf=7)
    assert names(weights.find(Weights(f"{model}/model.gguf"), {})) == {"model.gguf": 7}
    model = folder(tmp_path / "b", pytorch_model__bin=7, training_args__bin=1)
    assert names(weights.find(Weights(model), {})) == {"pytorch_model.bin": 7}


def test_a_model_in_the_hubs_cache_is_followed_to_its_blobs(tmp_path: Path) -> None:
    hub = tmp_path / "hub" / "models--a--b"
    folder(hub / "blobs", abc=9)
    folder(hub / "snapshots" / "1")
    (hub / "snapshots" / "1" / "model.safetensors").symlink_to("../../blobs/abc")
    for environ in ({"HF_HUB_CACHE": str(tmp_path / "hub")}, {"HF_HOME": str(tmp_path)}):
        assert weights.find(Weights("a/b"), environ) == {str((hub / "blobs" / "abc").resolve()): 9}
    folder(hub / "snapshots" / "2")
    assert weights.find(Weights("a/b"), {"HF_HOME": str(tmp_path)}) == {}, "two revisions: which one is unknown"


@pytest.mark.parametrize("model", ["/not/there", "a/b", "a\0b", "x" * 5000, ""])
def test_nothing_is_there(tmp_path: Path, model: str) -> None:
    assert weights.find(Weights(model), {"HF_HOME": str(tmp_path)}) == {}


@pytest.mark.parametrize(
    ("args", "rank", "patterns"),
    [
        ((), 0, ()),
        (("--load-format", "auto"), 0, ()),
        (("--load-format=safetensors",), 0, ()),
        (("--load-format", "mistral"), 0, ("consolidated*",)),
        (("--load-format", "sharded_state"), 0, ("model-rank-0-part-*", "model-rank-1-part-*")),
        (("--load-format", "sharded_state"), 1, ("model-rank-2-part-*", "model-rank-3-part-*")),
    ],
)
def test_what_the_load_format_reads(args: tuple[str, ...], rank: int, patterns: tuple[str, ...]) -> None:
    settings = Settings(model="/m", tp=4, engine_args=args)
    assert weights.of_settings(settings, 2, rank) == Weights("/m", patterns)


@pytest.mark.parametrize("load_format", ["dummy", "runai_streamer", "tensorizer", "ipc_cache", "remote", "of_tomorrow"])
def test_what_reads_no_files_or_unknown_ones(load_format: str) -> None:
    assert weights.of_settings(Settings(model="/m", engine_args=("--load-format", load_format)), 1, 0) is None
    assert weights.of_settings(Settings(model="s3://bucket/m"), 1, 0) is None
    assert weights.of_settings(Settings(), 1, 0) is None
