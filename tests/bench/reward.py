"""A reward model of real preferences: `python -m tests.bench.reward [KEY=VALUE …]`.

Right or wrong on prompts that are held out, beside two that read nothing: the longer answer (and the shorter), and a
logistic regression on the difference of the answers' tf-idf. Then the same model on sets of others' preferences, of
which it has learnt nothing, beside the longer answer. Then what a step costs beside TRL's own trainer, padded and
tuned (no checkpointing), alternating, each time in a process of its own: pairs per second, losses, peak memory.

`file`: a preference set; by default rasbt's of the shared data beside the checkout. `rows`: only its first.
`elsewhere`: so many pairs of each other set. `run`: what the command line says of the model and its SFT. A try:
`rows=20 elsewhere=10 run=recipe=tiny pairs=8 repeats=1`.
"""

import gzip
import json
import logging
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench import arms
from tests.budgets import spent
from tests.helpers import DATA, ROOT
from tests.rows import work

ARMS = ("trl_tuned", "ours")


@dataclass
class Settings:
    file: str = str(DATA / "preferences" / "rasbt_instruction_preference.json.gz")
    rows: int = 0  # 0: all
    run: str = "sft=none reward.epochs=1 reward.learning_rate=2e-5"
    held_out: float = 0.2
    elsewhere: int = 400
    pairs: int = 64  # of which a step's cost is measured
    batch_size: int = 8
    micro_batch: int = 4
    repeats: int = 3
    outputs: str = "outputs/bench/reward"


def main(cfg: Settings) -> None:
    command = [
        sys.executable,
        "run.py",
        "stage=reward",
        "tracker=none",
        f"outputs={cfg.outputs}",
        "pairs=all",
    ]
    command += [
        f"reward.pairs.validation_fraction={cfg.held_out}",
        f"reward.source.path={rows_of(cfg)}",
    ]
    before = spent()
    subprocess.run([*command, *shlex.split(cfg.run)], cwd=ROOT, check=True)
    seconds = spent() - before
    node, pairs = train_reward_model(cfg)
    metrics = json.loads((node / "manifest.json").read_text())["metrics"]
    logging.info("%s; %.0f CPU-seconds", metrics["summary"], seconds)
    for name in (
        "accuracy",
        "length_matched",
        "calibration_error",
        "brier",
        "length_correlation",
        "by_source",
    ):
        logging.info("%-20s %s", name, json.dumps(metrics.get(name)))
    longer = metrics["longer_chosen"]
    logging.info(
        "%-20s longer %s, shorter %s",
        "by length alone",
        longer,
        None if longer is None else 1 - longer,
    )
    logging.info("%-20s %.3f", "by tf-idf", tf_idf(pairs))
    elsewhere(node / "model", cfg.elsewhere)
    rounds_by_arm = arms.alternating(cfg, ARMS)
    for per in ("pairs_per_second", "pairs_per_cpu_second"):
        medians = {
            arm: statistics.median(r[per] for r in results)
            for arm, results in rounds_by_arm.items()
        }
        logging.info(
            "%s %s: %.2fx", per, json.dumps(medians), medians["ours"] / medians["trl_tuned"]
        )


def elsewhere(model: Path, rows: int) -> None:
    """Tell how often it scores the better answer of other sets higher, where it can read both, and how often that is
    the longer one."""
    from stages.config.blocks.labels import RewardModel as Block
    from stages.evaluation.agreement import share
    from stages.labelers.reward_model import RewardModel
    from stages.store.records import content_id
    from tests.bench import judge
    from tests.bench.agreement import SETS, longer

    label = Block(path=str(model), precision=native())
    for name, read_pairs in SETS.items():
        drawn = sorted(read_pairs(), key=content_id)[:rows]
        candidate_pool = judge.pool(drawn)
        with tempfile.TemporaryDirectory() as folder:
            out = work(Path(folder))
            scores = {
                j.candidate_id: j.score for j in RewardModel(label, out).judge_all(candidate_pool)
            }
        better, worse = (
            [scores[c.candidate_id] for c in candidate_pool.candidates[i::2]] for i in range(2)
        )
        read = [
            (b > w, row)
            for b, w, row in zip(better, worse, drawn, strict=True)
            if None not in (b, w)
        ]
        right = share(sum(hit for hit, _ in read), len(read))
        message = (
            f"{len(read)} pairs, right in {right.mean:.1%} ({right.low:.1%} to {right.high:.1%})"
        )
        logging.info(
            "%-20s %s, the longer in %.1f%%", name, message, 100 * longer([row for _, row in read])
        )


def rows_of(cfg: Settings) -> Path:
    """The file, or a copy of its first rows."""
    if not cfg.rows:
        return Path(cfg.file)
    rows = json.loads(gzip.decompress(Path(cfg.file).read_bytes()))[: cfg.rows]
    cut = ROOT / cfg.outputs / f"first_{cfg.rows}.json"
    cut.parent.mkdir(parents=True, exist_ok=True)
    cut.write_text(json.dumps(rows))
    return cut


def train_reward_model(cfg: Settings) -> tuple[Path, list[Any]]:
    """The newest reward node, and the pairs that it came from."""
    from stages.store.records import Pair, load

    root = ROOT / cfg.outputs
    node = (root / "latest" / "reward").resolve()
    fingerprint = json.loads((node / "manifest.json").read_text())["inputs"]["pairs"]["fingerprint"]
    return node, load(root / "pairs" / fingerprint / "pairs.parquet", Pair)


