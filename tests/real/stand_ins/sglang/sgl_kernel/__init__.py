# mypy: ignore-errors
# (for the engine's interpreter: torch is not installed where this repository is checked)
"""The little of `sglang-kernel` (CUDA, not installable here) that SGLang needs on a CPU with torch_native attention."""

from collections.abc import Callable
from typing import NoReturn

import torch

__version__ = "0.5.23"


def assign_req_to_token_pool_cpu(
    req_pool_indices: torch.Tensor,
    req_to_token: torch.Tensor,
    start_offset: torch.Tensor,
    end_offset: torch.Tensor,
    out_cache_loc: torch.Tensor,
    pool_len: int,
) -> None:
    """Writes each request's new cache slots into its row, from its start to its end."""
    taken = 0
    for row, start, end in zip(req_pool_indices.tolist(), start_offset.tolist(), end_offset.tolist(), strict=True):
        length = end - start
        req_to_token[row, start:end] = out_cache_loc[taken : taken + length].to(req_to_token.dtype)
        taken += length


def __getattr__(name: str) -> Callable[..., NoReturn]:
    """SGLang imports more `*_cpu` names than it calls here."""
    if not name.endswith("_cpu"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def missing(*_arguments: object, **_options: object) -> NoReturn:
        raise NotImplementedError(f"sgl_kernel.{name} is not in the stand-in for CPU tests")

    return missing
