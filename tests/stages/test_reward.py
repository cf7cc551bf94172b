"""The reward stage on the tiny chain: what it publishes, what it counts, what no runtime and no kill changes."""

import json
import math
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from stages.config.blocks.training import Reward
from stages.config.choices import Adapter
from stages.config.errors import UserError
from stages.evaluation.learnt_scores import Scored, figures
from stages.models.loading import load_reward_model
from stages.reward import run
from stages.store.records import Judgement, Pair, load, save
from stages.store.workspace import StageDir
from tests.helpers import Chain, build, nodes, refused, settings
from tests.rows import work

TOY = "reward.source.path=package:stages/tasks/toy_preferences.jsonl"
CPU = torch.device("cpu")


@pytest.fixture
def inputs(chain: Chain) -> dict[str, Path]:
    return {
        "policy": chain.folder("sft"),
        "judged": chain.folder("label"),
        "pairs": chain.folder("pairs"),
    }


def block(**changes: Any) -> Reward:
    runtime = changes.pop("runtime", {})
    cfg = replace(settings("recipe=tiny").reward, **changes)
    return replace(cfg, runtime=replace(cfg.runtime, **runtime))


def train(
    cfg: Reward, inputs: dict[str, Path], folder: Path
) -> tuple[dict[str, torch.Tensor], dict[str, Any], StageDir]:
    out = work(folder)
    metrics = run(cfg, inputs, out)
    return load_file(folder / "model" / "model.safetensors"), metrics, out


def test_it_publishes_a_model_that_anybody_loads(inputs: dict[str, Path], tmp_path: Path) -> None:
    """Every weight moved; the published model gives the rewards of held_out.json; the card's code runs."""
    weights, metrics, out = train(block(epochs=2.0), inputs, tmp_path / "reward")
    before = load_file(inputs["policy"] / "model" / "model.safetensors")
    assert not [name for name in before if name in weights and before[name].equal(weights[name])]
    assert not weights["score.weight"].equal(torch.zeros_like(weights["score.weight"]))
    pairs = {pair.id: pair for pair in load(inputs["pairs"] / "pairs.parquet", Pair)}
    held_out = json.loads((out / "held_out.json").read_text())
    assert metrics["pairs"] + metrics["held_out"] == len(pairs)
    assert metrics["held_out"] == len(held_out) > 0

    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    model = AutoModelForSequenceClassification.from_pretrained(out / "model")
    for row in held_out:
        pair = pairs[row["id"]]
        text = tokenizer.apply_chat_template([*pair.prompt, *pair.chosen], tokenize=False).rstrip()
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        # else it was drawn in other tokens than its text has
        if ids.shape[1] == row["chosen_tokens"]:
            assert model(ids).logits.item() == pytest.approx(row["chosen"], abs=1e-4)
    [code] = (out / "model" / "README.md").read_text().split("```python\n")[1:]
    exec(code.split("```")[0].replace("FOLDER", str(out / "model")), {})


def test_an_adapter_is_merged_with_its_head(inputs: dict[str, Path], tmp_path: Path) -> None:
    _, metrics, out = train(
        block(adapter=Adapter.lora, learning_rate=1e-2), inputs, tmp_path / "reward"
    )
    load_reward_model(out / "model", block().start_weights, CPU)
    adapter = load_file(out / "adapter" / "adapter_model.safetensors")
    merged = load_file(out / "model" / "model.safetensors")
    [head] = [value for name, value in adapter.items() if "score" in name]
    assert torch.equal(head, merged["score.weight"])
    assert metrics["steps"] > 0


