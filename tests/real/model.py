"""A tiny Llama with random weights (1.5 MB): greedy output is the same on one process and spread over several.

Made once, under a fixed seed, so that every run and every engine sees the same one.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from tests.real.install import Engine, NotInstallable, cache, engine, exclusive, installed

NAME = "tiny-llama"


def tiny_model() -> Path:
    """The folder of the model, made now by an engine's interpreter if it is not there. Raises NotInstallable."""
    folder = cache() / "models" / f"{NAME}-{hashlib.sha256(MAKE.encode()).hexdigest()[:12]}"
    with exclusive(folder.with_suffix(".lock")):
        if not folder.exists():
            _make(_engine(), folder)
    return folder


def _engine() -> Engine:
    """Any engine that has torch and transformers; one that is installed before one that is not."""
    return engine("vllm" if installed("vllm") or not installed("sglang") else "sglang")


def _make(with_engine: Engine, folder: Path) -> None:
    fresh = folder.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    environment = {**os.environ, **with_engine.env, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    made = subprocess.run(
        [with_engine.python, "-c", MAKE, fresh], capture_output=True, text=True, check=False, env=environment
    )
    if made.returncode:
        raise NotInstallable(f"the tiny model could not be made: {made.stderr.strip()[-500:]}")
    for file in fresh.iterdir():
        file.chmod(0o644)
    fresh.rename(folder)


MAKE = """
import random
import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

folder = sys.argv[1]
draw = random.Random(20)
text = ["".join(draw.choices("aeioubdfgklmnprst", k=6)) for _ in range(2000)]
bpe = Tokenizer(models.BPE())
bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bpe.decoder = decoders.ByteLevel()
special = ["<unk>", "<s>", "</s>"]
alphabet = [chr(code) for code in range(33, 127)]  # no bytes that alone are no text: output can be read and compared
bpe.train_from_iterator(text, trainers.BpeTrainer(vocab_size=512, special_tokens=special, initial_alphabet=alphabet))
assert bpe.get_vocab_size() == 512  # an id without a token would have no text
chat = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\\n{% endfor %}assistant:"
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>", chat_template=chat
)
tokenizer.save_pretrained(folder)

torch.manual_seed(20)
config = LlamaConfig(
    vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
    num_key_value_heads=4, max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, dtype="bfloat16",
)
LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
"""
