"""KTO on the real trainer: TRL's loss on the same mismatches, mismatched completions, first loss."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedModel
from trl import KTOConfig, KTOTrainer

from stages import kto
from stages.config.blocks.training import KTO
from stages.config.choices import Precision
from stages.config.errors import UserError
from stages.models.contract import load_contract
from stages.models.loading import load_model, load_tokenizer
from stages.objectives import kto as objective
from stages.objectives.first_step import read_reference
from stages.pages.plots import panels
from stages.store.records import load, save
from stages.store.single_completions import UnpairedPreference, mismatched_pairs
from stages.store.workspace import StageDir, read_curves
from stages.training.fit import Fit
from stages.training.micro_batches import StepRows
from tests.equality import assert_metrics_do_not_depend_on_memory
from tests.helpers import Chain, build, refused, settings

ROWS = 16  # of a step


@pytest.fixture(scope="module")
def inputs(built: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The inputs of the stage. Do not write to them."""
    chain = Chain(shutil.copytree(built, tmp_path_factory.mktemp("kto") / "outputs", symlinks=True))
    build(chain.root, "stage=reference", "align=kto")
    roles = {"policy": "sft", "unpaired": "unpaired", "reference": "reference"}
    return {role: chain.folder(name, "align=kto") for role, name in roles.items()}


def block(**changes: Any) -> KTO:
    return replace(
        settings("recipe=tiny", "align=kto").kto, **{"precision": Precision.fp32, **changes}
    )


def moved(model: PreTrainedModel) -> PreTrainedModel:
    """Return a policy away from its reference, so that no log-ratio is 0."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=draw))
    return model


def trainer_of(cfg: KTO, inputs: dict[str, Path], folder: Path) -> objective.UnpairedTrainer:
    """Return a trainer of a moved policy."""
    folder.mkdir()
    out, policy = StageDir(folder, lambda metrics, step: None), inputs["policy"] / "model"
    rows, _ = objective.read_rows(inputs, contract := load_contract(policy), cfg, out)
    fit = Fit(
        objective.UnpairedTrainer, objective.with_weights(cfg, 1, 2), rows, contract, policy, out
    )
    return fit.build_trainer(moved(objective.load_start(policy, cfg, fit.args.device, out)))


def step_of(
    trainer: objective.UnpairedTrainer,
) -> tuple[float, dict[str, torch.Tensor], dict[str, Any]]:
    """Return the loss, the gradients and TRL's metrics of a step, with the arguments that Trainer's loop gives."""
    rows = StepRows([trainer.train_dataset[i] for i in range(ROWS)])
    steps, items = trainer.get_batch_samples(iter([rows]), 1, trainer.args.device)
    loss = float(trainer.training_step(trainer.model, steps[0], items))
    gradients = {
        name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None
    }
    return loss, gradients, {name: values[0] for name, values in trainer._metrics["train"].items()}


def test_no_budget_changes_a_metric_of_a_step(inputs: dict[str, Path], tmp_path: Path) -> None:
    """Also where all completions of a micro-batch have one label."""
    trainer = trainer_of(block(), inputs, tmp_path / "ours")
    rows = [trainer.train_dataset[i] for i in range(ROWS)]
    metrics = assert_metrics_do_not_depend_on_memory(trainer, rows, [1, 90, 200])
    assert metrics.keys() >= {"kl", "rewards/margins", "logps/rejected", "entropy", "num_tokens"}


class PlainTRL(KTOTrainer):
    """TRL's trainer on rows that are tokenised, with mismatched completions and the reference's log-probs."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    _precompute_ref_logps = _prepare_dataset  # type: ignore[assignment]


def test_a_step_has_trls_loss_and_gradients(inputs: dict[str, Path], tmp_path: Path) -> None:
    """On the same rows and mismatches, with the step as TRL's one micro-batch, padded."""
    trainer = trainer_of(block(), inputs, tmp_path / "ours")
    loss, gradients, metrics = step_of(trainer)
    assert metrics["kl"] > 0
    weights = {
        name: getattr(trainer.cfg, name)
        for name in ("desirable_weight", "undesirable_weight", "beta")
    }
    arguments = KTOConfig(
        output_dir=str(tmp_path / "trl"),
        use_cpu=True,
        bf16=False,
        report_to=[],
        gradient_checkpointing=False,
        precompute_ref_log_probs=True,
        per_device_train_batch_size=ROWS,
        **weights,
    )
    policy = inputs["policy"] / "model"
    plain = PlainTRL(
        moved(load_model(policy)),
        args=arguments,
        train_dataset=trainer.train_dataset,
        processing_class=load_tokenizer(policy),
    )
    plain.model.train()
    batch = plain.data_collator([trainer.train_dataset[i] for i in range(ROWS)])
    trl_loss = plain.compute_loss(plain.model, batch)
    trl_loss.backward()
    assert loss == pytest.approx(float(trl_loss.detach()), abs=1e-6)
    for name, parameter in plain.model.named_parameters():
        if parameter.grad is not None:
            assert float((parameter.grad - gradients[name]).abs().max()) <= 1e-6, name
    for name in (
        "kl",
        "entropy",
        "rewards/chosen",
        "rewards/rejected",
        "logps/chosen",
        "logps/rejected",
    ):
        assert metrics[name] == pytest.approx(float(plain._metrics["train"][name][0]), abs=1e-4), (
            name
        )


