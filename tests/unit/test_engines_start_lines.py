"""Lines of real engines, as their releases print them: which step each tells of, and how much is done."""

from __future__ import annotations

import re

import pytest

from launcher.agent.start_watch import seconds_of, share_of
from launcher.engines.file import patterns
from launcher.engines.reference import START_LINES as REFERENCE
from launcher.engines.sglang.start_lines import START_LINES as SGLANG
from launcher.engines.vllm.start_lines import START_LINES as VLLM
from launcher.model import ENGINE_STEPS, REST, StepLine

Told = tuple[str, float | None, float | None]


def told(lines: tuple[StepLine, ...], text: str) -> Told | None:
    for line in lines:
        found = re.search(line.pattern, text)
        if found is not None:
            return line.step, share_of(found), seconds_of(found)
    return None


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("(Worker pid=2) INFO 11-28 17:17:04 [x.py:5039] Starting to load model /m...", ("weights", None, None)),
        ("Loading safetensors checkpoint shards:   0% Completed | 0/30 [00:00<?, ?it/s]", ("weights", 0.0, None)),
        ("Loading safetensors checkpoint shards:  50% Completed | 15/30 [00:09<00:09]", ("weights", 0.5, None)),
        ("Loading safetensors checkpoint shards (eager): 100% Completed | 2/2 [00:02<00:00]", ("weights", 1.0, None)),
        ("Multi-thread loading shards:  25% Completed | 1/4 [00:01<00:03]", ("weights", 0.25, None)),
        ("Multi-thread loading pt checkpoint shards:  25% Completed | 1/4 [00:01<00:03]", ("weights", 0.25, None)),
        ("Loading pt checkpoint shards:  33% Completed | 1/3", ("weights", 0.33, None)),
        ("Loading np_cache checkpoint shards:  33% Completed | 1/3", ("weights", 0.33, None)),
        ("Loading safetensors using Runai Model Streamer:  40% Completed | 40/100", ("weights", 0.4, None)),
        ("Loading safetensors using InstantTensor loader:  40% Completed | 40/100", ("weights", 0.4, None)),
        ("Loading safetensors using Fastsafetensor loader:  20%|##   | 1/5 [00:01<00:04]", ("weights", 0.2, None)),
        ("INFO 11-28 17:17:04 [default_loader.py:501] Loading weights took 45.21 seconds", ("weights", None, 45.21)),
        ("Model loading took 14.9888 GiB and 46.010340 seconds", ("weights", None, 46.01034)),
        ("INFO [x.py:5150] Model loading took 14.99 GiB memory and 46.010340 seconds", ("weights", None, 46.01034)),
        ("INFO [backends.py:430] Using cache directory: /c/x for vLLM's torch.compile", ("compile", None, None)),
        ("INFO [monitor.py:40] Starting torch.compile", ("compile", None, None)),
        ("INFO [backends.py:1166] Dynamo bytecode transform time: 5.01 s", ("compile", None, None)),
        ("INFO [backends.py:398] Compiling a graph for compile range (1, 8192) takes 20.10 s", ("compile", None, None)),
        ("INFO [backends.py:202] Compiling a graph for general shape takes 20.10 s", ("compile", None, None)),
        ("INFO [monitor.py:33] torch.compile takes 26.79 s in total", ("compile", None, 26.79)),
        ("INFO [monitor.py:81] torch.compile took 26.79 s in total", ("compile", None, 26.79)),
        ("INFO [cpu_model_runner.py:87] Warming up model for the compilation...", ("compile", None, None)),
        ("INFO [cpu_model_runner.py:91] Warming up done.", ("rest", None, None)),
        ("Capturing CUDA graph shapes:  20%|##   | 7/35 [00:03<00:14]", ("graphs", 0.2, None)),
        ("Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  60%|#####  | 30/51", ("graphs", 0.6, None)),
        ("Capturing CUDA graphs (decode, FULL):  60%|#####  | 30/51", ("graphs", 0.6, None)),
        ("Capturing CUDA graphs (FULL):  60%|#####  | 30/51", ("graphs", 0.6, None)),
        ("Capturing prefill CUDA graphs (PIECEWISE):  60%|#####  | 30/51", ("graphs", 0.6, None)),
        ("Capturing multi-module MTP CUDA graphs (FULL):  60%|#####  | 30/51", ("graphs", 0.6, None)),
        ("INFO [gpu_model_runner.py:6582] Graph capturing finished in 21 secs, took 0.54 GiB", ("graphs", None, 21.0)),
        ("INFO [core.py:402] init engine (profile, create kv cache, warmup model) took 2.79 s", ("rest", None, None)),
        ("INFO [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config: model='/m'", None),
        ("INFO [base_loader.py:82] Initializing model took 0.113427 seconds", None),
        ("INFO:     Application startup complete.", None),
        ('INFO:     127.0.0.1:1 - "GET /health HTTP/1.1" 200 OK', None),
    ],
)  # fmt: skip
def test_vllm(text: str, means: Told | None) -> None:
    assert told(VLLM, text) == means


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("[2026-11-28 17:17:18 TP0] Load weight begin. avail mem=78.60 GB", ("weights", None, None)),
        ("Loading safetensors checkpoint shards:  50% Completed | 2/4 [00:01<00:01,  1.5it/s]", ("weights", 0.5, None)),
        ("Multi-thread loading shards:  50% Completed | 2/4 [00:01<00:01,  1.5it/s]", ("weights", 0.5, None)),
        ("Loading safetensors using InstantTensor:  50% Completed | 2/4", ("weights", 0.5, None)),
        ("Loading safetensors using Fastsafetensor loader:  50%|###  | 2/4", ("weights", 0.5, None)),
        ("Load weight end. type=LlamaForCausalLM, dtype=torch.bfloat16, avail mem=63 GB", ("rest", None, None)),
        ("Load weight end. elapsed=12.31 s, type=LlamaForCausalLM, avail mem=63 GB", ("weights", None, 12.31)),
        ("Capture cuda graph begin. This can take up to several minutes. avail mem=10.2 GB", ("graphs", None, None)),
        ("Capture draft extend cuda graph begin (step 0). This can take up to", ("graphs", None, None)),
        ("Capture target decode CUDA graph begin. backend=full, bs=[1, 2]", ("graphs", None, None)),
        ("Capture piecewise CUDA graph begin. avail mem=10.20 GB", ("graphs", None, None)),
        ("Capture single-CG draft extend begin. This can take several minutes. ", ("graphs", None, None)),
        ("Capturing batches (avail_mem=9.71 GB):  13%|#3    | 3/23 [00:01<00:09]", ("graphs", 0.13, None)),
        ("Capturing batches (bs=128 avail_mem=9.71 GB):  13%|#3    | 3/23", ("graphs", 0.13, None)),
        ("Capturing num tokens (num_tokens=4096 avail_mem=9.71 GB):  13%|#3    | 3/23", ("graphs", 0.13, None)),
        ("Capturing prefill shape (num_tokens=4096 avail_mem=9.71 GB):  13%|#3    | 3/23", ("graphs", 0.13, None)),
        ("Compiling num tokens (num_tokens=4096):  13%|#3    | 3/23", ("compile", 0.13, None)),
        ("Entering DeepGEMM JIT Pre-Compile session. ", ("compile", None, None)),
        ("Capture cuda graph end. Time elapsed: 8.12 s. mem usage=0.5 GB", ("graphs", None, 8.12)),
        ("Capture target decode CUDA graph end. elapsed=8.12 s, mem usage=0.5 GB", ("graphs", None, 8.12)),
        ("The server is fired up and ready to roll!", ("rest", None, None)),
        ("[2026-11-28 17:17:30 TP0] Init torch distributed begin.", None),
        ("max_total_num_tokens=100, chunked_prefill_size=8192", None),
        ("Decode batch, #running-req: 1, #token: 50%", None),
    ],
)
def test_sglang(text: str, means: Told | None) -> None:
    assert told(SGLANG, text) == means


@pytest.mark.parametrize("lines", [VLLM, SGLANG, REFERENCE])
def test_patterns_are_harmless(lines: tuple[StepLine, ...]) -> None:
    """Each is searched in every line of a start: none may take long, whatever the line is."""
    for line in lines:
        assert line.step in (*ENGINE_STEPS, REST)
        assert patterns.problem(line.pattern) == ""
