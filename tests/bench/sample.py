"""Samplers against plain `generate`: `python -m tests.bench.sample [KEY=VALUE …]`.

n = 4, T = 0.9, in three ways, alternating, each time in a process of its own:

    generate   left-padded batches of 24 prompts with their candidates
    hf         our sampler
    vllm       vLLM's engine, in `gpu_chain` alone

Answers are `forced` to a length: by the SFT checkpoint of `outputs`, on its preference prompts. Or `uneven`: by its
base, on open requests, which ends them as it likes, at 512 tokens at most. Tokens are those up to the end of turn.
Loading is not timed, nor is a first pass over few prompts.
"""

import logging
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench import alternating
from tests.helpers import ROOT

ARMS = ("generate", "hf")
CANDIDATES = 4
TEMPERATURE = 0.9
GENERATE_BATCH = 24  # prompts, each with its candidates
LONGEST = 512  # tokens of an uneven answer
PAD = 0


@dataclass
class Settings:
    """`length`: tokens of forced answers; 0: uneven ones."""

    outputs: str = "outputs"
    length: int = 64
    prompts: int = 48
    precision: str = "fp32"
    arms: str = " ".join(ARMS)
    repeats: int = 3


def main(cfg: Settings) -> None:
    for arm, results in alternating.results_by_arm(cfg, cfg.arms.split()).items():
        rates = [result["tokens"] / result["seconds"] for result in results]
        memory = max(result["memory"] for result in results) / 2**30
        bounds = (min(rates), max(rates))
        logging.info("%-9s %.0f tokens/s (%.0f to %.0f)", arm, statistics.median(rates), *bounds)
        length = results[0]["tokens"] / cfg.prompts / CANDIDATES
        logging.info("    %.1f GiB, %.0f tokens an answer", memory, length)


def measure(cfg: Settings, arm: str) -> dict[str, float]:
    """Tokens, seconds, and the peak of memory."""
    from stages.config.blocks.runtimes import InferenceRuntime
    from stages.config.choices import Precision
    from stages.models.contract import load_or_derive_contract
    from stages.samplers.sampler import Decoding, Request
    from stages.store.records import Example, Message, load
    from stages.tasks.open_requests import request

    draw = random.Random(0)
    latest = ROOT / cfg.outputs / "latest"
    model = latest / ("sft" if cfg.length else "base") / "model"
    contract = load_or_derive_contract(model)
    conversations = list[list[Message]]()
    stops = list[int]()
    if cfg.length:
        examples = load(latest / "data" / "examples.parquet", Example)
        preference = [example for example in examples if example.split == "preference"]
        conversations = [example.messages for example in draw.sample(preference, cfg.prompts)]
    else:
        stops = contract.stop_ids
        for _ in range(cfg.prompts):
            conversations.append([{"role": "user", "content": request(draw).text}])
    temperatures = [TEMPERATURE] * CANDIDATES
    requests = list[Request]()
    for i, messages in enumerate(conversations):
        requests.append(Request(f"{i:016x}", [], contract.prompt(messages), temperatures, 0))
    runtime = InferenceRuntime("auto", 512, 64)
    decoding = Decoding(temperatures, cfg.length or LONGEST, Precision(cfg.precision), runtime)
    return timed(arm, model, stops, decoding, requests)


def timed(
    arm: str, model: Path, stops: list[int], decoding: Any, requests: list[Any]
) -> dict[str, float]:
    """Complete the requests after a first pass over few of them."""
    from stages.hardware import allocator, machine

    with allocator.keep_freed_memory():
        complete = opened(arm, model, stops, decoding)
        complete(requests[:4])
        machine.reset_peak_memory()
        began = time.perf_counter()
        tokens = complete(requests)
        seconds = time.perf_counter() - began
    memory = machine.peak_gpu_memory() or machine.peak_memory()
    return {"tokens": tokens, "seconds": seconds, "memory": memory}


def opened(arm: str, model: Path, stops: list[int], decoding: Any) -> Any:
    """A function of requests that returns how many tokens it drew."""
    from stages.models.loading import load_model, resolve_device, sampling_weights
    from stages.samplers.hf import HFSampler

    if arm == "generate":
        plain = load_model(model, sampling_weights(decoding.precision), resolve_device("auto"))
        return lambda requests: generated(plain, requests, stops, decoding.max_new_tokens)
    if arm == "vllm":
        return vllm_engine(model, stops, decoding)
    sampler = HFSampler.open(model, stops, decoding)
    return lambda requests: sum(
        len(c.token_ids) for _, completions in sampler.complete(requests) for c in completions
    )


def vllm_engine(model: Path, stops: list[int], decoding: Any) -> Any:
    """Return a function like that of `opened`, for vLLM's engine."""
    from vllm import LLM, SamplingParams

    engine = LLM(
        str(model),
        dtype={"bf16": "bfloat16", "fp32": "float32"}[decoding.precision],
        seed=decoding.seed,
    )
    params = SamplingParams(
        n=len(decoding.temperatures),
        temperature=decoding.temperatures[0],
        max_tokens=decoding.max_new_tokens,
        stop_token_ids=stops or None,
        ignore_eos=not stops,
        detokenize=False,
    )

    def complete(requests: list[Any]) -> int:
        prompts = [{"prompt_token_ids": request.token_ids} for request in requests]
        answers = engine.generate(prompts, params, use_tqdm=False)
        return sum(len(completion.token_ids) for answer in answers for completion in answer.outputs)

    return complete


def generated(model: Any, requests: list[Any], stops: list[int], limit: int) -> int:
    """Tokens of `generate` on left-padded batches, in the order given."""
    import torch

    drawn = 0
    for start in range(0, len(requests), GENERATE_BATCH):
        prompts = [request.token_ids for request in requests[start : start + GENERATE_BATCH]]
        width = max(map(len, prompts))
        ids = torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.inference_mode():
            answers = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                do_sample=True,
                temperature=TEMPERATURE,
                top_k=0,
                num_return_sequences=CANDIDATES,
                max_new_tokens=limit,
                min_new_tokens=None if stops else limit,
                eos_token_id=stops or None,
                pad_token_id=PAD,
            )
        for answer in answers[:, width:].tolist():
            ends = [place for place, token in enumerate(answer) if token in stops]
            drawn += ends[0] + 1 if ends else len(answer)
    return drawn


if __name__ == "__main__":
    alternating.run(Settings, main, measure)
