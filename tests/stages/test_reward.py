"""The reward stage on the tiny chain: what it publishes, what it counts, what no runtime and no kill changes."""

import json
from dataclasses import replace
from itertools import count, groupby
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
from stages.models.contract import load_contract
from stages.models.loading import create_reward_model, load_reward_model
from stages.reward import run
from stages.store.records import Example, Judgement, Pair, load, save
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
    policy = inputs["policy"] / "model"
    begun = create_reward_model(
        policy, block().start_weights, CPU, load_contract(policy).tokenizer.pad_token_id, 0
    )
    assert not [
        name for name, value in begun.state_dict().items() if torch.equal(value, weights[name])
    ]
    pairs = load(inputs["pairs"] / "pairs.parquet", Pair)
    held_out = json.loads((out / "held_out.json").read_text())
    assert (
        metrics["pairs"] + metrics["held_out"] == len(pairs)
        and metrics["held_out"] == len(held_out) > 0
    )
    prompts = {e.id: e.source for e in load(inputs["judged"] / "prompts.parquet", Example)}
    assert {*metrics["by_source"]} == {
        prompts[p.prompt_id] for p in pairs if p.split == "validation"
    }

    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    model = AutoModelForSequenceClassification.from_pretrained(out / "model")
    by_id = {pair.id: pair for pair in pairs}
    for row in held_out:
        pair = by_id[row["id"]]
        text = tokenizer.apply_chat_template([*pair.prompt, *pair.chosen], tokenize=False).rstrip()
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        # else it was drawn in other tokens than its text has
        if ids.shape[1] == row["chosen_tokens"]:
            assert model(ids).logits.item() == pytest.approx(row["chosen"], abs=1e-4)
    [code] = (out / "model" / "README.md").read_text().split("```python\n")[1:]
    exec(code.split("```")[0].replace("FOLDER", str(out / "model")), {})


