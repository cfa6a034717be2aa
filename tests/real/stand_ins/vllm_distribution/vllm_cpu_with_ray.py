"""The entry point of the platform plugin. It imports nothing: vLLM calls it while it is still importing itself."""


def register() -> str:
    """The qualified name of the platform class, as `vllm.platform_plugins` wants it."""
    return "vllm_cpu_with_ray_platform.CpuWithRayPlatform"