def test_every_row_has_a_fixed_completion_of_another_prompt(inputs: dict[str, Path]) -> None:
    rows = load(inputs["unpaired"] / "unpaired.parquet", UnpairedPreference)
    others = {pair.id: pair.rejected_id for pair in mismatched_pairs(rows)}
    assert others == {pair.id: pair.rejected_id for pair in mismatched_pairs(reversed(rows))}
    by_candidate = {row.candidate_id: row for row in rows}
    for row in rows:
        other = by_candidate[others[row.id]]
        assert other.prompt_id != row.prompt_id and other.split == row.split
    one_prompt = [row for row in rows if row.prompt_id == rows[0].prompt_id]
    with pytest.raises(UserError, match="two prompts"):
        list(mismatched_pairs(one_prompt))


@pytest.mark.extended
def test_a_training_starts_at_half_the_mean_weight_and_learns(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    cfg = block(learning_rate=1e-3, epochs=4.0, batch_size=ROWS, evaluations=1)
    metrics = kto.run(cfg, inputs, out := StageDir(tmp_path, lambda metrics, step: None))
    desirable, undesirable = (metrics[name] for name in ("desirable", "undesirable"))
    assert metrics["desirable_weight"] * desirable == pytest.approx(
        metrics["undesirable_weight"] * undesirable
    )
    assert metrics["step_0_gap"] <= 1e-5
    first = next(point for point in read_curves(out.path) if "eval_loss" in point)
    logged = {name for point in read_curves(out.path) for name in point}
    assert all(not logged.isdisjoint(panel["series"]) for panel in panels("kto").values()), (
        "no chart of the report is empty"
    )
    held_out = [
        row
        for row in load(inputs["unpaired"] / "unpaired.parquet", UnpairedPreference)
        if row.split != "train"
    ]
    weights = [
        metrics["desirable_weight" if row.label else "undesirable_weight"] for row in held_out
    ]
    assert first["eval_loss"] == pytest.approx(sum(weights) / len(weights) / 2, abs=1e-5)
    assert metrics["rewards/margins"] > 0 < metrics["rewards/chosen"] - metrics["rewards/rejected"]
    before, after = (
        load_model(folder / "model").state_dict() for folder in (inputs["policy"], out.path)
    )
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert len(read_reference(inputs, [row.id for row in held_out])) == len(held_out)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("rounds=2",), "rounds=1"),
        (("kto.trainer.extra.loss_type=kto",), "does not have this argument"),
    ],
)
def test_settings_that_cannot_work_are_refused(overrides: tuple[str, ...], words: str) -> None:
    assert words in refused("recipe=tiny", "tracker=none", "align=kto", "stage=kto", *overrides)


@pytest.mark.parametrize(
    "edit", [{"label": True}, {"completion": [{"role": "assistant", "content": "No"}]}]
)
def test_an_edited_completion_is_refused_by_its_name(
    edit: dict[str, Any], inputs: dict[str, Path], tmp_path: Path
) -> None:
    rows = load(inputs["unpaired"] / "unpaired.parquet", UnpairedPreference)
    scored = [*mismatched_pairs(rows)]
    place = next(i for i, row in enumerate(rows) if not row.label)
    rows[place] = replace(rows[place], **edit)
    first = next(
        pair.id for pair, old in zip(mismatched_pairs(rows), scored, strict=True) if pair != old
    )
    save(tmp_path / "unpaired.parquet", rows, UnpairedPreference)
    edited = {**inputs, "unpaired": tmp_path}
    contract = load_contract(inputs["policy"] / "model")
    out = StageDir(tmp_path, lambda metrics, step: None)
    with pytest.raises(UserError, match=rf"unpaired\.parquet: pair {first}:.*rebuild=reference"):
        objective.read_rows(edited, contract, block(), out)
