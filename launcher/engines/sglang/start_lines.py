"""The lines by which SGLang tells how far its start is.

Read from the sources of 0.4.4.post1, 0.4.10.post2, 0.5.9 and 0.5.23 (``model_loader/weight_utils.py``,
``model_executor/``, ``speculative/``, ``layers/quantization``). Only the first rank of a tensor parallel group shows
progress bars.
"""

from __future__ import annotations

from launcher.model import COMPILE, GRAPHS, REST, WEIGHTS, StepLine

START_LINES = (
    StepLine(WEIGHTS, r"Load weight begin"),
    StepLine(WEIGHTS, r"[Ll]oading [\w -]*(?:\(\w{1,20}\))?: {1,9}(?P<percent>\d{1,3})%"),
    StepLine(WEIGHTS, r"Load weight end\. elapsed=(?P<took>[\d.]{1,20})"),
    StepLine(REST, r"Load weight end"),
    StepLine(COMPILE, r"Compiling num tokens \([^)]*\): {1,9}(?P<percent>\d{1,3})%"),
    StepLine(COMPILE, r"DeepGEMM JIT (?:Pre-Compile|Compiling)"),
    StepLine(GRAPHS, r"Capture [\w -]+ begin\b"),
    StepLine(GRAPHS, r"Capturing (?:batches|num tokens|prefill shape) \([^)]*\): {1,9}(?P<percent>\d{1,3})%"),
    StepLine(GRAPHS, r"Capture [\w -]+ end\. (?:Time elapsed: |elapsed=)(?P<took>[\d.]{1,20})"),
    StepLine(REST, r"The server is fired up"),
)
