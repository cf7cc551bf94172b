"""DPO on the real trainer: the stored reference is used, the start is checked, runtime changes nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from trl import DPOTrainer

from stages import reference
from stages.config.blocks.arguments import DPOArguments
from stages.config.blocks.training import DPO
from stages.config.choices import LOSS_TYPES, Forward, Precision
from stages.config.errors import UserError
from stages.dpo import run
from stages.evaluation.diagnosis.effects import displacement
from stages.models.contract import load_contract
from stages.models.loading import load_model
from stages.objectives.dpo import StoredReferenceTrainer, cut_at_difference, starting_loss, trl_row
from stages.store.records import Pair, PairLogProbs, load, save
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
    contract = load_contract(inputs["policy"] / "model")
    pairs = [p for p in load(inputs["pairs"] / "pairs.parquet", Pair) if p.split == "train"][:8]
    reference = {p.id: p for p in load(inputs["reference"] / "logprobs.parquet", PairLogProbs)}
    out = work(folder)

    def build_trainer(kind: type[DPOTrainer], **own: Any) -> DPOTrainer:
        stored = own.pop("stored", False)
        args = training_arguments(cfg, out, **(StoredReferenceTrainer.arguments if stored else {}))
        model = load_model(inputs["policy"] / "model")
        return kind(model, args=args, processing_class=contract.tokenizer, **own)

    scored = [
        cut_at_difference(reference[p.id]) if cfg.first_difference else reference[p.id]
        for p in pairs
    ]
    rows = Dataset.from_list([trl_row(each, cfg.trainer.ld_alpha) for each in scored])
    turns = EpochSchedule([p.id for p in pairs], cfg.batch_size, cfg.seed, "dpo")
    trl_trainer = build_trainer(
        DPOTrainer,
        train_dataset=conversational(pairs),
        ref_model=load_model(inputs["policy"] / "model"),
    )
    return trl_trainer, build_trainer(
        StoredReferenceTrainer, stored=True, train_dataset=rows, schedule=turns, cfg=cfg, out=out
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
    rows, plain = list(our_trainer.train_dataset), list(trl_trainer.train_dataset)
    # Ours leaves out the newline that the template puts after the end of turn.
    for row, other in zip(rows, plain, strict=True):
        assert other["chosen_ids"][: len(row["chosen_ids"])] == row["chosen_ids"]
    same_tokens = [{k: v for k, v in row.items() if not k.startswith("ref_")} for row in rows]
    for shift in (0.0, 0.3):
        assert loss_of(our_trainer, rows, shift) == pytest.approx(
            loss_of(trl_trainer, same_tokens, shift), abs=1e-5
        )
    assert loss_of(our_trainer, rows, 0.3) != pytest.approx(
        loss_of(our_trainer, rows, 0.0), abs=1e-3
    )


def test_of_a_rejected_completion_the_tokens_up_to_the_first_difference_are_read() -> None:
    def cut(
        chosen: list[int], rejected: list[int], mask: list[bool] | None = None
    ) -> tuple[list[int], list[float]]:
        logps = [
            -float(token)
            for token, scored in zip(rejected, mask or [True] * len(rejected), strict=True)
            if scored
        ]
        pair = cut_at_difference(PairLogProbs("p", [1], chosen, rejected, [], logps, None, mask))
        assert pair.chosen_ids == chosen and (
            mask is None or pair.rejected_mask == mask[: len(pair.rejected_ids)]
        )
        return pair.rejected_ids, pair.rejected_logps

    assert cut([5, 6, 9], [5, 7, 8, 9]) == ([5, 7], [-5.0, -7.0])
    assert cut([5, 6, 9], [4, 6, 9]) == ([4], [-4.0])
    assert cut([5, 6, 9], [5, 6]) == ([5, 6], [-5.0, -6.0]), (
        "a completion that ends like the chosen one begins"
    )
    parts_in_a_user_turn = [5, 3, 7, 9], [True, False, True, True]
    assert cut([5, 6, 9], *parts_in_a_user_turn) == ([5, 3, 7, 9], [-5.0, -7.0, -9.0]), "whole"
    assert cut([5, 6, 9], [5, 3, 7, 9], [True, True, False, True]) == ([5, 3], [-5.0, -3.0])


def test_what_follows_the_first_difference_trains_nothing(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    short, metrics = train(block(first_difference=True), inputs, tmp_path / "short")
    whole, metrics_of_whole = train(block(), inputs, tmp_path / "whole")
    assert distance(short, whole) > 1e-4 and metrics["tokens"] < metrics_of_whole["tokens"]
    assert metrics["step_0_loss"] == pytest.approx(metrics_of_whole["step_0_loss"], abs=1e-5)


def test_garbage_in_the_store_changes_the_loss(inputs: dict[str, Path], tmp_path: Path) -> None:
    """Were our override of TRL's private method dead, TRL would compute log-probs itself, and garbage do no harm."""
    _, honest = trainers(inputs, block(), tmp_path)
    table = inputs["reference"] / "logprobs.parquet"
    scored = load(table, PairLogProbs)
    for row in scored:
        row.chosen_logps[0] -= 50.0
    save(table, scored, PairLogProbs)
    _, misled = trainers(inputs, block(), tmp_path)
    assert (
        abs(
            loss_of(misled, list(misled.train_dataset))
            - loss_of(honest, list(honest.train_dataset))
        )
        > 0.5
    )


