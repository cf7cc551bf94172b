"""A reward model of real preferences: `python -m tests.bench.reward [KEY=VALUE …]`.

Right or wrong on prompts that are held out, beside two that read nothing: the longer answer, and a logistic regression
on the difference of the answers' tf-idf. Then the same model on sets of others' preferences, of which it has learnt
nothing, beside the longer answer.

`file`: a preference set; by default rasbt's of the shared data beside the checkout. `elsewhere`: so many pairs of each
other set. `run`: what the command line says of the model and its SFT.
"""

import json
import logging
import math
import re
import shlex
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch

from stages.config.blocks.labels import RewardModel as RewardModelLabels
from stages.config.choices import Precision
from stages.evaluation.agreement import share
from stages.hardware import machine
from stages.labelers.reward_model import RewardModel
from stages.store.records import Message, Pair, content_id, load
from tests.bench import arms, judge
from tests.bench.agreement import SETS, Known, longer
from tests.helpers import DATA, ROOT
from tests.rows import work


@dataclass
class Settings:
    file: str = str(DATA / "preferences" / "rasbt_instruction_preference.json.gz")
    run: str = "sft=none reward.epochs=1 reward.learning_rate=2e-5"
    held_out: float = 0.2
    elsewhere: int = 400
    outputs: str = "outputs/bench/reward"


def main(cfg: Settings) -> None:
    command = [
        sys.executable,
        "run.py",
        "stage=reward",
        "tracker=none",
        f"outputs={cfg.outputs}",
        "pairs=all",
        f"reward.pairs.validation_fraction={cfg.held_out}",
        f"reward.source.path={cfg.file}",
        *shlex.split(cfg.run),
    ]
    subprocess.run(command, cwd=ROOT, check=True)
    root = ROOT / cfg.outputs
    node = (root / "latest" / "reward").resolve()
    manifest = json.loads((node / "manifest.json").read_text())
    metrics = manifest["metrics"]
    logging.info("%s", metrics["summary"])
    for name in ("accuracy", "length_matched", "calibration_error", "longer_chosen"):
        logging.info("%-20s %s", name, json.dumps(metrics.get(name)))
    pairs = root / "pairs" / manifest["inputs"]["pairs"]["fingerprint"] / "pairs.parquet"
    logging.info("%-20s %.3f", "by tf-idf", tf_idf(load(pairs, Pair)))
    elsewhere(node / "model", cfg.elsewhere)


def elsewhere(model: Path, rows: int) -> None:
    """Tell how often it scores the better answer of other sets higher, where it can read both, and how often that is
    the longer one."""
    label = RewardModelLabels(path=str(model), precision=native())
    for name, read_pairs in SETS.items():
        drawn = sorted(read_pairs(), key=content_id)[:rows]
        candidate_pool = judge.pool(drawn)
        with tempfile.TemporaryDirectory() as folder:
            judgements = [*RewardModel(label, work(Path(folder))).judge_all(candidate_pool)]
        scores = {judgement.candidate_id: judgement.score for judgement in judgements}
        candidates = iter(candidate_pool.candidates)
        read = list[Known]()
        right = 0
        for row, better, worse in zip(drawn, candidates, candidates, strict=True):
            high = scores[better.candidate_id]
            low = scores[worse.candidate_id]
            if high is not None and low is not None:
                read.append(row)
                right += high > low
        rate = share(right, len(read))
        bounds = f"{rate.mean:.1%} ({rate.low:.1%} to {rate.high:.1%})"
        by_length = 100 * longer(read)
        logging.info(
            "%-20s %d pairs, right in %s, the longer in %.1f%%", name, len(read), bounds, by_length
        )


def tf_idf(pairs: list[Pair]) -> float:
    """Accuracy on the held-out pairs of a logistic regression on differences of tf-idf, fitted on the others."""
    texts = [(words(pair.chosen), words(pair.rejected)) for pair in pairs]
    is_trained = torch.tensor([pair.split == "train" for pair in pairs])
    documents = Counter[str]()
    for pair, (chosen, rejected) in zip(pairs, texts, strict=True):
        if pair.split == "train":
            documents.update([*chosen, *rejected])
    column = {word: i for i, word in enumerate(documents)}
    count = 1 + 2 * int(is_trained.sum())
    idf = {word: math.log(count / (1 + documents[word])) + 1 for word in documents}

    def vector(text: Counter[str]) -> torch.Tensor:
        values = torch.zeros(len(column), dtype=torch.float64)
        for word in text.keys() & column.keys():
            values[column[word]] = text[word] * idf[word]
        return values / max(1e-9, float(values.norm()))

    gaps = torch.stack([vector(chosen) - vector(rejected) for chosen, rejected in texts])
    weights = torch.zeros(len(column), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.softplus(-gaps[is_trained] @ weights).sum()
        loss = loss + weights @ weights / 2
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return float((gaps[~is_trained] @ weights > 0).double().mean())


def words(messages: list[Message]) -> Counter[str]:
    return Counter(re.findall(r"\w\w+", messages[0]["content"].lower()))


def native() -> Precision:
    """The precision that `precision=auto` chooses on this machine."""
    return Precision.bf16 if machine.computes_bf16() else Precision.fp32


if __name__ == "__main__":
    arms.run(Settings, main)
