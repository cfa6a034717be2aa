# mypy: ignore-errors
# (for the engine's interpreter: torch is not installed where this repository is checked)
"""torchvision beside a CPU build of torch: declares the operators that its own C++ part, built for CUDA, cannot bring.

Importing transformers' image processors, as SGLang does, needs the package to import; nothing calls the operators for a
text model. This module takes the place of the real package in sys.modules and executes its code as its own.
"""

import importlib.machinery
import sys
from pathlib import Path

import torch

_library = torch.library.Library("torchvision", "FRAGMENT")
_library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

_here = Path(__file__).resolve().parent.parent
_elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != _here]
_spec = importlib.machinery.PathFinder.find_spec("torchvision", _elsewhere)
if _spec is None or _spec.origin is None or _spec.submodule_search_locations is None:
    raise ImportError("torchvision: the stand-in found no real one to stand before")

__path__ = list(_spec.submodule_search_locations)
__file__ = _spec.origin
exec(compile(Path(__file__).read_text(), __file__, "exec"))
