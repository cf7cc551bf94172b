"""DPO against TRL's own trainer, on the same pairs: `python -m tests.bench.dpo [KEY=VALUE …]`.

Three ways to train a few epochs, alternating, each time in a process of its own:

    trl        DPOTrainer with its defaults: gradient checkpointing, the reference model beside the policy
    trl_tuned  without checkpointing, the reference's log-probs given, at the micro-batch that suits it best
    ours       what stage=dpo does

Same model, pairs, order, effective batch and precision. The first epoch is not timed: it gets its memory from the
system, page by page, which later ones have already. Prints medians of an epoch with their spread, true tokens (every
prompt and completion once) per second, peak memory, and losses. For sequences of 200 tokens: `lengths=100+100
arms=ours`.
"""

import contextlib
import json
import logging
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, TrainerCallback

from tests.bench import alternating, dpo_trainers
from tests.bench.dpo_trainers import TOKENS
from tests.helpers import DATA, ROOT

ARMS = ("trl", "trl_tuned", "ours")
MEANS = (425, 312, 341)  # tokens of prompt, chosen and rejected in the real set


@dataclass
class Settings:
    """`model`: a folder, or empty for the embedded 135M model. `lengths`: real (cut at `max_length`), drawn like the
    real ones, or the tokens of prompt and completions of generated pairs, as 40+60."""

    model: str = ""
    lengths: str = "real"
    max_length: int = 1024
    pairs: int = 8
    batch_size: int = 8
    micro_batch: int = 4
    tuned_micro_batch: int = 4
    our_micro_batch: str = "4"  # a number of pairs, or auto
    our_checkpointing: str = "auto"
    adapter: str = "none"
    precision: str = "bf16"
    epochs: int = 3
    repeats: int = 5
    arms: str = " ".join(ARMS)
    seed: int = 0


def main(cfg: Settings) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cfg.model = cfg.model or embedded()
        rows = Path(folder) / "rows.json"
        alternating.measured(cfg, "prepare", str(rows))
        rounds_by_arm = alternating.results_by_arm(cfg, cfg.arms.split(), str(rows))
    tell(cfg, rounds_by_arm)


def tell(cfg: Settings, rounds_by_arm: dict[str, list[dict[str, Any]]]) -> None:
    for arm, results in rounds_by_arm.items():
        seconds = [result["seconds"] for result in results]
        median = statistics.median(seconds)
        memory = max(result["memory"] for result in results) / 2**30
        losses = " ".join(f"{loss:.5f}" for loss in results[0]["losses"])
        logging.info(
            "%-10s %6.1f s an epoch (%.1f to %.1f)", arm, median, min(seconds), max(seconds)
        )
        logging.info(
            "    %.1f tokens/s, %.1f GiB, losses %s", results[0]["tokens"] / median, memory, losses
        )


def embedded() -> str:
    """The folder of the embedded model."""
    subprocess.run([sys.executable, "run.py", "stage=base", "tracker=none"], cwd=ROOT, check=True)
    return str(ROOT / "outputs" / "latest" / "base" / "model")


def prepare(cfg: Settings) -> list[dict[str, Any]]:
    """Token ids of the pairs, and their log-probs under the reference."""
    from stages.config.choices import Precision
    from stages.models.loading import load_model, load_tokenizer, resolve_device
    from stages.models.scoring import install_scoring, pair_log_probs
    from stages.store.records import PairLogProbs

    tokenizer = load_tokenizer(Path(cfg.model))
    model = install_scoring(load_model(Path(cfg.model), device=resolve_device("auto")))
    rows = list[dict[str, Any]]()
    for i, ids in enumerate(lengths(cfg, tokenizer)):
        pair = PairLogProbs(str(i), *ids, [], [])
        [(chosen, rejected)] = pair_log_probs(
            model, [pair], tokenizer.pad_token_id, Precision(cfg.precision)
        )
        log_probs = {"ref_chosen_logps": sum(chosen), "ref_rejected_logps": sum(rejected)}
        rows.append({"id": str(i), **dict(zip(TOKENS, ids, strict=True)), **log_probs})
    return rows


