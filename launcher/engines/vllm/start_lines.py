"""The lines by which vLLM tells how far its start is.

Read from the wheels of 0.32 and 0.33 (``model_loader/``, ``compilation/``, ``v1/worker/``, ``v1/engine/core.py``).
Lines that only older releases print, from 0.8 on, were read from public copies of these files. Only the first worker of
the group shows progress bars; the lines that end a step come from all.
"""

from __future__ import annotations

from launcher.model import COMPILE, GRAPHS, REST, WEIGHTS, StepLine

START_LINES = (
    StepLine(WEIGHTS, r"Starting to load model "),
    StepLine(WEIGHTS, r"[Ll]oading [\w -]*(?:\(\w{1,20}\))?: {1,9}(?P<percent>\d{1,3})%"),
    StepLine(WEIGHTS, r"Loading weights took (?P<took>[\d.]{1,20}) seconds"),
    StepLine(WEIGHTS, r"Model loading took .* and (?P<took>[\d.]{1,20}) seconds"),
    StepLine(COMPILE, r"torch\.compile (?:took|takes) (?P<took>[\d.]{1,20}) s in total"),
    StepLine(COMPILE, r"Starting torch\.compile|Using cache directory: .* for vLLM's torch\.compile"),
    StepLine(COMPILE, r"Dynamo bytecode transform time|Compiling a graph for |Warming up model for the compilation"),
    StepLine(COMPILE, r"Compile and warming up model for size "),
    StepLine(GRAPHS, r"Capturing [\w -]{0,30}CUDA graph[\w ]{0,10}(?:\([^)]{0,40}\))?: {1,9}(?P<percent>\d{1,3})%"),
    StepLine(GRAPHS, r"Graph capturing finished in (?P<took>[\d.]{1,20}) secs"),
    StepLine(REST, r"Warming up done\.|init engine \(profile"),
)
