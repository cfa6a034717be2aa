"""vLLM's CPU platform with a Ray resource name.

vLLM refuses Ray where the platform has no `ray_device_key` ("current platform cpu does not support ray"). With the key "GPU"
it asks Ray for GPUs, which `ray start --num-gpus` declares; nothing looks for real ones.
"""

from vllm.platforms.cpu import CpuPlatform


class CpuWithRayPlatform(CpuPlatform):
    ray_device_key = "GPU"
