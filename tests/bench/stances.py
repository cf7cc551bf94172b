"""Learn how answers refuse, and admit that they do not know: `python -m tests.bench.stances`.

Fits the weights in `stages/tasks/stances.yaml` on `tests/tasks/stances.jsonl`: answers written as models write,
each labelled by its writer or by a reader, and prompts that are only repeated. Tells for every writer the agreement,
as Cohen's κ, of weights that are learnt from the others. Nothing is learnt from `tests/tasks/read.jsonl`.
"""

import json
import logging
import textwrap
from collections import Counter, defaultdict
from collections.abc import Collection
from typing import NamedTuple

import torch

from stages.config.installation import ROOT
from stages.evaluation.agreement import kappa
from stages.tasks import stances
from tests.helpers import confusion

ANSWERS = ROOT / "tests" / "tasks" / "stances.jsonl"
TABLE = ROOT / "stages" / "tasks" / "stances.yaml"
ECHO = "echo"  # the writer who only repeats prompts
GRAMS = 1200  # words and pairs of a stance at most, those with the largest weights


class Labelled(NamedTuple):
    """An answer, with whether it takes the stance."""

    stance: str
    writer: str
    label: bool
    answer: str


def main() -> None:
    by_stance = defaultdict[str, list[Labelled]](list)
    for line in ANSWERS.read_text(encoding="utf-8").splitlines():
        row = Labelled(**json.loads(line))
        by_stance[row.stance].append(row)
    for stance, rows in by_stance.items():
        for writer in dict.fromkeys(row.writer for row in rows if row.writer != ECHO):
            weights = learn([row for row in rows if row.writer != writer])
            unseen = [row for row in rows if row.writer == writer]
            logging.info(
                "%-8s %-13s κ %.2f of %d", stance, writer, agreement(weights, unseen), len(unseen)
            )
    write({stance: learn(rows) for stance, rows in by_stance.items()})


def learn(rows: Collection[Labelled]) -> dict[str, float]:
    """Return the weights of GRAMS grams by logistic regression, first on all grams of two answers or more."""
    counts = Counter(gram for row in rows for gram in stances.grams(row.answer))
    weights = fit(rows, sorted(gram for gram, count in counts.items() if count > 1))
    largest = sorted((gram for gram in weights if gram), key=lambda gram: -abs(weights[gram]))
    return fit(rows, sorted(largest[:GRAMS]))


def fit(rows: Collection[Labelled], grams: list[str]) -> dict[str, float]:
    """Return weights that minimise the logistic loss and half their sum of squares, and "" for the constant."""
    place = {gram: i for i, gram in enumerate(grams)}
    present = torch.zeros(len(rows), len(grams) + 1)
    present[:, -1] = 1
    for row, features in zip(rows, present, strict=True):
        features[[place[gram] for gram in stances.grams(row.answer) if gram in place]] = 1
    labels = torch.tensor([float(row.label) for row in rows])
    weights = torch.zeros(len(grams) + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.binary_cross_entropy_with_logits(
            present @ weights, labels, reduction="sum"
        )
        value = value + weights[:-1].square().sum() / 2
        value.backward()
        return value

    optimizer.step(loss)
    return dict(zip((*grams, ""), weights.tolist(), strict=True))


def agreement(weights: dict[str, float], rows: Collection[Labelled]) -> float:
    return float(
        kappa(
            confusion(
                [row.label for row in rows], [stances.takes(weights, row.answer) for row in rows]
            )
        )
    )


def write(weights_by_stance: dict[str, dict[str, float]]) -> None:
    """Write the weights in steps of 0.1 into the table, beside what else it has."""
    head = TABLE.read_text(encoding="utf-8").partition("\nstances:")[0]
    lines = [head, "stances:"]
    for stance, weights in weights_by_stance.items():
        lines += [f"  {stance}:", f"    bias: {weights['']:.2f}", "    weights:"]
        by_weight = defaultdict[float, list[str]](list)
        for gram, weight in weights.items():
            by_weight[round(weight, 1)].append(gram)
        for weight in sorted(by_weight.keys() - {0.0}):
            text = textwrap.fill(
                " ".join(filter(None, sorted(by_weight[weight]))), 110, break_on_hyphens=False
            )
            lines += [f"      {weight}: >-", textwrap.indent(text, " " * 8)] if text else []
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
