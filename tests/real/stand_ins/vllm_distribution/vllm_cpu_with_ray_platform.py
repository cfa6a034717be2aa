# mypy: ignore-errors
# (for the engine's interpreter: vllm is not installed where this repository is checked)
"""vLLM's CPU platform, made able to span hosts with Ray."""

from vllm.platforms.cpu import CpuPlatform


class CpuWithRayPlatform(CpuPlatform):
    # vLLM refuses Ray where there is none ("current platform cpu does not support ray"). With "GPU" it asks Ray for
    # GPUs, which `ray start --num-gpus` declares; nothing looks for real ones.
    ray_device_key = "GPU"

    @classmethod
    def get_device_communicator_cls(cls) -> str:
        return "vllm_cpu_with_ray_network.NetworkCommunicator"
