"""Online DPO: the pairs of a step, its gradient beside DPO's formula, and the check before the first update."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid

from stages.config.blocks.online_dpo import OnlineDPO
from stages.config.choices import Adapter, Precision
from stages.config.errors import UserError
from stages.models.contract import load_contract
from stages.models.loading import load_model
from stages.objectives.online_dpo import OnlinePairTrainer, pairs_of_draws
from stages.store.records import Example, PairLogProbs, load
from stages.store.workspace import StageDir
from stages.training import drawing
from stages.training.adapters import apply_adapter
from stages.training.fit import Fit
from stages.training.micro_batches import StepRows
from stages.training.rollouts import Rollouts
from tests.helpers import Chain, nodes, refused, settings
from tests.objectives.test_draws import group_of
from tests.objectives.test_grpo import by_tokens


@pytest.fixture
def inputs(built: Path) -> dict[str, Path]:
    chain = Chain(built)
    return {"policy": chain.folder("sft"), "data": chain.folder("data")}


def block(**changes: Any) -> Any:
    """The tiny recipe's block, in fp32, with hot completions."""
    cfg = settings("recipe=tiny", "align=online_dpo", "online_dpo.temperature=1.5")
    block: Any = vars(cfg)["online_dpo"]
    return replace(block, **{"label": cfg.label, "precision": Precision.fp32, **changes})


def trainer_of(cfg: OnlineDPO, inputs: dict[str, Path], folder: Path) -> OnlinePairTrainer:
    """Return a trainer ready for its first step, with rewards that differ within every group."""
    folder.mkdir()
    policy = inputs["policy"] / "model"
    out = StageDir(folder, lambda metrics, step: None)
    contract = load_contract(policy)
    examples = load(inputs["data"] / "examples.parquet", Example)
    rows, prompts = drawing.read_rows(examples, contract, cfg, out)
    fit = Fit(OnlinePairTrainer, cfg, rows, contract, policy, out)
    model = OnlinePairTrainer.load_start(policy, fit.cfg, fit.args.device)
    trainer = fit.build_trainer(apply_adapter(model, fit.cfg))
    trainer.rollouts = Rollouts(trainer, fit.cfg, contract, prompts, by_tokens, False, out)
    if cfg.adapter is Adapter.none:
        trainer.reference = OnlinePairTrainer.load_reference(policy, cfg, fit.args.device)
    return trainer


def gradients_of_a_step(trainer: OnlinePairTrainer, rows: StepRows) -> dict[str, torch.Tensor]:
    trainer.training_step(trainer.model, rows)
    named = trainer.model.named_parameters()
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


def first_rows(trainer: OnlinePairTrainer, count: int) -> StepRows:
    return StepRows([trainer.train_dataset[i] for i in range(count)])