def test_what_does_not_fit_is_counted_and_past_a_share_an_error(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    pairs = load(inputs["pairs"] / "pairs.parquet", Pair)
    tight = block(max_length=30, max_dropped=1.0)
    _, metrics, out = train(tight, inputs, tmp_path / "tight")
    dropped = metrics["pairs_dropped"]["longer than reward.max_length=30 tokens"]
    assert dropped == len(pairs) - metrics["pairs"] - metrics["held_out"] > 0
    assert any(f"{dropped} of {len(pairs)} pairs " in warning for warning in out.warnings)
    with pytest.raises(UserError, match=r"reward\.max_dropped=0"):
        train(replace(tight, max_dropped=0.0), inputs, tmp_path / "strict")


def test_a_margin_is_trained_where_it_is_asked_for_and_nowhere_else(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """The chain's pairs have a margin, which TRL would take wherever it stands."""
    plain, _, _ = train(block(), inputs, tmp_path / "plain")
    with_margin, _, _ = train(block(margin=True), inputs, tmp_path / "margin")
    table = inputs["pairs"] / "pairs.parquet"
    save(table, [replace(pair, margin=None) for pair in load(table, Pair)], Pair)
    without, _, _ = train(block(), inputs, tmp_path / "without")
    assert all(torch.equal(plain[name], without[name]) for name in plain)
    assert any(not torch.equal(plain[name], with_margin[name]) for name in plain)
    with pytest.raises(UserError, match=r"reward\.margin=true: pair "):
        train(block(margin=True), inputs, tmp_path / "none")


def test_preferences_of_its_own_train_it_and_it_labels_the_chain(chain: Chain) -> None:
    """One command from a file to a chain that is labelled by a learnt label; scores are quantiles, and watched."""
    labels = ("label=reward_model", TOY, "reward.max_length=256")
    build(chain.root, "stage=label", *labels)
    pairs = chain.manifest("reward", *labels)["inputs"]["pairs"]["fingerprint"]
    assert pairs == nodes(chain.root, *labels)["pairs_reward"].fingerprint
    judgements = load(chain.folder("label", *labels) / "judgements.parquet", Judgement)
    by_prompt = sorted(judgements, key=lambda j: (j.prompt_id, float(j.raw or "nan")))
    for _, group in groupby(by_prompt, key=lambda j: j.prompt_id):
        scores = [j.score or 0.0 for j in group]
        assert scores == sorted(scores), "a reward orders the candidates of one prompt"
    best_of = chain.manifest("label", *labels)["metrics"]["best_of"]
    learnt_scores = [best_of[n]["score"] for n in ("1", "2", "4")]
    assert learnt_scores == sorted(learnt_scores), "the best of more has the higher score"
    model = chain.folder("reward", *labels) / "model"
    by_path = ("label=reward_model", f"label.path={model}")
    build(chain.root, "stage=label", *by_path)
    by_path_judgements = load(chain.folder("label", *by_path) / "judgements.parquet", Judgement)
    assert [j.score for j in by_path_judgements] == [j.score for j in judgements]


@pytest.mark.parametrize(
    ("overrides", "pattern"),
    [
        (("label=reward_model",), "label=reward_model needs a reward model. Set"),
        (
            ("stage=reward", "reward.adapter=qlora"),
            "reward.adapter=qlora: a reward model can only use none, lora",
        ),
        (
            ("stage=reward", "reward.batch_size=4000"),
            "reward.batch_size=4000: 48 prompts make at most 48 pairs",
        ),
        (
            ("stage=reward", "reward.source.path=nowhere.jsonl"),
            "reward.source.path=nowhere.jsonl: ",
        ),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_built(
    overrides: tuple[str, ...], pattern: str
) -> None:
    assert refused("recipe=tiny", *overrides).startswith(pattern)


def test_a_model_without_a_head_is_no_reward_model(chain: Chain) -> None:
    with pytest.raises(UserError, match=r"score\.weight"):
        load_reward_model(chain.folder("sft") / "model", block().start_weights, CPU)


def pair(gap: float, longer: int, source: str) -> Scored:
    """A pair of a prompt of its own, whose chosen answer has this many tokens more."""
    return Scored("", f"{source}{gap}{longer}", source, gap, 0.0, 10 + longer, 10)


def test_figures_are_those_of_the_definition() -> None:
    """A lover of length is right as often as chosen is longer, and in half of the pairs once lengths are matched."""
    by_length = [pair(2.0 + i, 3, "a") for i in range(30)]
    by_length += [pair(-2.0 - i, -3, "b") for i in range(10)]
    held_out = figures(by_length)
    assert held_out["accuracy"]["mean"] == held_out["longer_chosen"] == 0.75
    assert held_out["length_matched"]["mean"] == 0.5
    assert held_out["by_source"]["a"]["mean"] == 1.0
    assert held_out["by_source"]["b"]["mean"] == 0.0
    sure = 1 / (1 + math.exp(-2))
    held_out = figures([pair(2.0, 3, "a"), pair(-2.0, 3, "b")])
    assert held_out["calibration_error"] == pytest.approx(sure - 0.5)
    assert held_out["brier"] == pytest.approx((1 - sure) ** 2 / 2 + sure**2 / 2)
