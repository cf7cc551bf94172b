"""The sampler against plain batched `generate`: `python -m tests.bench.sample [OUTPUTS]`.

Same model, prompts, n = 4, temperature, dtype and limit; rounds of both alternate in one process, since machines are
noisy. Useful tokens are those up to the end of turn. The real model is the SFT checkpoint of OUTPUTS, on its
preference prompts; Llama-, Qwen3- and Gemma3-shaped ones have random weights and stop at one token in sixteen.
"""

import copy
import logging
import random
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from stages.hardware.machine import computes_bf16
from stages.models import contract
from stages.models.loading import load_model
from stages.samplers.hf import HFSampler
from stages.samplers.sampler import Request
from stages.store.records import Example, load
from tests.helpers import ROOT

PROMPTS, CANDIDATES, TEMPERATURE, LIMIT = 192, 4, 0.9, 64
GENERATE_BATCH = 24  # prompts, each with its candidates
ROWS = 256
ROUNDS = 2  # of the real model; one of each shape
SHAPE = {  # that of SmolLM2-135M
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
}


def plain(model: PreTrainedModel, requests: list[Request], stops: list[int]) -> int:
    """Useful tokens of `generate` on left-padded batches, in the order given."""
    useful = 0
    for start in range(0, len(requests), GENERATE_BATCH):
        batch = [r.token_ids for r in requests[start : start + GENERATE_BATCH]]
        width = max(map(len, batch))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in batch])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in batch])
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                temperature=TEMPERATURE,
                top_k=0,
                num_return_sequences=CANDIDATES,
                max_new_tokens=LIMIT,
                eos_token_id=stops,
                pad_token_id=0,
            )
        for row in out[:, width:].tolist():
            ends = [i for i, token in enumerate(row) if token in stops]
            useful += ends[0] + 1 if ends else len(row)
    return useful


def ours(model: PreTrainedModel, requests: list[Request], stops: list[int]) -> int:
    sampler = HFSampler(model, stops, LIMIT, 1.0, ROWS)
    return sum(len(c.token_ids) for _, completions in sampler.complete(requests) for c in completions)


def compare(name: str, model: PreTrainedModel, prompts: list[list[int]], stops: list[int], rounds: int) -> None:
    requests = [Request(f"{i:016x}", [], ids, [TEMPERATURE] * CANDIDATES, 0) for i, ids in enumerate(prompts)]
    rates: dict[str, list[float]] = {"generate": [], "plumbline": []}
    methods = (("generate", plain, copy.deepcopy(model)), ("plumbline", ours, model))
    for _, method, its in methods:
        method(its, requests[:8], stops)  # warm up
    for _ in range(rounds):
        for label, method, its in methods:
            start = time.perf_counter()
            tokens = method(its, requests, stops)
            rates[label].append(tokens / (time.perf_counter() - start))
            logging.info("%-8s %-9s %6d useful tokens, %6.1f tokens/s", name, label, tokens, rates[label][-1])
    ratios = [b / a for a, b in zip(rates["generate"], rates["plumbline"], strict=True)]
    logging.info("%-8s ratio %.1f (%.1f to %.1f)", name, statistics.median(ratios), min(ratios), max(ratios))


def main(outputs: Path) -> None:
    dtype = torch.bfloat16 if computes_bf16() else torch.float32
    sft = outputs / "latest/sft/model"
    terms = contract.load(sft)
    examples = load(outputs / "latest/data/examples.parquet", Example)
    prompts = [terms.prompt(e.messages) for e in examples if e.split == "preference"][:PROMPTS]
    random.Random(0).shuffle(prompts)
    compare("SmolLM2", load_model(sft, dtype), prompts, terms.stop_ids, ROUNDS)
    shapes = {
        "Llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
        "Qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE)),
        "Gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(sliding_window=32, **SHAPE)),
    }
    for name, make in shapes.items():
        torch.manual_seed(0)
        stops = list(range(0, SHAPE["vocab_size"], 16))
        compare(name, make().to(dtype).eval(), prompts[: PROMPTS // 2], stops, rounds=1)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main(ROOT / (sys.argv[1] if len(sys.argv) > 1 else "outputs"))