@pytest.mark.extended
def test_neither_micro_batches_nor_the_forward_change_the_weights(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    # Adam divides small gradients by their size, so a step's rounding errors are in proportion to the learning rate.
    slow = {"learning_rate": 1e-4}
    one, metrics, _ = train(block(**slow, runtime={"micro_batch": 4}), inputs, tmp_path / "one")
    two, two_logs, _ = train(
        block(**slow, runtime={"micro_batch": 1, "save_steps": 2}), inputs, tmp_path / "two"
    )
    padded, _, _ = train(replace(block(**slow), forward="padded"), inputs, tmp_path / "padded")
    for other in (two, padded):
        assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-5
    assert metrics["eval_loss"] == pytest.approx(two_logs["eval_loss"], abs=1e-5)


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
    lengths = sorted(
        max(row["chosen_tokens"], row["rejected_tokens"])
        for row in json.loads(
            (train(block(), inputs, tmp_path / "all")[2] / "held_out.json").read_text()
        )
    )
    tight = block(max_length=lengths[-1] - 1, max_dropped=1.0)
    _, metrics, out = train(tight, inputs, tmp_path / "tight")
    pairs = load(inputs["pairs"] / "pairs.parquet", Pair)
    dropped = metrics["pairs_dropped"][f"longer than reward.max_length={tight.max_length} tokens"]
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
    pairs = load(table, Pair)
    for pair in pairs:
        pair.margin = None
    save(table, pairs, Pair)
    without, _, _ = train(block(), inputs, tmp_path / "without")
    assert all(torch.equal(plain[name], without[name]) for name in plain)
    assert any(not torch.equal(plain[name], with_margin[name]) for name in plain)
    with pytest.raises(UserError, match=r"reward\.margin=true: pair "):
        train(block(margin=True), inputs, tmp_path / "none")


def test_preferences_of_its_own_train_it_and_it_labels_the_chain(chain: Chain) -> None:
    """One command from a file to a chain that is labelled by a learnt label; scores are quantiles, and watched."""
    labels = ("label=reward_model", TOY, "reward.max_length=256")
    build(chain.root, "stage=label", *labels)
    reward = chain.manifest("reward", *labels)
    assert (
        reward["inputs"]["pairs"]["fingerprint"]
        == nodes(chain.root, *labels)["pairs_reward"].fingerprint
    )
    assert chain.manifest("label_reward", *labels)["metrics"]["labeler"] == "dataset"
    judgements = load(chain.folder("label", *labels) / "judgements.parquet", Judgement)
    by_prompt = sorted(judgements, key=lambda j: (j.prompt_id, float(j.raw or "nan")))
    for _, group in groupby(by_prompt, key=lambda j: j.prompt_id):
        scores = [j.score or 0.0 for j in group]
        assert scores == sorted(scores), "a reward orders the candidates of one prompt"
    scores = sorted(j.score or 0.0 for j in judgements)
    assert 0 < scores[0] < 0.1 and 0.9 < scores[-1] < 1
    metrics = chain.manifest("label", *labels)["metrics"]
    assert [*metrics["best_of"]] == ["1", "2", "4"]
    learnt = [point["score"] for point in metrics["best_of"].values()]
    assert learnt == sorted(learnt), "the best of more has the higher score"
    by_path = (
        "label=reward_model",
        f"label.path={chain.folder('reward', *labels) / 'model'}",
    )
    build(chain.root, "stage=label", *by_path)
    by_path_judgements = load(chain.folder("label", *by_path) / "judgements.parquet", Judgement)
    assert [j.score for j in by_path_judgements] == [j.score for j in judgements]


def test_what_filters_the_chains_pairs_filters_no_preferences_of_others(tmp_path: Path) -> None:
    """And its own filter changes the pairs that it learns from, by which the model has another fingerprint."""
    plain = nodes(tmp_path, TOY)
    chains = nodes(
        tmp_path, TOY, "pairs.max_length_ratio=1.5", "pairs.min_score=1", "pairs.strategy=random"
    )
    own = nodes(tmp_path, TOY, "reward.pairs.max_length_ratio=1.5")
    assert plain["pairs_reward"].config.strategy == "all"
    assert plain["pairs"].fingerprint != chains["pairs"].fingerprint
    for name in ("pairs_reward", "reward"):
        assert plain[name].fingerprint == chains[name].fingerprint != own[name].fingerprint
    assert own["pairs"].fingerprint == plain["pairs"].fingerprint


@pytest.mark.parametrize(
    ("overrides", "pattern"),
    [
        (("label=reward_model",), "label=reward_model needs a reward model. Set"),
        (
            ("label.precision=fp32",),
            "label.precision: label=verifier does not have this key. Add label=reward_model",
        ),
        (
            ("stage=reward", "reward.adapter=qlora"),
            "reward.adapter=qlora: a reward model can only use none, lora",
        ),
        (
            ("reward.pairs.margin_quantiles=[0.5]",),
            "reward.pairs.margin_quantiles=[0.5]: give two quantiles in order",
        ),
        (("stage=reward", "reward.batch_size=4000"), "reward.batch_size=4000: there are at most"),
        (("stage=reward", "reward.trainer.max_length=4"), "reward.trainer.max_length: "),
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


PROMPTS = map(str, count())


def pair(gap: float, longer: int, source: str = "a", prompt: str | None = None) -> Scored:
    return Scored("", prompt or next(PROMPTS), source, gap, 0.0, 10 + longer, 10)


def several(count: int, gap: float, longer: int) -> list[Scored]:
    return [pair(gap, longer) for _ in range(count)]


def test_figures_are_those_of_the_definition() -> None:
    """A lover of length is right as often as chosen is longer, and in half of the pairs once lengths are matched."""
    by_length = several(30, 2.0, 3) + several(10, -2.0, -3)
    held_out_figures = figures(by_length)
    assert held_out_figures["accuracy"]["mean"] == held_out_figures["longer_chosen"] == 0.75
    assert held_out_figures["length_matched"]["mean"] == 0.5
    assert (
        held_out_figures["length_matched"]["high"] - held_out_figures["length_matched"]["low"]
        > held_out_figures["accuracy"]["high"] - 0.75
    )
    assert held_out_figures["length_correlation"] == pytest.approx(1)
    sure = 1 / (1 + 2.718281828459045**-2)
    assert held_out_figures["calibration_error"] == pytest.approx(abs(sure - 0.75))
    assert held_out_figures["brier"] == pytest.approx(0.75 * (1 - sure) ** 2 + 0.25 * sure**2)
    held_out_figures = figures(
        [pair(1.0, 1, "a"), pair(1.0, -1, "a"), pair(-1.0, 1, "b"), pair(1.0, -1, "b")]
    )
    assert {source: share["mean"] for source, share in held_out_figures["by_source"].items()} == {
        "a": 1.0,
        "b": 0.5,
    }


def test_pairs_of_one_prompt_count_as_one_draw() -> None:
    gaps = [(gap, longer) for gap in (1.0, 1.0, 1.0, -1.0) for longer in (1, -1)] * 5
    once = figures([pair(*gap, prompt=str(i)) for i, gap in enumerate(gaps)])
    repeated = figures([pair(*gap, prompt=str(i)) for i, gap in enumerate(gaps) for _ in range(8)])
    for name in ("accuracy", "length_matched"):
        assert repeated[name] == pytest.approx(once[name]), name
