"""DPO on the real trainer: the stored reference is used, the start is checked, runtime changes nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel
from trl import DPOTrainer

from stages import reference
from stages.config.blocks.arguments import DPOArguments
from stages.config.blocks.training import DPO
from stages.config.choices import LOSS_TYPES, Precision
from stages.config.errors import UserError
from stages.dpo import run
from stages.evaluation.diagnosis.effects import displacement
from stages.models.contract import load_contract
from stages.models.loading import load_model
from stages.objectives.dpo import StoredReferenceTrainer, cut_at_difference, starting_loss, trl_row
from stages.store.records import Pair, PairLogProbs, load
from stages.training.arguments import training_arguments
from stages.training.batches import EpochSchedule
from tests.helpers import Chain, conversational, settings
from tests.rows import work


@pytest.fixture
def inputs(chain: Chain) -> dict[str, Path]:
    return {
        "policy": chain.folder("sft"),
        "pairs": chain.folder("pairs"),
        "reference": chain.folder("reference"),
    }


def block(**changes: Any) -> DPO:
    cfg = settings("recipe=tiny").dpo
    micro = changes.pop("micro", 4)
    cfg = replace(cfg, **{"precision": Precision.fp32, "learning_rate": 1e-4, **changes})
    return replace(cfg, runtime=replace(cfg.runtime, micro_batch=micro))


def train(
    cfg: DPO, inputs: dict[str, Path], folder: Path
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    metrics = run(cfg, inputs, work(folder))
    return load_file(folder / "model" / "model.safetensors"), metrics


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def trainers(
    inputs: dict[str, Path], cfg: DPO, folder: Path
) -> tuple[DPOTrainer, StoredReferenceTrainer]:
    """TRL's own trainer with a reference model in memory, and ours with stored log-probs, on the same pairs."""
    policy = inputs["policy"] / "model"
    trl_trainer = DPOTrainer(
        load_model(policy),
        ref_model=load_model(policy),
        args=training_arguments(cfg, work(folder)),
        train_dataset=conversational(train_pairs(inputs)),
        processing_class=load_contract(policy).tokenizer,
    )
    return trl_trainer, stored_trainer(inputs, cfg, folder)


def train_pairs(inputs: dict[str, Path]) -> list[Pair]:
    pairs = load(inputs["pairs"] / "pairs.parquet", Pair)
    return [pair for pair in pairs if pair.split == "train"][:8]


def stored_trainer(
    inputs: dict[str, Path], cfg: DPO, folder: Path, model: Any = None
) -> StoredReferenceTrainer:
    policy = inputs["policy"] / "model"
    out = work(folder)
    scored = {p.id: p for p in load(inputs["reference"] / "logprobs.parquet", PairLogProbs)}
    ids = [pair.id for pair in train_pairs(inputs)]
    rows = [scored[name] for name in ids]
    if cfg.first_difference:
        rows = [cut_at_difference(row) for row in rows]
    return StoredReferenceTrainer(
        model or load_model(policy),
        args=training_arguments(cfg, out, **StoredReferenceTrainer.arguments),
        train_dataset=Dataset.from_list([trl_row(row, cfg.trainer.ld_alpha) for row in rows]),
        processing_class=load_contract(policy).tokenizer,
        schedule=EpochSchedule(ids, cfg.batch_size, cfg.seed, "dpo"),
        cfg=cfg,
        out=out,
    )


def loss_of(trainer: DPOTrainer, rows: list[dict[str, Any]], shift: float = 0.0) -> float:
    """The loss on a batch after the policy's final norm is scaled, so that log-ratios are not 0."""
    model = trainer.model.eval()
    with torch.no_grad():
        model.model.norm.weight.mul_(1 + shift)
        batch = trainer._prepare_inputs(trainer.data_collator(rows))
        value = float(trainer.compute_loss(model, batch))
        model.model.norm.weight.div_(1 + shift)
    return value


