"""What must be equal on all ranks, by name."""

from __future__ import annotations

from pathlib import Path

from launcher.engines.fingerprint import fingerprint, model_identity
from launcher.settings import Settings
from tests.unit.engine_plans import facts

SETTINGS = Settings(
    model="/m", tp=2, ep=True, engine_args=("--max-model-len", "8", "--api-key", "s3cret", "--host", "10.0.0.1")
)


def test_the_names() -> None:
    known = facts(8, "NVIDIA H200", vllm="0.33.0", torch="2.9", nvidia_nccl_cu13="2.28.9", python="3.12.3")
    assert fingerprint(SETTINGS, known, distribution="vllm", backend="mp") == {
        "engine": "vllm",
        "engine.version": "0.33.0",
        "torch.version": "2.9",
        "nccl.version": "2.28.9",
        "model": "/m",
        "tp": "2",
        "pp": "1",
        "dp": "1",
        "ep": "yes",
        "backend": "mp",
        "handoff": "no",
        "gpu.model": "NVIDIA H200",
        "gpu.count": "8",
        "engine.args.max-model-len": "8",
        "engine.args.api-key": "sha256:1ec1c26b50d5",
    }


def test_ray_adds_its_own() -> None:
    settings = SETTINGS.replace(ray_args=("--object-manager-port", "8076", "--num-cpus", "3"))
    found = fingerprint(
        settings, facts(vllm="0.33.0", ray="2.60.0", python="3.12.3"), distribution="vllm", backend="ray"
    )
    assert found["ray.version"] == "2.60.0"
    assert found["python.version"] == "3.12"
    assert found["ray.args.object-manager-port"] == "8076"
    assert "ray.args.num-cpus" not in found


def test_what_is_not_known_is_left_out() -> None:
    found = fingerprint(Settings(), facts(), distribution="vllm", version="0.30.0")
    assert found["engine.version"] == "0.30.0"
    assert not {"torch.version", "nccl.version", "gpu.model", "gpu.count", "model", "backend"} & set(found)
    assert fingerprint(Settings(gpus_per_pod=4), facts(8), distribution="vllm")["gpu.count"] == "4"


def test_a_models_identity(tmp_path: Path) -> None:
    assert model_identity(str(tmp_path)) == {}
    assert model_identity("meta-llama/Llama-3.1-8B") == {}
    assert model_identity("a\0b") == {}
    (tmp_path / "config.json").write_text("{}")
    one = model_identity(str(tmp_path))["model.config"]
    (tmp_path / "config.json").write_text("{ }")
    assert model_identity(str(tmp_path))["model.config"] != one
    assert one == "sha256:44136fa355b3678a"