@pytest.mark.parametrize("loss_type", [t for t in LOSS_TYPES if t != "sft"])
def test_every_loss_starts_where_it_must(
    loss_type: str, inputs: dict[str, Path], tmp_path: Path
) -> None:
    trainer = DPOArguments(label_smoothing=1e-3 if loss_type == "exo_pair" else None)
    cfg = block(loss_type=[loss_type], trainer=trainer)
    _, our_trainer = trainers(inputs, cfg, tmp_path)
    expected = starting_loss(cfg)
    assert expected is not None
    assert loss_of(our_trainer, list(our_trainer.train_dataset)) == pytest.approx(
        expected, rel=1e-4
    )


def test_a_mixture_starts_at_the_weighted_sum(inputs: dict[str, Path], tmp_path: Path) -> None:
    cfg = block(loss_type=["sigmoid", "hinge"], loss_weights=[0.5, 2.0], beta=0.3)
    _, metrics = train(cfg, inputs, tmp_path / "dpo")
    assert metrics["step_0_loss"] == pytest.approx(starting_loss(cfg), abs=1e-5)
    assert metrics["step_0_gap"] < 1e-5


@pytest.mark.parametrize(
    ("loss_type", "weights", "trl_arguments"),
    [
        pytest.param(["sigmoid"], None, {}, marks=pytest.mark.slow),
        pytest.param(["ipo"], None, {}, marks=pytest.mark.slow),
        pytest.param(["sigmoid", "sft"], [1.0, 0.5], {}, marks=pytest.mark.slow),
        (["apo_zero", "bco_pair", "sft"], [0.8, 0.2, 1.0], {}),
        pytest.param(["sigmoid"], None, {"ld_alpha": 0.5}, marks=pytest.mark.slow),
        (["sigmoid"], None, {"use_weighting": True}),
    ],
)
def test_the_micro_batch_does_not_change_the_weights(
    loss_type: list[str],
    weights: list[float] | None,
    trl_arguments: dict,
    inputs: dict[str, Path],
    tmp_path: Path,
) -> None:
    """12 pairs at once, 4 and 1 at a time, some cut to whole batches. Equal to 1e-5 in fp32."""
    cfg = block(
        batch_size=12,
        loss_type=loss_type,
        loss_weights=weights,
        trainer=DPOArguments(**trl_arguments),
        evaluations=1,
    )
    whole, metrics = train(
        replace(cfg, runtime=replace(cfg.runtime, micro_batch=12)), inputs, tmp_path / "12"
    )
    before = load_file(inputs["policy"] / "model" / "model.safetensors")
    assert distance(whole, before) > 1e-4, "it trained"
    assert metrics["pairs_cut"] > 0
    for size in (4, 1):
        part, other_metrics = train(
            replace(cfg, runtime=replace(cfg.runtime, micro_batch=size)),
            inputs,
            tmp_path / f"{size}",
        )
        assert distance(whole, part) < 1e-5
        assert other_metrics["eval_loss"] == pytest.approx(metrics["eval_loss"], abs=1e-5)