def tf_idf(pairs: list[Any]) -> float:
    """Accuracy on the held-out pairs of a logistic regression on differences of tf-idf, fitted on the others."""
    import torch

    def words(messages):
        return Counter(re.findall(r"\w\w+", messages[0]["content"].lower()))

    texts = [(words(p.chosen), words(p.rejected)) for p in pairs]
    train = torch.tensor([p.split == "train" for p in pairs])
    seen = Counter(
        w for both, of in zip(texts, train, strict=True) if of for text in both for w in text
    )
    column = {word: i for i, word in enumerate(seen)}
    idf = np.log((1 + 2 * int(train.sum())) / (1 + np.array([*seen.values()]))) + 1

    def vector(text: Counter[str]) -> Any:
        vector = np.zeros(len(column))
        for word in text.keys() & column.keys():
            vector[column[word]] = text[word]
        vector *= idf
        return vector / max(1e-9, np.linalg.norm(vector))

    gaps = torch.tensor(np.stack([vector(chosen) - vector(rejected) for chosen, rejected in texts]))
    weights = torch.zeros(len(column), dtype=gaps.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.softplus(-gaps[train] @ weights).sum() + weights @ weights / 2
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return float((gaps[~train] @ weights > 0).double().mean())


def measure(cfg: Settings, arm: str) -> dict[str, Any]:
    """Pairs per second of a second epoch, the losses of both, and the peak of memory."""
    import contextlib

    from datasets import Dataset
    from trl import RewardTrainer

    from stages.config.choices import Precision
    from stages.hardware import allocator, machine
    from stages.models.contract import load_contract
    from stages.models.loading import create_reward_model, resolve_device
    from stages.models.scoring import tokenize_pair
    from stages.objectives.reward import PairwiseRewardTrainer, trainable_model, trl_row
    from stages.training import budget
    from stages.training.arguments import training_arguments
    from stages.training.batches import EpochSchedule
    from tests.bench.dpo import Clock
    from tests.helpers import settings

    node, pairs = train_reward_model(cfg)
    of = json.loads((node / "manifest.json").read_text())["inputs"]["policy"]["fingerprint"]
    policy = ROOT / cfg.outputs / "sft" / of / "model"
    contract = load_contract(policy)
    pairs = [p for p in pairs if p.split == "train"][: cfg.pairs]
    rows = [trl_row(tokenize_pair(p, contract), None) for p in pairs]
    block = settings(
        *shlex.split(cfg.run), "stage=reward", f"reward.batch_size={cfg.batch_size}"
    ).reward
    block.trainer, block.epochs = {"lr_scheduler_type": "constant", "warmup_steps": 0}, 2.0
    block.precision = native() if block.precision is Precision.auto else block.precision
    schedule = EpochSchedule([p.id for p in pairs], cfg.batch_size, block.seed, "pairs")
    memory = allocator.keep_freed_memory() if arm == "ours" else contextlib.nullcontext()
    with tempfile.TemporaryDirectory() as folder, memory:
        machine.reset_peak_memory()
        out, device = work(Path(folder)), resolve_device("auto")
        args = training_arguments(block, out)
        trainer_arguments = {"args": args, "processing_class": contract.tokenizer}
        if arm == "ours":
            block = budget.decide_open_settings(block, args, policy, out)
            model = trainable_model(policy, contract, block, device, out)
            own = {"cfg": block, "out": out, "schedule": schedule}
            trainer = PairwiseRewardTrainer(
                model, train_dataset=Dataset.from_list(rows), **own, **trainer_arguments
            )
        else:
            args.activation_checkpointing = args.gradient_checkpointing = False
            args.per_device_train_batch_size = cfg.micro_batch
            args.gradient_accumulation_steps = cfg.batch_size // cfg.micro_batch
            args.num_train_epochs = 2
            pad = contract.tokenizer.pad_token_id
            model = create_reward_model(policy, block.start_weights, device, pad, block.seed)
            trainer = RewardTrainer(
                model, train_dataset=Dataset.from_list(rows), **trainer_arguments
            )
            in_order = InOrder(schedule)
            trainer._get_train_sampler = lambda *_: in_order
        args.save_strategy = "no"
        clock = Clock()
        trainer.add_callback(clock)
        trainer.train()
    losses = [
        round(point["loss"], 5) for point in trainer.state.log_history if "grad_norm" in point
    ]
    return {
        "pairs_per_second": schedule.steps * cfg.batch_size / clock.epochs[-1],
        "pairs_per_cpu_second": schedule.steps * cfg.batch_size / clock.computed[-1],
        "losses": [losses[0], losses[-1]],
        "memory": machine.peak_gpu_memory() or machine.peak_memory(),
    }


def native() -> Any:
    """The precision that `precision=auto` chooses on this machine."""
    from stages.config.choices import Precision
    from stages.hardware import machine

    return Precision.bf16 if machine.computes_bf16() else Precision.fp32


class InOrder:
    """A sampler of our order of rows, another in every epoch."""

    def __init__(self, schedule: Any):
        self.schedule, self.epochs = schedule, count()

    def __len__(self) -> int:
        return self.schedule.steps * self.schedule.batch_size

    def __iter__(self) -> Any:
        return iter(self.schedule.epoch(next(self.epochs)))


if __name__ == "__main__":
    arms.run(Settings, main, measure)