def log_probs(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> torch.Tensor:
    """Return the log-probs of a completion's tokens, by a plain forward of one sequence."""
    ids = torch.tensor([[*prompt, *completion]])
    logits = model(ids).logits[0, len(prompt) - 1 : -1]
    chosen = torch.tensor([*completion])[:, None]
    return logits.log_softmax(-1).gather(1, chosen)[:, 0]


def formula_gradients(
    policy: Path, pairs: list[PairLogProbs], beta: float, has_sft: bool
) -> dict[str, torch.Tensor]:
    """Return the gradients of DPO's loss (Eq. 7) on given pairs, and of the mean negative log-prob of chosen tokens,
    by plain forwards. The reference is the policy."""
    model = load_model(policy, block().start_weights, torch.device("cpu"))
    margins = list[torch.Tensor]()
    chosen_log_probs = list[torch.Tensor]()
    for pair in pairs:
        chosen = log_probs(model, pair.prompt_ids, pair.chosen_ids)
        rejected = log_probs(model, pair.prompt_ids, pair.rejected_ids)
        ratios = (chosen - chosen.detach()).sum() - (rejected - rejected.detach()).sum()
        margins.append(beta * ratios)
        chosen_log_probs.append(chosen)
    loss = -logsigmoid(torch.stack(margins)).mean()
    if has_sft:
        loss = loss - torch.cat(chosen_log_probs).mean()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("has_sft", [False, True])
@pytest.mark.parametrize("token_budget", [None, 40])
def test_the_gradient_on_its_pairs_is_dpos(
    inputs: dict[str, Path], tmp_path: Path, token_budget: int | None, has_sft: bool
) -> None:
    losses = ["sigmoid", "sft"] if has_sft else ["sigmoid"]
    cfg = block(loss_type=losses, loss_weights=[1.0] * len(losses))
    cfg = replace(cfg, runtime=replace(cfg.runtime, token_budget=token_budget))
    trainer = trainer_of(cfg, inputs, tmp_path / "node")
    rows = first_rows(trainer, 4)
    gradients = gradients_of_a_step(trainer, rows)
    groups = trainer.rollouts.of_step([row["id"] for row in rows.rows])
    pairs = [row["pair"] for row in trainer.step_rows(groups)]
    assert len(pairs) > 4, "two pairs of some prompts"
    expected = formula_gradients(inputs["policy"] / "model", pairs, cfg.beta, has_sft)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        assert torch.allclose(gradient, expected[name], atol=1e-6), name


def test_an_adapter_learns_against_the_model_without_it(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    trainer = trainer_of(block(adapter=Adapter.lora), inputs, tmp_path / "node")
    gradients = gradients_of_a_step(trainer, first_rows(trainer, 4))
    assert trainer.reference is None
    assert any(bool(gradient.any()) for gradient in gradients.values())


def test_another_reference_than_the_policy_is_refused_before_the_first_update(
    inputs: dict[str, Path], tmp_path: Path, built: Path
) -> None:
    cfg = block()
    trainer = trainer_of(cfg, inputs, tmp_path / "node")
    other = Chain(built).folder("base") / "model"
    trainer.reference = OnlinePairTrainer.load_reference(other, cfg, torch.device("cpu"))
    with pytest.raises(UserError, match=r"align=online_dpo: .*rebuild=sft"):
        gradients_of_a_step(trainer, first_rows(trainer, 4))


@pytest.mark.parametrize(
    ("rewards", "most", "expected"),
    [
        ([0.2, 0.9, 0.5, 0.1], 2, [(0.9, 0.1), (0.5, 0.2)]),
        ([0.2, 0.9, 0.5, 0.1], 1, [(0.9, 0.1)]),
        ([1.0, 0.0, 0.0, 0.0], 2, [(1.0, 0.0)]),
        ([0.5, 0.5, 0.5], 2, []),
        ([0.3, 0.7, 0.5], 2, [(0.7, 0.3)]),
        ([0.7], 2, []),
    ],
)
def test_the_best_is_chosen_over_the_worst_and_then_the_next_ones(
    rewards: list[float], most: int, expected: list[tuple[float, float]]
) -> None:
    pairs = pairs_of_draws(group_of(*rewards), most)
    assert [(chosen.reward, rejected.reward) for chosen, rejected in pairs] == expected


def test_a_completion_that_does_not_end_or_has_no_score_is_in_no_pair() -> None:
    group = group_of(0.9, 0.4, 0.1, cut=2)
    group[2].reward = None
    [(chosen, rejected)] = pairs_of_draws(group, 2)
    assert (chosen.reward, rejected.reward) == (0.9, 0.4)


def test_its_control_is_best_draws_of_as_many_prompts_and_draws(tmp_path: Path) -> None:
    graph = nodes(tmp_path, "align=online_dpo", "control=true", "online_dpo.completions=6")
    objective: Any = graph["online_dpo"].config
    control: Any = graph["control"].config
    assert (control.baseline, control.control) == ("best", True)
    for key in ("completions", "batch_size", "epochs", "temperature", "max_new_tokens"):
        assert getattr(control, key) == getattr(objective, key), key


@pytest.mark.parametrize(
    ("line", "way_out"),
    [
        ("online_dpo.pairs=3 online_dpo.completions=4", "online_dpo.completions=6"),
        ("online_dpo.sampler=vllm", "online_dpo.sampler=hf"),
        ("online_dpo.loss_type=[simpo]", "Did you mean"),
        ("online_dpo.loss_type=[]", "online_dpo.loss_type=[sigmoid]"),
        ("online_dpo.truncated=mask", "leave the key out"),
        ("online_dpo.replay=0.1", "online_dpo.replay=0"),
        ("label=judge", "label.kind=pointwise"),
        ("control=true grpo.own.file=ours.py grpo.own.name=ours", "align=grpo"),
        ("align=dpo online_dpo.beta=0.2", "align=online_dpo"),
    ],
)
def test_keys_that_cannot_work_are_refused(line: str, way_out: str) -> None:
    assert way_out in refused("recipe=tiny", "align=online_dpo", "stage=plan", *line.split())