@pytest.mark.parametrize(
    "changes", [{}, {"trainer": DPOArguments(ld_alpha=0.3)}, {"first_difference": True}]
)
def test_stored_log_probs_give_the_loss_of_a_reference_model(
    changes: dict[str, Any], inputs: dict[str, Path], tmp_path: Path
) -> None:
    trl_trainer, our_trainer = trainers(inputs, block(**changes), tmp_path)
    rows = list(our_trainer.train_dataset)
    same_tokens = [{k: v for k, v in row.items() if not k.startswith("ref_")} for row in rows]
    for shift in (0.0, 0.3):
        loss = loss_of(our_trainer, rows, shift)
        assert loss == pytest.approx(loss_of(trl_trainer, same_tokens, shift), abs=1e-5)
    assert loss != pytest.approx(loss_of(our_trainer, rows), abs=1e-3)


@pytest.mark.parametrize("has_adapter", [False, True])
def test_a_trainer_makes_no_second_model_and_copies_no_adapter(
    has_adapter: bool, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(inputs["policy"] / "model")
    if has_adapter:
        model = get_peft_model(model, LoraConfig(target_modules="all-linear"))
    later_models = list[str]()
    make = PreTrainedModel.__init__

    def note(made: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        later_models.append(type(made).__name__)
        make(made, *args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "__init__", note)
    trainer = stored_trainer(inputs, block(), tmp_path, model)
    assert later_models == []
    assert trainer.ref_model is None
    if has_adapter:
        assert [*model.peft_config] == ["default"]


@pytest.mark.parametrize(
    ("rejected", "mask", "kept"),
    [
        ([5, 7, 8, 9], None, [5, 7]),
        ([4, 6, 9], None, [4]),
        ([5, 6], None, [5, 6]),  # it ends like the chosen one begins
        ([5, 3, 7, 9], [True, False, True, True], [5, 3, 7, 9]),  # they part in a user's turn
        ([5, 3, 7, 9], [True, True, False, True], [5, 3]),
    ],
)
def test_of_a_rejected_completion_the_tokens_up_to_the_first_difference_are_read(
    rejected: list[int], mask: list[bool] | None, kept: list[int]
) -> None:
    scored = rejected
    if mask:
        scored = [token for token, is_scored in zip(rejected, mask, strict=True) if is_scored]
    logps = [float(token) for token in scored]
    pair = cut_at_difference(PairLogProbs("p", [1], [5, 6, 9], rejected, [], logps, None, mask))
    assert (pair.chosen_ids, pair.rejected_ids) == ([5, 6, 9], kept)
    assert pair.rejected_logps == [float(token) for token in kept if token in scored]


@pytest.mark.parametrize(
    "changes",
    [
        *({"loss_type": [name]} for name in LOSS_TYPES if name not in ("sft", "exo_pair")),
        {"loss_type": ["exo_pair"], "trainer": DPOArguments(label_smoothing=1e-3)},
        {"loss_type": ["sigmoid", "hinge"], "loss_weights": [0.5, 2.0], "beta": 0.3},
    ],
    ids=lambda changes: "+".join(changes["loss_type"]),
)
def test_every_loss_starts_where_it_must(
    changes: dict[str, Any], inputs: dict[str, Path], tmp_path: Path
) -> None:
    cfg = block(**changes)
    trainer = stored_trainer(inputs, cfg, tmp_path)
    expected = starting_loss(cfg)
    assert expected is not None
    assert loss_of(trainer, list(trainer.train_dataset)) == pytest.approx(expected, rel=1e-4)


def test_the_micro_batch_does_not_change_the_weights(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """11 pairs at once and 1 at a time, some cut to whole batches. Equal to 1e-5 in fp32."""
    changes = {"batch_size": 11, "trainer": DPOArguments(use_weighting=True), "evaluations": 1}
    whole, metrics = train(block(micro=11, **changes), inputs, tmp_path / "11")
    assert metrics["pairs_cut"] > 0
    assert distance(whole, load_file(inputs["policy"] / "model" / "model.safetensors")) > 1e-4
    single, single_metrics = train(block(micro=1, **changes), inputs, tmp_path / "1")
    assert distance(whole, single) < 1e-5
    assert single_metrics["eval_loss"] == pytest.approx(metrics["eval_loss"], abs=1e-5)


@pytest.mark.parametrize("budget", [1, 300])
def test_no_token_budget_changes_the_references_log_probs(
    budget: int, inputs: dict[str, Path], tmp_path: Path
) -> None:
    """The pairs come in the order of their table."""
    cfg = settings("recipe=tiny", "precision=fp32").reference
    out = work(tmp_path)
    cfg = replace(cfg, runtime=replace(cfg.runtime, token_budget=budget))
    reference.run(cfg, {"pairs": inputs["pairs"], "reference": inputs["policy"]}, out)
    stored = load(inputs["reference"] / "logprobs.parquet", PairLogProbs)
    scored = load(out / "logprobs.parquet", PairLogProbs)
    for pair, expected in zip(scored, stored, strict=True):
        assert pair.id == expected.id
        assert pair.chosen_logps == pytest.approx(expected.chosen_logps, abs=1e-5)
        assert pair.rejected_logps == pytest.approx(expected.rejected_logps, abs=1e-5)


def test_no_shard_changes_a_bit_of_the_references_log_probs(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    cfg = settings("recipe=tiny", "precision=fp32").reference
    tables = list[list[PairLogProbs]]()
    for shard_size in (1, 1000):
        out = work(tmp_path / str(shard_size))
        runtime = replace(cfg.runtime, token_budget=100, shard_size=shard_size)
        sources = {"pairs": inputs["pairs"], "reference": inputs["policy"]}
        reference.run(replace(cfg, runtime=runtime), sources, out)
        tables.append(load(out / "logprobs.parquet", PairLogProbs))
    assert tables[0] == tables[1]


def test_another_model_than_the_reference_is_refused(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """The folder has the reference's name, its weights were changed behind its back."""
    weights = inputs["policy"] / "model" / "model.safetensors"
    changed = {name: tensor * 1.01 for name, tensor in load_file(weights).items()}
    save_file(changed, weights, {"format": "pt"})
    with pytest.raises(UserError, match=rf"{inputs['policy'].name}.* differ by .* nats per token"):
        train(block(), inputs, tmp_path / "dpo")


def test_a_policy_rebuilt_since_is_refused_by_its_digest(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    manifest = inputs["policy"] / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"digest": "', '"digest": "0'))
    with pytest.raises(UserError, match=r"not the same weights"):
        train(block(), inputs, tmp_path / "dpo")


def test_pairs_too_long_are_dropped_and_too_many_stop(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    pairs = len(load(inputs["pairs"] / "pairs.parquet", Pair))
    with pytest.raises(UserError, match=rf"{pairs} longer than dpo.max_length=5 tokens"):
        train(block(max_length=5), inputs, tmp_path / "none")
    _, metrics = train(block(max_length=32, max_dropped=0.9), inputs, tmp_path / "some")
    named = (tmp_path / "some" / "dropped.jsonl").read_text().splitlines()
    assert metrics["pairs_dropped"] == {"longer than dpo.max_length=32 tokens": len(named)}
    assert 0 < len(named) < pairs


@pytest.mark.parametrize(
    ("chosen", "rejected", "message"),
    [
        (-8.0, -15.0, "fell by 2.0 nats"),
        (-5.5, -15.0, ""),
        (-7.4, -15.0, ""),  # less than 0.3 nats per token
    ],
)
def test_displacement_is_measured_on_the_held_out_pairs_against_the_reference(
    chosen: float, rejected: float, message: str
) -> None:
    row = {"ref_rejected_logps": -9.0, "chosen_ids": [7] * 5, "chosen_mask": None}
    rows = [row | {"ref_chosen_logps": logps} for logps in (-5.0, -7.0)]
    metrics = {"eval_logps/chosen": chosen, "eval_logps/rejected": rejected}
    sentence = displacement(metrics, rows)
    assert message in sentence
    assert bool(sentence) == bool(message)
