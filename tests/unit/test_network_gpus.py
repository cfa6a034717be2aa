"""Counting GPUs from device files and from the text of nvidia-smi -L."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.node.gpus import parse_smi, visible_gpus

SMI = """\
GPU 0: NVIDIA H200 (UUID: GPU-3a1b7c9d-0000-1111-2222-333344445555)
GPU 1: NVIDIA H200 (UUID: GPU-3a1b7c9d-0000-1111-2222-333344445556)
GPU 2: NVIDIA H200 (UUID: GPU-99999999-0000-1111-2222-333344445557)
GPU 3: NVIDIA H200 (UUID: GPU-88888888-0000-1111-2222-333344445558)
"""
MIG = """\
GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77)
  MIG 1g.5gb      Device  0: (UUID: MIG-c6d4f1ef-42e4-5de3-91c7-45d71c87eb3f)
  MIG 1g.5gb      Device  1: (UUID: MIG-cba663e8-9bed-5b25-b243-5985ef7c9beb)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-6d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a78)
"""
FAILED = "Failed to initialize NVML: Driver/library version mismatch\n"


@pytest.fixture
def dev(tmp_path: Path) -> Path:
    """What the NVIDIA container toolkit puts into /dev of a pod with GPUs 2 and 5 of a node."""
    for name in ("nvidia2", "nvidia5", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", "null"):
        (tmp_path / name).touch()
    (tmp_path / "nvidia-caps").mkdir()
    return tmp_path


def test_device_files(dev: Path) -> None:
    assert visible_gpus({}, dev).count == 2
    assert visible_gpus({"NVIDIA_VISIBLE_DEVICES": "all"}, dev).count == 2
    assert visible_gpus({"NVIDIA_VISIBLE_DEVICES": "void"}, dev).count == 2


def test_none(tmp_path: Path) -> None:
    assert visible_gpus({}, tmp_path).count == 0
    assert visible_gpus({}, tmp_path / "absent").count == 0
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "GPU-3a1b"}, tmp_path).count == 0
    assert visible_gpus({}, tmp_path, "No devices found.\n").count == 0


def test_another_maker_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "kfd").touch()
    gpus = visible_gpus({}, tmp_path)
    assert gpus.count is None
    assert "kfd" in gpus.why


def test_nvidia_smi_is_the_better_witness(dev: Path) -> None:
    gpus = visible_gpus({}, dev, SMI)
    assert (gpus.count, gpus.model, gpus.why) == (4, "NVIDIA H200", "nvidia-smi -L")


def test_nvidia_smi_that_failed(dev: Path) -> None:
    assert visible_gpus({}, dev, FAILED).count == 2


def test_mig() -> None:
    assert [g.model for g in parse_smi(MIG)] == ["NVIDIA A100-SXM4-40GB MIG 1g.5gb"] * 2 + ["NVIDIA A100-SXM4-40GB"]


@pytest.mark.parametrize(
    ("mask", "count"),
    [
        ("", 0),
        ("-1", 0),
        ("NoDevFiles", 0),
        ("0", 1),
        ("0,1,2,3", 4),
        ("3, 1", 2),
        ("0,9,1", 1),
        ("0,-1,1", 1),
        ("1,1,2", 1),
        ("GPU-9999", 1),
        ("GPU-3a1b7c9d", 0),
        ("GPU-3a1b7c9d-0000-1111-2222-333344445556,GPU-8", 2),
    ],
)
def test_cuda_visible_devices(tmp_path: Path, mask: str, count: int) -> None:
    gpus = visible_gpus({"CUDA_VISIBLE_DEVICES": mask}, tmp_path, SMI)
    assert gpus.count == count
    assert gpus.model == ("NVIDIA H200" if count else "")


def test_cuda_visible_devices_over_device_files(dev: Path) -> None:
    for mask, count in (("0", 1), ("0,1", 2), ("0,1,2", 2), ("5", 0), ("GPU-a,GPU-b,GPU-c", 2), ("", 0)):
        assert visible_gpus({"CUDA_VISIBLE_DEVICES": mask}, dev).count == count, mask