def test_padded_pairs_train_the_same(inputs: dict[str, Path], tmp_path: Path) -> None:
    """Equal to 1e-5 in fp32, curves but for speed too."""
    packed, packed_metrics = train(block(), inputs, tmp_path / "packed")
    padded, other = train(block(forward=Forward.padded), inputs, tmp_path / "padded")
    assert distance(packed, load_file(inputs["policy"] / "model" / "model.safetensors")) > 1e-4, (
        "it trained"
    )
    assert distance(packed, padded) < 1e-5
    assert packed_metrics["eval_loss"] == pytest.approx(other["eval_loss"], abs=1e-5)


def test_no_token_budget_changes_the_references_log_probs(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """The pairs come in the order of their table, and a forward has at most the tokens of the budget."""
    stored = load(inputs["reference"] / "logprobs.parquet", PairLogProbs)
    cfg = settings("recipe=tiny").reference
    for budget, forwards in ((1, len(stored)), (300, None)):
        seen = list[int]()

        def count(
            module: torch.nn.Module, ids: tuple[torch.Tensor, ...], seen: list[int] = seen
        ) -> None:
            # loading tries the model on one token
            if isinstance(module, torch.nn.Embedding) and ids[0].numel() > 1:
                seen.append(ids[0].numel())

        hook = torch.nn.modules.module.register_module_forward_pre_hook(count)
        out = work(tmp_path / str(budget))
        block = replace(
            cfg, precision=Precision.fp32, runtime=replace(cfg.runtime, token_budget=budget)
        )
        reference.run(block, {"pairs": inputs["pairs"], "reference": inputs["policy"]}, out)
        hook.remove()
        assert (
            len(seen) == forwards
            if forwards
            else max(seen) <= budget and len(seen) < len(stored) / 2
        )
        scored = load(out / "logprobs.parquet", PairLogProbs)
        assert [p.id for p in scored] == [p.id for p in stored]
        for pair, other in zip(scored, stored, strict=True):
            expected = other.chosen_logps + other.rejected_logps
            assert pair.chosen_logps + pair.rejected_logps == pytest.approx(expected, abs=1e-5)


def test_another_model_than_the_reference_is_refused(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """The folder has the reference's name, its weights were changed behind its back."""
    weights = inputs["policy"] / "model" / "model.safetensors"
    changed = {name: tensor * 1.01 for name, tensor in load_file(weights).items()}
    save_file(changed, weights, {"format": "pt"})
    policy = inputs["policy"].name
    pattern = (
        rf"the policy \(sft {policy}\) and the reference \({policy}\) differ by .* nats per token"
    )
    with pytest.raises(UserError, match=pattern):
        train(block(), inputs, tmp_path / "dpo")


def test_a_policy_rebuilt_since_is_refused_by_its_digest(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    manifest = inputs["policy"] / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"digest": "', '"digest": "0'))
    with pytest.raises(UserError, match=r"not the same weights"):
        train(block(), inputs, tmp_path / "dpo")


def test_tokens_that_the_reference_did_not_score_are_refused(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    table = inputs["reference"] / "logprobs.parquet"
    scored = load(table, PairLogProbs)
    for row in scored:
        row.chosen_ids = row.chosen_ids[::-1]
    save(table, scored, PairLogProbs)
    with pytest.raises(UserError, match="scored other chosen_ids"):
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


def test_displacement_is_measured_on_the_held_out_pairs_against_the_reference() -> None:
    rows = [
        {
            "ref_chosen_logps": -5.0,
            "ref_rejected_logps": -9.0,
            "chosen_ids": [7] * 4,
            "chosen_mask": None,
        },
        {
            "ref_chosen_logps": -7.0,
            "ref_rejected_logps": -9.0,
            "chosen_ids": [7] * 7,
            "chosen_mask": [True] * 6 + [False],
        },
    ]

    def displacement_message(chosen: float, rejected: float) -> str:
        return displacement({"eval_logps/chosen": chosen, "eval_logps/rejected": rejected}, rows)

    assert "fell by 2.0 nats" in displacement_message(-8.0, -15.0)
    assert displacement_message(-5.5, -15.0) == ""
    assert displacement_message(-7.4, -15.0) == "", "less than 0.3 nats per token"
    assert displacement_message(-7.6, -15.0)
    assert displacement({}, []) == ""
