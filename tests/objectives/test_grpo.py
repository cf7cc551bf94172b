"""GRPO on the real trainer: TRL's gradients, the tokens of a row, the sampler's weights, dead steps, resumes."""

import copy
import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset
from safetensors.torch import load_file

from stages import grpo
from stages.config.blocks.grpo import GRPO
from stages.config.blocks.labels import OwnLabeler
from stages.config.blocks.models import Own
from stages.config.choices import Adapter, Precision
from stages.config.errors import UserError
from stages.labelers.verifier import VerifierLabeler
from stages.models import packing
from stages.models.contract import load_contract
from stages.models.loading import load_model
from stages.objectives import grpo as objective
from stages.objectives.grpo import GroupTrainer
from stages.store.records import Example, Judgement, load
from stages.store.store import Store
from stages.store.workspace import StageDir, read_curves
from stages.training import drawing
from stages.training import rollouts as rollouts_file
from stages.training.adapters import apply_adapter
from stages.training.fit import Fit
from stages.training.micro_batches import StepRows
from stages.training.rollouts import Rollout, Rollouts, reward_message
from stages.training.samples import inference_copy
from tests.equality import assert_metrics_do_not_depend_on_memory
from tests.helpers import Chain, build, nodes, refused, settings


@pytest.fixture
def inputs(built: Path) -> dict[str, Path]:
    chain = Chain(built)
    return {"policy": chain.folder("sft"), "data": chain.folder("data")}


def block(**changes: Any) -> GRPO:
    """The tiny recipe's block, in fp32, with hot completions: groups of unequal rewards and lengths."""
    cfg = settings("recipe=tiny", "align=grpo")
    return replace(cfg.grpo, **{"label": cfg.label, "precision": Precision.fp32, **changes})


def by_tokens(prompts: list[Example], rollouts: list[Rollout]) -> list[Judgement]:
    """A reward that differs within every group: the sum of token ids modulo 7."""
    return [
        Judgement(r.prompt_id, "sum", r.candidate_id, score=sum(r.token_ids) % 7 / 7)
        for r in rollouts
    ]


def trainer_of(
    cfg: GRPO,
    inputs: dict[str, Path],
    folder: Path,
    judge: Any = by_tokens,
    relative: bool = False,
) -> objective.GroupTrainer:
    """Return a trainer ready for its first step."""
    folder.mkdir()
    policy, out = inputs["policy"] / "model", StageDir(folder, lambda m, s: None)
    contract = load_contract(policy)
    rows, prompts = drawing.read_rows(
        load(inputs["data"] / "examples.parquet", Example), contract, cfg, out
    )
    fit = Fit(objective.GroupTrainer, cfg, rows, contract, policy, out)
    trainer = fit.build_trainer(
        apply_adapter(GroupTrainer.load_start(policy, fit.cfg, fit.args.device), fit.cfg)
    )
    trainer.rollouts = Rollouts(trainer, fit.cfg, contract, prompts, judge, relative, out)
    if cfg.beta:
        trainer.reference = GroupTrainer.load_start(policy, cfg, fit.args.device)
    return trainer


def first_ids(trainer: objective.GroupTrainer, count: int) -> StepRows:
    return StepRows([trainer.train_dataset[i] for i in range(count)])


def gradients_of_a_step(trainer: objective.GroupTrainer, rows: StepRows) -> dict[str, torch.Tensor]:
    trainer.training_step(trainer.model, rows)
    return {
        name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None
    }