def lengths(cfg: Settings, tokenizer: Any) -> list[tuple[list[int], list[int], list[int]]]:
    """Prompt, chosen and rejected as token ids; where real pairs are not at hand, generated ones of their lengths."""
    draw = random.Random(cfg.seed)
    file = DATA / "formats" / "lf_dpo_en_demo.json.gz"
    if cfg.lengths == "real" and file.exists():
        return draw.sample([*real(file, cfg.max_length, tokenizer)], cfg.pairs)
    pairs = list[tuple[list[int], list[int], list[int]]]()
    for _ in range(cfg.pairs):
        if cfg.lengths in ("real", "drawn"):
            sizes = [drawn_length(mean, cfg.max_length, draw) for mean in MEANS]
        else:
            prompt, completion = map(int, cfg.lengths.split("+"))
            sizes = [prompt, completion, completion]
        vocabulary = range(1000, len(tokenizer))
        prompt_ids, chosen, rejected = (draw.choices(vocabulary, k=size) for size in sizes)
        pairs.append((prompt_ids, chosen, rejected))
    return pairs


def drawn_length(mean: float, max_length: int, draw: random.Random) -> int:
    """Log-normal, as the lengths of the real set."""
    return min(max(8, round(draw.lognormvariate(0, 0.6) * mean / 1.2)), max_length // 2)


def real(file: Path, max_length: int, tokenizer: Any) -> Any:
    """Pairs of a preference file that fit whole."""
    from stages.config.blocks.data import Source
    from stages.formats.column_mapping import Purpose
    from stages.formats.source_reading import ReadReport, convert

    def ids(turns, **more):
        return tokenizer.apply_chat_template(turns, return_dict=False, **more)

    rows = convert(
        Source(str(file)), "label.path", lambda parsed: parsed, Purpose.preferences, ReadReport()
    )
    for messages, texts, *_ in rows:
        prompt = ids(messages, add_generation_prompt=True)
        whole = [ids([*messages, {"role": "assistant", "content": text}]) for text in texts]
        if max(map(len, whole)) <= max_length and whole[0] != whole[1]:
            yield prompt, whole[0][len(prompt) :], whole[1][len(prompt) :]


class Clock(TrainerCallback):
    """Seconds of every epoch's steps."""

    def __init__(self) -> None:
        self.epochs = list[float]()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.epochs.append(0.0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self.epochs[-1] += time.perf_counter() - self.began


def time_epochs(cfg: Settings, arm: str, file: str) -> dict[str, Any]:
    """Seconds of an epoch after the first over the rows in a file, losses, and the peak of memory."""
    rows: list[dict[str, Any]] = json.loads(Path(file).read_text())
    from stages.hardware import allocator, machine

    tokenizer = AutoTokenizer.from_pretrained(cfg.model)
    # as every stage is run
    memory = allocator.keep_freed_memory() if arm.startswith("ours") else contextlib.nullcontext()
    with tempfile.TemporaryDirectory() as folder, memory:
        machine.reset_peak_memory()
        trainer = dpo_trainers.build_trainer(arm, cfg, rows, tokenizer, Path(folder))
        shortest = min(rows, key=lambda row: len(row["prompt_ids"] + row["chosen_ids"]))
        dpo_trainers.warm_up(trainer, shortest)
        clock = Clock()
        trainer.add_callback(clock)
        trainer.train()
    return {
        "seconds": statistics.mean(clock.epochs[1:]),
        "tokens": sum(len(row[name]) for row in rows for name in TOKENS),
        "losses": [point["loss"] for point in trainer.state.log_history if "loss" in point],
        "memory": machine.peak_gpu_memory() or machine.peak_memory(),
    }


def measure(cfg: Settings, arm: str, file: str) -> dict[str, Any]:
    """Figures of an arm; or `prepare`, which writes the rows."""
    if arm == "prepare":
        Path(file).write_text(json.dumps(prepare(cfg)))
        return {}
    return time_epochs(cfg, arm, file)


if __name__ == "__main__":
    alternating.run(Settings, main, measure)
