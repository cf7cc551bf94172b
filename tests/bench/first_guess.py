"""The speeds behind a plan's first guess: `python -m tests.bench.first_guess`.

Random weights in the shape of SmolLM2-135M, fp32, one thread. Each speed is of CPU-seconds, so that other work on the
machine does not count: a step on 4 rows of 256 tokens, their log-probs, and 12 tokens of 48 answers with a cache."""

import logging
import time
from collections.abc import Callable
from typing import Any

SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
}
HEADS = {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
ROWS = (4, 256)
ANSWERS = 48
PROMPT = 40
DRAWN = 12
SIZE = 512
PRODUCTS = 200


def per_cpu_second(amount: float, work: Callable[[], Any]) -> float:
    """Return the amount of work in a CPU-second, after a first pass."""
    work()
    started = time.process_time()
    work()
    return amount / (time.process_time() - started)


def main() -> None:
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)
    matrix = np.ones((SIZE, SIZE), np.float32)

    def multiply() -> None:
        for _ in range(PRODUCTS):
            matrix @ matrix

    operations = per_cpu_second(2 * SIZE**3 * PRODUCTS, multiply)
    logging.info("product of numpy: %.0f GFLOP/s", operations / 1e9)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, **HEADS))
    rows = torch.randint(0, SHAPE["vocab_size"], ROWS)
    tokens = rows.numel()
    trained = per_cpu_second(tokens, lambda: model(input_ids=rows, labels=rows).loss.backward())
    logging.info("trained: %.0f tokens/s", trained)
    with torch.no_grad():
        scored = per_cpu_second(tokens, lambda: model(input_ids=rows))
        logging.info("scored: %.0f tokens/s", scored)
        prompts = torch.randint(0, SHAPE["vocab_size"], (ANSWERS, PROMPT))
        cache = model(input_ids=prompts, use_cache=True).past_key_values

        def draw() -> None:
            for _ in range(DRAWN):
                model(input_ids=prompts[:, :1], past_key_values=cache, use_cache=True)

        drawn = per_cpu_second(ANSWERS * DRAWN, draw)
        logging.info("drawn: %.0f tokens/s", drawn)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