def trl_gradients(
    cfg: GRPO,
    groups: list[list[Rollout]],
    prompts: list[Example],
    policy: Path,
    folder: Path,
    shift: float,
) -> dict[str, torch.Tensor]:
    """Return the gradients of TRL's own GRPO or RLOO step on the same completions."""
    contract, drawn = load_contract(policy), {group[0].prompt_id: [*group] for group in groups}
    order = [rollout for group in groups for rollout in group]

    def rollout_func(conversations: list[Any], _: Any) -> dict[str, Any]:
        remaining = {prompt.id: [*drawn[prompt.id]] for prompt in prompts}
        by_text = {json.dumps(prompt.messages): prompt.id for prompt in prompts}
        rows = [remaining[by_text[json.dumps(messages)]].pop(0) for messages in conversations]
        ids = [contract.prompt(messages) for messages in conversations]
        return {
            "prompt_ids": ids,
            "completion_ids": [row.token_ids for row in rows],
            "logprobs": None,
        }

    def reward(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [sum(ids) % 7 / 7 for ids in completion_ids]

    arguments = trl.GRPOConfig(
        output_dir=str(folder),
        max_steps=1,
        per_device_train_batch_size=len(order),
        num_generations=len(groups[0]),
        max_completion_length=cfg.max_new_tokens,
        temperature=cfg.temperature,
        beta=cfg.beta,
        loss_type=cfg.loss_type,
        scale_rewards="none" if cfg.loss_type == "dr_grpo" else "group",
        learning_rate=0.0,
        max_grad_norm=1e9,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        gradient_checkpointing=False,
        shuffle_dataset=False,
    )
    gradients = dict[str, torch.Tensor]()

    class Recording(trl.GRPOTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            gradients.update(
                {n: p.grad.clone() for n, p in self.model.named_parameters() if p.grad is not None}
            )
            return loss

    model = move(load_model(policy), shift)
    model.config._name_or_path = str(policy)  # where TRL loads its reference from
    rows = Dataset.from_list([{"prompt": prompt.messages} for prompt in prompts])
    parts: dict[str, Any] = {"processing_class": contract.tokenizer, "rollout_func": rollout_func}
    trainer = Recording(model, reward, args=arguments, train_dataset=rows, **parts)
    trainer.train()
    return gradients


def move(model: torch.nn.Module, shift: float) -> torch.nn.Module:
    """Return the model with its last norm scaled, so that it is not its reference."""
    with torch.no_grad():
        model.model.norm.weight.mul_(1 + shift)
    return model


@pytest.mark.parametrize(
    ("changes", "budget", "packs"),
    [
        ({"loss_type": "dapo"}, None, True),
        ({"loss_type": "grpo", "beta": 0.3}, 60, True),
        ({"loss_type": "dr_grpo", "temperature": 1.5}, None, True),
        ({"loss_type": "grpo", "beta": 0.3}, 60, False),
    ],
)
def test_gradients_are_those_of_trl(
    changes: dict[str, Any],
    budget: int | None,
    packs: bool,
    inputs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also in parts of a group, with equal-reward groups among the step's prompts, and padded, as models with a
    recurrent state are read."""
    if not packs:
        monkeypatch.setattr(packing, "has_only_attention", lambda model: False)
    shift = 0.2 if changes.get("beta") else 0.0
    cfg = block(**{"temperature": 1.5, **changes})
    cfg = replace(cfg, runtime=replace(cfg.runtime, token_budget=budget))
    trainer = trainer_of(cfg, inputs, tmp_path / "ours")
    assert trainer.is_padded is not packs
    move(trainer.model, shift)
    rows = first_ids(trainer, 4)
    ours = gradients_of_a_step(trainer, rows)
    groups = trainer.rollouts.of_step([row["id"] for row in rows])
    prompts = [trainer.rollouts.prompts[row["id"]] for row in rows]
    trls = trl_gradients(cfg, groups, prompts, inputs["policy"] / "model", tmp_path / "trl", shift)
    largest = max(float(gradient.abs().max()) for gradient in trls.values())
    gap = max(float((ours[name] - trls[name]).abs().max()) for name in trls)
    assert ours.keys() == trls.keys()
    assert largest > 1e-3
    assert gap <= 1e-6, f"{gap:.2g} of {largest:.2g}"


def test_without_its_adapter_the_policy_is_its_reference(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    gradients, divergences = list[dict[str, torch.Tensor]](), list[float]()
    for frozen in (True, False):
        cfg = block(adapter=Adapter.lora, beta=0.3, temperature=1.5)
        trainer = trainer_of(cfg, inputs, tmp_path / str(frozen))
        torch.manual_seed(0)
        for name, weight in trainer.model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.05)
        trainer.reference = trainer.reference if frozen else None
        gradients.append(gradients_of_a_step(trainer, first_ids(trainer, 3)))
        divergences.append(float(trainer._metrics["train"]["kl"][0]))
    assert divergences[0] == pytest.approx(divergences[1], abs=1e-6) and divergences[0] > 1e-3
    assert gradients[0].keys() == gradients[1].keys() and all(
        "lora" in name for name in gradients[0]
    )
    gaps = [float((gradients[0][name] - gradients[1][name]).abs().max()) for name in gradients[0]]
    assert max(gaps) <= 1e-6


def test_no_budget_changes_a_metric_of_a_step(inputs: dict[str, Path], tmp_path: Path) -> None:
    trainer = trainer_of(block(temperature=1.0, beta=0.1), inputs, tmp_path / "ours")
    move(trainer.model, 0.2)
    rows = [*first_ids(trainer, 5)]
    metrics = assert_metrics_do_not_depend_on_memory(trainer, rows, [1, 90, 250])
    assert metrics["kl"] > 1e-4
    assert metrics.keys() >= {"entropy", "sampler_gap", "num_tokens", "reward"}


@pytest.mark.parametrize("precision", [Precision.fp32, Precision.bf16])
def test_a_sampler_one_step_old_is_refused(
    precision: Precision, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(block(precision=precision, temperature=1.5), inputs, tmp_path / "ours")
    ids = [row["id"] for row in first_ids(trainer, 2)]
    [first, _] = trainer.rollouts.of_step(ids)
    assert trainer.rollouts.of_step(ids)[0] == first, "read again"
    old = inference_copy(copy.deepcopy(trainer.model), precision)
    move(trainer.model, 1e-3)
    assert trainer.rollouts.of_step(ids)[0][0].policy != first[0].policy, "drawn again"
    monkeypatch.setattr(rollouts_file, "inference_copy", lambda *_: old)
    trainer.state.global_step = 1
    with pytest.raises(UserError, match="sampler has"):
        trainer.rollouts.of_step(ids)


def test_the_row_has_every_prompt_once_and_the_sampler_agrees(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    # with beta all groups are read
    trainer = trainer_of(block(temperature=1.0, beta=0.1), inputs, tmp_path / "ours")
    rows = first_ids(trainer, 6)
    gradients_of_a_step(trainer, rows)
    rollouts = [r for group in trainer.rollouts.of_step([row["id"] for row in rows]) for r in group]
    tokens = sum(len(row["prompt_ids"]) for row in rows) + sum(r.n_tokens for r in rollouts)
    metrics = {name: values[0] for name, values in trainer._metrics["train"].items()}
    assert 0 < metrics["num_tokens"] <= 1.2 * tokens
    assert metrics["num_tokens"] == tokens - len(rollouts)  # a last token predicts nothing
    # nats per token: the weights and the attention are the sampler's
    assert 0 < metrics["sampler_gap"] < 1e-5
    assert metrics["kl"] == pytest.approx(0, abs=1e-7)


def test_an_advantage_by_leave_one_out_is_less_the_mean_of_the_others() -> None:
    rewards = [1.0, 0.0, 0.0, 0.5]
    advantages = objective.compute_advantages(rewards, block(baseline="leave_one_out"))
    assert advantages == pytest.approx([r - (1.5 - r) / 3 for r in rewards])


def test_a_completion_without_a_reward_is_left_out(inputs: dict[str, Path], tmp_path: Path) -> None:
    def some(prompts: list[Example], rollouts: list[Rollout]) -> list[Judgement]:
        first, *rest = by_tokens(prompts, rollouts)
        return [Judgement(first.prompt_id, "sum", first.candidate_id, error="no reply"), *rest]

    cfg = block(temperature=1.5)
    cfg.label.max_failed = 0.3
    trainer = trainer_of(cfg, inputs, tmp_path / "ours", some)
    [group] = trainer.rollouts.of_step([row["id"] for row in first_ids(trainer, 1)])
    assert (group[0].reward, group[0].error) == (None, "no reply")
    [row] = objective.group_rows([group], trainer.rollouts.token_ids, cfg)
    assert [c.token_ids for c in row["completions"]] == [r.token_ids for r in group[1:]]
    assert sum(c.share * len(c.token_ids) for c in row["completions"]) == pytest.approx(1)
    trainer.rollouts.judge = lambda prompts, rollouts: []
    trainer.state.global_step = 1
    with pytest.raises(UserError, match=r"max_failed=0\.3: 4 of 4"):
        trainer.rollouts.of_step([row["id"] for row in first_ids(trainer, 1)])


def test_a_truncated_completion_is_not_judged_and_has_the_lowest_reward(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """It is at most 0, also of a labeler whose rewards have any size."""
    judged = list[Rollout]()

    def around_zero(prompts: list[Example], rollouts: list[Rollout]) -> list[Judgement]:
        judged.extend(rollouts)
        judgements = by_tokens(prompts, rollouts)
        for judgement in judgements:
            judgement.score -= 0.5
        return judgements

    cfg = block(temperature=1.5, max_new_tokens=4, completions=8)
    trainer = trainer_of(cfg, inputs, tmp_path / "ours", around_zero)
    groups = trainer.rollouts.of_step([row["id"] for row in first_ids(trainer, 16)])
    assert {r.finish_reason for r in judged} == {"stop"}
    floors = set[float]()
    for group in groups:
        ended = [r.reward for r in group if r.finish_reason == "stop"]
        truncated = [r.reward for r in group if r.finish_reason == "length"]
        assert {*truncated} <= {min([0.0, *ended])}
        floors |= {*truncated}
    assert min(floors) < 0


def test_the_constant_of_relative_rewards_changes_no_step_and_no_verdict(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """Rewards are moved by another constant for each prompt. Some completions are truncated."""
    cfg = block(temperature=1.5, max_new_tokens=4, completions=8)

    def shifted(prompts: list[Example], rollouts: list[Rollout]) -> list[Judgement]:
        judgements = by_tokens(prompts, rollouts)
        for judgement in judgements:
            judgement.score += 20.0 * (int(judgement.prompt_id, 16) % 5)
        return judgements

    steps = []
    missing = []
    for name, judge in (("plain", by_tokens), ("shifted", shifted)):
        trainer = trainer_of(cfg, inputs, tmp_path / name, judge, relative=True)
        ids = [row["id"] for row in first_ids(trainer, 16)]
        groups = trainer.rollouts.of_step(ids)
        assert {"stop", "length"} == {r.finish_reason for group in groups for r in group}
        rows = objective.group_rows(groups, trainer.rollouts.token_ids, cfg)
        steps.append([completion for row in rows for completion in row["completions"]])
        missing.append([each.reward is None for each in trainer.rollouts.held_out(ids)])
    assert missing[0] == missing[1]
    for one, other in zip(*steps, strict=True):
        assert (one.token_ids, one.share) == (other.token_ids, other.share)
        assert one.advantage == pytest.approx(other.advantage, abs=1e-9)


def alike(prompts: list[Example], rollouts: list[Rollout]) -> list[Judgement]:
    return [Judgement(r.prompt_id, "alike", r.candidate_id, score=1.0) for r in rollouts]


def train(
    cfg: GRPO, inputs: dict[str, Path], folder: Path
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    out = StageDir(folder, lambda m, s: None)
    metrics = grpo.run(cfg, inputs, out)
    return load_file(folder / "model" / "model.safetensors"), metrics | {"warnings": out.warnings}


@pytest.mark.extended
def test_steps_without_a_live_group_change_nothing_and_ten_stop(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The draws before the first step, of more prompts, still differ."""

    def judge(self: Any, pool: Any) -> list[Judgement]:
        is_before_first_step = len(pool.prompts) > 16
        return (by_tokens if is_before_first_step else alike)([], [*pool.candidates])

    monkeypatch.setattr(VerifierLabeler, "judge_rollouts", judge)
    start = load_file(inputs["policy"] / "model" / "model.safetensors")
    weights, metrics = train(block(batch_size=8, learning_rate=1e-2), inputs, tmp_path / "six")
    assert metrics["dead_steps"] == metrics["steps"] == 6
    [warning] = [line for line in metrics["warnings"] if "6 of 6 steps" in line]
    assert "grpo.completions" in warning and "grpo.temperature" in warning
    assert all(torch.equal(weights[name], start[name]) for name in start)
    assert not any("grad_norm" in point for point in read_curves(tmp_path / "six"))
    with pytest.raises(UserError, match=r"10 steps in a row.*grpo\.completions"):
        train(block(batch_size=4), inputs, tmp_path / "twelve")


LEVEL = """
STEPS = []

def level(prompts, completions, level, kind, trainer_state, **columns):
    assert len({*level}) == len({*kind}) == 1
    assert prompts[0][-1]["content"].endswith(f" {level[0]} {kind[0]}.")
    with open(FILE, "a") as steps:
        steps.write(f"{trainer_state.global_step} {trainer_state.max_steps}\\n")
    return [len(completion[0]["content"]) + level[0] for completion in completions]
"""


@pytest.mark.extended
def test_a_reward_takes_columns_and_trls_state_and_is_asked_whether_it_is_relative(
    chain: Chain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The columns are those of both files, joined to the prompts of a step."""
    caplog.set_level(logging.INFO)
    settings_of_sources = list[str]()
    for kind in ("short", "long"):
        rows = [
            {"prompt": f"Label this word as fruit or tool. {i} {kind}.", "level": i, "kind": kind}
            for i in range(8)
        ]
        file = tmp_path / f"{kind}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings_of_sources.append(f"{{path: {file}, splits: {{preference: 1.0}}}}")
    of_files = ("data=file", f"data.sources=[{', '.join(settings_of_sources)}]")
    build(chain.root, "stage=data", *of_files)
    data = nodes(chain.root, *of_files)["data"]
    inputs = {"policy": chain.folder("sft"), "data": Store(chain.root).folder(data)}
    text = f"FILE = {str(tmp_path / 'steps')!r}" + LEVEL
    code = tmp_path / hashlib.sha256(text.encode()).hexdigest() / "level.py"
    code.parent.mkdir()
    code.write_text(text)
    label = OwnLabeler(own=Own(file=str(code), name="level"))
    _, metrics = train(block(label=label, batch_size=8, epochs=1.0), inputs, tmp_path / "out")
    seen = {tuple(map(int, line.split())) for line in (tmp_path / "steps").open()}
    assert seen == {(0, metrics["steps"]), (1, metrics["steps"])}
    assert sum("level.relative = " in line for line in caplog.messages) == 1
    (inputs["data"].parent.parent / "source").rename(tmp_path / "removed")
    with pytest.raises(UserError, match=r"label\.own\.name=level: .*rebuild=source"):
        train(block(label=label, batch_size=8), inputs, tmp_path / "again")


def test_a_reward_that_rises_without_a_held_out_gain_is_told() -> None:
    steps = [{"reward": 0.2 + 0.05 * i + 0.01 * (i % 2)} for i in range(15)]
    cfg = block()
    assert "no gain is shown" in reward_message(steps, [[0.0, 1.0, None], [1.0, 0.0, 1.0]], 3, cfg)
    assert reward_message([{"reward": 0.5}] * 15, [[0.0, 1.0], [0.0, 1.0]], 2, cfg) == ""
    assert reward_message(steps, [[0.0] * 8, [1.0, 0.9] * 4], 8, cfg) == ""
    assert "Set grpo.evaluations=2" in reward_message(steps, [], 8, cfg)
    without_prompts = reward_message(steps, [], 0, cfg)
    assert "report" in without_prompts and "grpo.evaluations" not in without_prompts


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("grpo.batch_size=64",), "grpo.batch_size=64: there are at most 48 prompts"),
        (("grpo.max_new_tokens=1024",), "grpo.max_length=1024 has no room for a prompt"),
        (("label=dataset", "label.path=x.jsonl"), "needs a score of every completion"),
        (("launch=zero3", "launch.processes=2"), "GRPO samples from whole weights"),
    ],
)
def test_settings_that_cannot_work_are_refused(overrides: tuple[str, ...], words: str) -> None:
    assert words in refused("recipe=tiny", "tracker=none", "align=grpo", "stage=grpo", *overrides)
