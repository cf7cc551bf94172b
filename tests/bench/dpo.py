"""DPO against TRL's own trainer, on the same pairs: `python -m tests.bench.dpo [KEY=VALUE …]`.

Three ways to train a few epochs, alternating, each time in a process of its own:

    trl        DPOTrainer with its defaults: gradient checkpointing, the reference model beside the policy
    trl_tuned  without checkpointing, the reference's log-probs given, at the micro-batch that suits it best
    ours       what stage=dpo does

Same model, pairs, order, effective batch and precision. The first epoch is told apart: it gets its memory from the
system, page by page, which later ones have already. Prints medians of an epoch with their spread, pairs and true
tokens (every prompt and completion once) per second, the model's operations (`flops.py`) as a share of what this
machine's matrix products reach, peak memory, and how far the losses are apart; writes all of it as JSON. For sequences
of 200 tokens: `lengths=100+100 arms=ours`.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, TrainerCallback

from tests.bench import arms, dpo_trainers
from tests.bench.dpo_trainers import TOKENS
from tests.helpers import DATA, ROOT

ARMS = ("trl", "trl_tuned", "ours")


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
    out: str = "outputs/bench/dpo.json"


def main(cfg: Settings) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cfg.model = cfg.model or embedded()
        rows = Path(folder) / "rows.json"
        arms.measured(cfg, "prepare", str(rows))
        rounds_by_arm = arms.alternating(cfg, cfg.arms.split(), str(rows))
    tell(cfg, rounds_by_arm)


def tell(cfg: Settings, rounds_by_arm: dict[str, list[dict[str, Any]]]) -> None:
    """The table, and the JSON beside it."""
    medians = {
        epoch: {
            arm: statistics.median(r[epoch] for r in results)
            for arm, results in rounds_by_arm.items()
        }
        for epoch in ("later", "first")
    }
    for arm, results in rounds_by_arm.items():
        tokens, losses = (
            results[0]["tokens"],
            " ".join(f"{loss:.5f}" for loss in results[0]["losses"]),
        )
        logging.info(
            "%-10s %5.1f GiB  %4.1f%% of peak  losses %s",
            arm,
            max(r["memory"] for r in results) / 2**30,
            100 * statistics.median(r["share_of_peak"] for r in results),
            losses,
        )
        for epoch, of_arms in medians.items():
            seconds, median = [r[epoch] for r in results], of_arms[arm]
            logging.info(
                "    %s: %6.1f s (%.1f to %.1f)  %6.3f pairs/s %7.0f tokens/s  %s",
                epoch,
                median,
                min(seconds),
                max(seconds),
                cfg.pairs / median,
                tokens / median,
                "  ".join(
                    f"{of_arms[other] / median:4.2f}x {other}" for other in of_arms if other != arm
                ),
            )
    out = ROOT / cfg.out
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"settings": asdict(cfg), "results": rounds_by_arm}, indent=2))


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
    scored = [PairLogProbs(str(i), *ids, [], []) for i, ids in enumerate(lengths(cfg, tokenizer))]
    device = resolve_device("auto")
    model = install_scoring(load_model(Path(cfg.model), device=device))
    rows = []
    for pair in scored:
        [(chosen, rejected)] = pair_log_probs(
            model, [pair], tokenizer.pad_token_id, Precision(cfg.precision)
        )
        rows.append(
            {
                "id": pair.id,
                "prompt_ids": pair.prompt_ids,
                "chosen_ids": pair.chosen_ids,
                "rejected_ids": pair.rejected_ids,
                "ref_chosen_logps": sum(chosen),
                "ref_rejected_logps": sum(rejected),
            }
        )
    return rows


def lengths(cfg: Settings, tokenizer: Any) -> list[tuple[list[int], list[int], list[int]]]:
    """Prompt, chosen and rejected as token ids; where real pairs are not at hand, generated ones of their lengths."""
    draw = random.Random(cfg.seed)
    file = DATA / "formats" / "lf_dpo_en_demo.json.gz"
    if cfg.lengths == "real" and file.exists():
        pairs = list(real(file, cfg.max_length, tokenizer))
        return draw.sample(pairs, cfg.pairs)

    def word(n):
        return [draw.randrange(1000, len(tokenizer)) for _ in range(n)]

    if cfg.lengths not in ("real", "drawn"):
        prompt, completion = map(int, cfg.lengths.split("+"))
        return [(word(prompt), word(completion), word(completion)) for _ in range(cfg.pairs)]

    # Log-normal, with the means of the real set: prompt 425, chosen 312, rejected 341 tokens.
    def length(mean):
        return min(max(8, round(draw.lognormvariate(0, 0.6) * mean / 1.2)), cfg.max_length // 2)

    return [(word(length(425)), word(length(312)), word(length(341))) for _ in range(cfg.pairs)]


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
    """Seconds of every epoch's steps, by the wall's clock and of computing."""

    def __init__(self) -> None:
        self.epochs, self.computed = list[float](), list[float]()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.epochs.append(0.0)
        self.computed.append(0.0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.began, self.had_computed = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        self.epochs[-1] += time.perf_counter() - self.began
        self.computed[-1] += time.process_time() - self.had_computed


def time_epochs(cfg: Settings, arm: str, file: str) -> dict[str, Any]:
    """Seconds of the first epoch over the rows in a file and of a later one, losses, and the peak of memory."""
    rows: list[dict[str, Any]] = json.loads(Path(file).read_text())
    from stages.hardware import allocator, machine

    tokenizer = AutoTokenizer.from_pretrained(cfg.model)
    is_ours = arm.startswith("ours")
    # as every stage is run
    memory = allocator.keep_freed_memory() if is_ours else contextlib.nullcontext()
    with tempfile.TemporaryDirectory() as folder, memory:
        machine.reset_peak_memory()
        trainer = dpo_trainers.build_trainer(arm, cfg, rows, tokenizer, Path(folder))
        dpo_trainers.warm_up(
            trainer, min(rows, key=lambda row: len(row["prompt_ids"] + row["chosen_ids"]))
        )
        clock = Clock()
        trainer.add_callback(clock)
        trainer.train()
    return {
        "first": clock.epochs[0],
        "later": statistics.mean(clock.epochs[1:]),
        "tokens": sum(len(row[name]) for row in rows for name in TOKENS),
        "losses": [point["loss"] for point in trainer.state.log_history if "loss" in point],
        "memory": machine.peak_gpu_memory() or machine.peak_memory(),
    }


def measure(cfg: Settings, arm: str, file: str) -> dict[str, Any]:
    """Figures of an arm, with its share of the machine's peak rate; or `prepare`, which writes the rows."""
    if arm == "prepare":
        Path(file).write_text(json.dumps(prepare(cfg)))
        return {}
    figures = time_epochs(cfg, arm, file)
    from stages.store.records import PairLogProbs
    from tests.bench import flops

    rows, shape = json.loads(Path(file).read_text()), flops.empty(Path(cfg.model))
    scored = [PairLogProbs(str(r["id"]), *(r[name] for name in TOKENS), [], []) for r in rows]
    peak = statistics.median(flops.peaks(shape)[cfg.precision])
    share = 3 * flops.forward(shape, flops.of_pairs(scored)) / figures["later"] / peak
    return figures | {"share_of_peak": share}


if __name__ == "__main__":
    arms.run(Settings, main, measure)
