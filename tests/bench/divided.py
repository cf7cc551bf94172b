"""One process of two threads against two of one thread: `python -m tests.bench.divided [KEY=VALUE …]`.

Both sample the same open requests from the base of `outputs`, n = 4, T = 0.9, in blocks of 64 prompts as
`stage=sample` does. Arms alternate. Loading is not timed, nor is a first pass over few prompts.
"""

import logging
import multiprocessing
import os
import random
import time
from dataclasses import dataclass
from typing import Any

from tests.bench import arms
from tests.budgets import spent
from tests.helpers import ROOT

ARMS = {"1 process": (1, 2), "2 processes": (2, 1)}  # processes, and the threads of each
TEMPERATURES, BLOCK = [0.9] * 4, 64
PATIENCE = 300.0  # seconds that a process waits for the other to load the model


@dataclass
class Settings:
    """`length`: tokens of an answer at most."""

    outputs: str = "outputs"
    prompts: int = 128
    length: int = 64
    repeats: int = 2
    seed: int = 0


def main(cfg: Settings) -> None:
    for arm, results in arms.alternating(cfg, ARMS).items():
        per_cpu, per_second = (
            [r["tokens"] / r[key] for r in results] for key in ("cpu_seconds", "seconds")
        )
        logging.info(
            "%-12s %s tokens per CPU-second, %s per second",
            arm,
            rounded(per_cpu),
            rounded(per_second),
        )


def rounded(values: list[float]) -> str:
    return " ".join(f"{value:.0f}" for value in values)


def measure(cfg: Settings, arm: str) -> dict[str, float]:
    """Tokens and CPU-seconds of all processes, and the seconds of the longest one."""
    processes, threads = ARMS[arm]
    os.environ["OMP_NUM_THREADS"] = str(threads)
    context = multiprocessing.get_context("spawn")
    loaded, results = context.Barrier(processes), context.SimpleQueue()
    arguments = [(cfg, rank, processes, loaded, results) for rank in range(processes)]
    workers = [context.Process(target=sample, args=each) for each in arguments]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    figures: list[dict[str, float]] = [results.get() for _ in range(processes)]
    tokens, cpu_seconds = (sum(each[key] for each in figures) for key in ("tokens", "cpu_seconds"))
    return {
        "tokens": tokens,
        "cpu_seconds": cpu_seconds,
        "seconds": max(each["seconds"] for each in figures),
    }


def sample(cfg: Settings, rank: int, processes: int, loaded: Any, results: Any) -> None:
    """Sample the blocks of this rank when all processes have loaded the model."""
    from stages.config.blocks.runtimes import InferenceRuntime
    from stages.config.choices import Precision
    from stages.hardware import allocator
    from stages.models.contract import load_or_derive_contract
    from stages.samplers.hf import HFSampler
    from stages.samplers.sampler import Decoding, Request
    from stages.tasks.open_requests import request

    model, draw = ROOT / cfg.outputs / "latest" / "base" / "model", random.Random(cfg.seed)
    contract = load_or_derive_contract(model)
    texts = [request(draw).text for _ in range(cfg.prompts)]
    ids = [contract.prompt([{"role": "user", "content": text}]) for text in texts]
    prompts = [Request(f"{i:016x}", [], each, TEMPERATURES, cfg.seed) for i, each in enumerate(ids)]
    decoding = Decoding(
        TEMPERATURES, cfg.length, Precision.fp32, InferenceRuntime("cpu", 512, BLOCK)
    )
    with allocator.keep_freed_memory():
        sampler: Any = HFSampler.open(model, contract.stop_ids, decoding)
        list(sampler.complete(prompts[:4]))
        loaded.wait(PATIENCE)
        began, before, tokens = time.perf_counter(), spent(children=False), 0
        for start in range(rank * BLOCK, cfg.prompts, processes * BLOCK):
            for _, completions in sampler.complete(prompts[start : start + BLOCK]):
                tokens += sum(len(completion.token_ids) for completion in completions)
    seconds, cpu_seconds = time.perf_counter() - began, spent(children=False) - before
    results.put({"tokens": tokens, "cpu_seconds": cpu_seconds, "seconds": seconds})


if __name__ == "__main__":
    arms.run(Settings, main, measure)
