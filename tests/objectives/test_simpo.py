"""SimPO on the real trainer: TRL's loss on the same tokens, and no reference."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from trl.experimental.cpo import CPOConfig, CPOTrainer

from stages.config.blocks.training import DPO
from stages.config.choices import Precision
from stages.models.contract import load_contract
from stages.models.loading import load_model
from stages.models.scoring import pad_completions
from stages.objectives import dpo as objective
from stages.objectives.pair_losses import ReferenceFreeTrainer
from stages.store.records import Pair, load
from stages.store.sealed_json import load_json
from stages.store.workspace import StageDir, read_curves
from stages.training.fit import Fit
from tests.equality import assert_metrics_do_not_depend_on_memory
from tests.helpers import TINY, Chain, build, conversational, nodes, refused, settings

TYPED = ("dpo.loss_type=[simpo]", "dpo.beta=2")


@pytest.fixture
def inputs(chain: Chain) -> dict[str, Path]:
    return {"policy": chain.folder("sft"), "pairs": chain.folder("pairs")}


def block(**changes: Any) -> DPO:
    cfg = settings("recipe=tiny", *TYPED).dpo
    micro = changes.pop("micro", 4)
    cfg = replace(cfg, **{"precision": Precision.fp32, "learning_rate": 1e-4, **changes})
    return replace(cfg, runtime=replace(cfg.runtime, micro_batch=micro))


def stage_dir(folder: Path) -> StageDir:
    folder.mkdir(exist_ok=True)
    return StageDir(folder, lambda metrics, step: None)


def padded(rows: list[dict[str, Any]], side: str, pad_id: int) -> dict[str, torch.Tensor]:
    """One side of pairs as TRL's CPOTrainer reads it."""
    completions = [(row["prompt_ids"], row[f"{side}_ids"], None) for row in rows]
    batch = pad_completions(completions, pad_id)
    return {f"{side}_{name}": tensor for name, tensor in batch.items()}


@pytest.mark.parametrize("gamma", [None, 0.0, 1.6])
def test_loss_and_rewards_are_trls_on_the_same_tokens(
    gamma: float | None, inputs: dict[str, Path], tmp_path: Path
) -> None:
    cfg, contract = block(simpo_gamma=gamma), load_contract(inputs["policy"] / "model")
    rows = objective.read_rows(inputs, contract, cfg, stage_dir(tmp_path))
    fit = Fit(
        ReferenceFreeTrainer, cfg, rows, contract, inputs["policy"] / "model", stage_dir(tmp_path)
    )
    model = load_model(inputs["policy"] / "model")
    trainer = fit.build_trainer(
        objective.trainable_model(model, tmp_path / "none", cfg, stage_dir(tmp_path))
    )
    args = CPOConfig(
        str(tmp_path / "trl"), loss_type="simpo", cpo_alpha=0, beta=2.0, report_to="none", use_cpu=True, bf16=False,
        simpo_gamma=1.0 if gamma is None else gamma,
    )  # fmt: skip
    data = conversational(load(inputs["pairs"] / "pairs.parquet", Pair)[:4])
    start = load_model(inputs["policy"] / "model")
    trl = CPOTrainer(
        model=start, args=args, train_dataset=data, processing_class=contract.tokenizer
    )
    batch_rows = [trainer.train_dataset[i] for i in range(6)]
    pad_id = contract.tokenizer.pad_token_id
    trl_batch = padded(batch_rows, "chosen", pad_id) | padded(batch_rows, "rejected", pad_id)
    trainer.model.train()
    start.train()
    loss = trainer.compute_loss(trainer.model, trainer.collate(batch_rows))
    trl_loss, expected = trl.get_batch_loss_metrics(start, trl_batch)
    assert float(loss.detach()) == pytest.approx(float(trl_loss.detach()), abs=1e-6)
    for name in ("chosen", "rejected", "margins", "accuracies"):
        [value] = trainer._metrics["train"][f"rewards/{name}"]
        assert value == pytest.approx(float(expected[f"rewards/{name}"]), abs=1e-5)
    loss.backward()
    trl_loss.backward()
    gradients = dict(start.named_parameters())
    for name, parameter in trainer.model.named_parameters():
        assert torch.allclose(parameter.grad, gradients[name].grad, atol=1e-6), name


def test_no_budget_changes_a_metric_of_a_step(inputs: dict[str, Path], tmp_path: Path) -> None:
    policy = inputs["policy"] / "model"
    contract = load_contract(policy)
    cfg = block()
    rows = objective.read_rows(inputs, contract, cfg, stage_dir(tmp_path))
    fit = Fit(ReferenceFreeTrainer, cfg, rows, contract, policy, stage_dir(tmp_path))
    trainer = fit.build_trainer(
        objective.trainable_model(load_model(policy), tmp_path / "none", cfg, stage_dir(tmp_path))
    )
    step_rows = [trainer.train_dataset[i] for i in range(7)]
    metrics = assert_metrics_do_not_depend_on_memory(trainer, step_rows, [90, 200])
    assert metrics.keys() >= {"rewards/margins", "rewards/accuracies", "entropy", "num_tokens"}


def test_a_chain_without_a_reference(chain: Chain) -> None:
    before = chain.count()
    build(chain.root, "stage=dpo", *TYPED)
    assert chain.count() - before == {"dpo": 1}
    assert "reference" not in nodes(chain.root, *TYPED)
    folder, manifest = chain.folder("dpo", *TYPED), chain.manifest("dpo", *TYPED)
    assert "by SimPO (arXiv:2405.14734)" in (folder / "model" / "README.md").read_text()
    margins = [row["margin"] for row in load_json(folder / "held_out.json", list)]
    last = [
        point["eval_rewards/margins"]
        for point in read_curves(folder)
        if "eval_rewards/margins" in point
    ][-1]
    assert sum(margins) / len(margins) == pytest.approx(last, abs=1e-5)
    assert manifest["metrics"]["held_out"] == len(margins) > 0


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("dpo.loss_type=[simpo,sigmoid]", "simpo needs no reference, and the other losses do"),
        ("dpo.loss_type=[simpo] dpo.reference=sft", "dpo.loss_type=[simpo] needs no reference"),
        ("dpo.simpo_gamma=1", "Add dpo.loss_type=[simpo], or leave the key out"),
        ("dpo.loss_type=[simpo] +dpo.trainer.ld_alpha=0.5", "the loss simpo does not read this"),
    ],
)
def test_what_cannot_be_is_refused(typed: str, message: str, chain: Chain) -> None:
    assert message in refused(*TINY, f"outputs={chain.root}", *typed.split())
