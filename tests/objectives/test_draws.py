"""What objectives that draw share: pools of draws, truncated draws, what there is to learn, best draws."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stages import grpo
from stages.config.blocks.online_dpo import OnlineDPO
from stages.config.choices import Align
from stages.config.errors import UserError
from stages.objectives import grpo as objective
from stages.objectives.online_dpo import OnlinePairTrainer
from stages.store.records import Example, Judgement
from stages.store.workspace import SCRATCH, StageDir
from stages.training.callbacks import FreedMemory
from stages.training.completion_trainer import Scored
from stages.training.drawing_trainer import DrawingTrainer
from stages.training.first_draws import FirstDraws
from stages.training.rollouts import Rollout
from tests.helpers import TINY, Chain, nodes, refused, settings
from tests.objectives.test_grpo import (
    block,
    first_ids,
    gradients_of_a_step,
    trainer_of,
)


@pytest.fixture
def inputs(built: Path) -> dict[str, Path]:
    chain = Chain(built)
    return {"policy": chain.folder("sft"), "data": chain.folder("data")}


def half(prompts: list[Example], rollouts: list[Rollout]) -> list[Judgement]:
    """Scores of 0 and 1."""
    judgements = list[Judgement]()
    for draw in rollouts:
        score = float(sum(draw.token_ids or []) % 2)
        judgements.append(Judgement(draw.prompt_id, "half", draw.candidate_id, score=score))
    return judgements


def best_block(**changes: Any) -> Any:
    return block(temperature=1.5, baseline="best", loss_type="dapo", **changes)


@pytest.mark.parametrize("choose", ["best", "random"])
def test_the_gradient_of_best_draws_is_cross_entropy_on_them(
    choose: str, inputs: dict[str, Path], tmp_path: Path
) -> None:
    trainer = trainer_of(best_block(choose=choose, best=2), inputs, tmp_path / "ours", half)
    rows = first_ids(trainer, 6)
    ours = gradients_of_a_step(trainer, rows)
    trainer.model.zero_grad()
    groups = trainer.rollouts.of_step([row["id"] for row in rows])
    losses = list[torch.Tensor]()
    for group in groups:
        for draw in objective.choose_draws(group, trainer.cfg, False):
            prompt = trainer.rollouts.token_ids[draw.prompt_id]
            batch = trainer.collate(
                [{"prompt_ids": prompt, "completions": [Scored(draw, 0.0, 1.0)]}]
            )
            output = trainer.model(
                **{name: batch[name] for name in ("input_ids", "layout", "scored", "shift_labels")},
                use_cache=False,
                fused_lm_head=True,
            )
            losses.append(-output.log_probs[0])
    assert len(losses) > 2
    torch.cat(losses).mean().backward()
    for name, weight in trainer.model.named_parameters():
        if name in ours:
            assert float((ours[name] - weight.grad).abs().max()) <= 1e-6
    assert max(float(gradient.abs().max()) for gradient in ours.values()) > 1e-3


def group_of(*scores: float, cut: int = 0) -> list[Rollout]:
    draws = list[Rollout]()
    for place, score in enumerate((*scores, *[0.0] * cut)):
        ended = place < len(scores)
        draws.append(
            Rollout(
                "p",
                f"c{place}",
                "step 0, weights x",
                "hf",
                1.0,
                0,
                f"text {place}",
                [5, 6],
                "stop" if ended else "length",
                0.0,
                2,
                reward=score,
            )
        )
    return draws


@pytest.mark.parametrize(
    ("scores", "changes", "relative", "chosen"),
    [
        ((1.0, 0.0, 1.0, 1.0), {"best": 2}, False, ["c0", "c2"]),
        ((1.0, 1.0), {}, False, []),
        ((1.0, 1.0), {"skip": False}, False, ["c0", "c1"]),
        ((0.5, 0.0), {}, False, []),
        ((0.5, 0.0), {"min_score": 0.5}, False, ["c0"]),
        ((-3.0, -4.0), {}, True, ["c0"]),
        ((0.0, 0.0), {"skip": False}, False, []),
    ],
)
def test_best_draws_have_the_highest_score_of_their_prompt(
    scores: tuple[float, ...], changes: dict[str, Any], relative: bool, chosen: list[str]
) -> None:
    draws = objective.choose_draws(group_of(*scores, cut=1), best_block(**changes), relative)
    if "skip" not in changes and len({*scores}) == 1:
        draws = objective.choose_draws(group_of(*scores), best_block(**changes), relative)
    assert [draw.candidate_id for draw in draws] == chosen


def test_random_draws_are_as_many_whatever_their_score() -> None:
    group = group_of(*[1.0, 0.0, 0.0, 0.0] * 8)
    draws = objective.choose_draws(group, best_block(choose="random", best=8), False)
    assert len(draws) == 8
    assert {draw.reward for draw in draws} == {0.0, 1.0}


def test_masked_draws_have_no_reward_and_no_part_in_the_baseline(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    cfg = block(temperature=1.5, max_new_tokens=4, completions=8, truncated="mask")
    trainer = trainer_of(cfg, inputs, tmp_path / "ours")
    groups = trainer.rollouts.of_step([row["id"] for row in first_ids(trainer, 16)])
    draws = [draw for group in groups for draw in group]
    truncated = [draw for draw in draws if draw.finish_reason != "stop"]
    assert truncated and {draw.reward for draw in truncated} == {None}
    rows = trainer.step_rows(groups)
    learnt = [each.draw for row in rows for each in row["completions"]]
    assert learnt and {draw.finish_reason for draw in learnt} == {"stop"}
    tokens = sum(draw.n_tokens for draw in draws if draw.reward is not None)
    assert rows[0]["completions"][0].share == pytest.approx(1 / tokens)


def train(cfg: Any, inputs: dict[str, Path], folder: Path) -> tuple[dict[str, Any], StageDir]:
    folder.mkdir(exist_ok=True)
    out = StageDir(folder, lambda message, settings: None)
    return grpo.run(cfg, inputs, out), out


@pytest.mark.extended
def test_a_pool_is_drawn_once_and_older_draws_have_a_ratio(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a kill inside a pool, the same weights come out, to the bit."""
    cfg = block(temperature=1.5, sync_every=3, batch_size=8)
    cfg = replace(cfg, runtime=replace(cfg.runtime, save_steps=1, token_budget=4096))
    seen = list[tuple[int, set[str], float]]()
    loss_of = objective.GroupTrainer.compute_loss

    def watch(self: Any, model: Any, batch: Any, **rest: Any) -> Any:
        step = self.state.global_step
        groups = self.rollouts.of_step([])
        policies = {draw.policy for group in groups for draw in group}
        with torch.no_grad():
            log_probs = model(**objective.reading_options(batch)).log_probs[0]
        seen.append((step, policies, float((log_probs - batch["old_log_probs"]).abs().max())))
        return loss_of(self, model, batch, **rest)

    with monkeypatch.context() as patched:
        patched.setattr(objective.GroupTrainer, "compute_loss", watch)
        train(cfg, inputs, tmp_path / "whole")
    for step, policies, gap in seen:
        [policy] = policies
        assert policy.startswith(f"step {step - step % 3}, ")
        assert (gap < 1e-5) == (step % 3 == 0)
    whole = load_file(tmp_path / "whole" / "model" / "model.safetensors")

    class Killed(Exception):
        pass

    def kill(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 2:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(FreedMemory, "on_step_begin", kill)
        with pytest.raises(Killed):
            train(cfg, inputs, tmp_path / "killed")
    assert len([*(tmp_path / "killed" / SCRATCH / "rollouts").glob("0*.parquet")]) == 3
    train(cfg, inputs, tmp_path / "killed")
    resumed = load_file(tmp_path / "killed" / "model" / "model.safetensors")
    assert all(torch.equal(resumed[name], weight) for name, weight in whole.items())


CUT = group_of(cut=4)
RIGHT = group_of(1.0, 1.0, 1.0)
WRONG = group_of(0.0, 0.0, 0.0)
CONSTANT = group_of(0.4, 0.4)
LIVE = group_of(1.0, 0.0)


def one_text(group: list[Rollout]) -> list[Rollout]:
    return [replace(draw, text="same") for draw in group]


@pytest.mark.parametrize(
    ("groups", "changes", "relative", "way_out"),
    [
        ([CUT] * 4, {}, False, "grpo.max_new_tokens"),
        ([CUT] * 4 + [WRONG], {}, False, "grpo.max_new_tokens"),
        ([CUT] * 4, {}, True, "grpo.max_new_tokens"),
        ([RIGHT] * 4, {}, False, "data.path"),
        ([WRONG] * 4, {}, False, "grpo.completions"),
        ([WRONG] * 4 + [RIGHT], {}, False, "grpo.completions"),
        ([CONSTANT] * 4, {}, False, "label=verifier"),
        ([RIGHT] * 4, {}, True, "label=verifier"),
        ([one_text(CONSTANT)] * 4, {}, False, "grpo.temperature"),
        ([one_text(RIGHT), one_text(WRONG)], {}, False, "grpo.temperature"),
        ([group_of(0.5, 0.2)] * 4, {"baseline": "best"}, False, "grpo.min_score"),
    ],
)
def test_what_teaches_nothing_is_refused_with_its_cause(
    groups: list[list[Rollout]], changes: dict[str, Any], relative: bool, way_out: str
) -> None:
    cfg = block(**changes)
    with pytest.raises(UserError) as error:
        first_draws(groups, cfg, relative).require_contrast(cfg)
    assert str(error.value).startswith(f"align=grpo: none of {len(groups)} prompts")
    assert way_out in str(error.value)


@pytest.mark.parametrize(
    ("draws", "way_out"),
    [(CUT, "online_dpo.max_new_tokens"), (group_of(0.5, 0.2), "grpo.min_score")],
)
def test_the_control_of_another_objective_names_the_keys_that_it_has(
    draws: list[Rollout], way_out: str
) -> None:
    cfg = settings("recipe=tiny", "align=online_dpo", "control=true")
    control = replace(cfg.control_of_draws("online_dpo"), label=block().label)
    with pytest.raises(UserError, match=r"^the control of align=online_dpo: ") as error:
        first_draws([draws] * 4, control, relative=False).require_contrast(control)
    assert way_out in str(error.value)


def first_draws(groups: list[list[Rollout]], cfg: Any, relative: bool) -> FirstDraws:
    """Return the groups as an objective's own trainer compares them."""

    class Draws:
        def __init__(self) -> None:
            self.relative = relative

    trainer_class: Any = objective.GroupTrainer
    if isinstance(cfg, OnlineDPO):
        trainer_class = OnlinePairTrainer
    trainer: Any = object.__new__(trainer_class)
    trainer.cfg = cfg
    trainer.rollouts = Draws()
    return FirstDraws(groups, relative, trainer.compared, trainer.teaches)


@pytest.mark.parametrize(
    ("groups", "relative", "way_out"),
    [
        ([group_of(1.0, cut=3)] * 4, False, "online_dpo.max_new_tokens"),
        ([group_of(1.0, 1.0, cut=1)] * 4, False, "data.path"),
        ([group_of(0.0, 0.0, cut=1)] * 4, False, "online_dpo.completions"),
        ([group_of(0.4, 0.4, cut=1)] * 4, False, "label=verifier"),
        ([group_of(0.3, 0.1 + 0.2)] * 4, True, "label=verifier"),
    ],
)
def test_pairs_without_contrast_are_refused_by_the_completions_that_end(
    groups: list[list[Rollout]], relative: bool, way_out: str
) -> None:
    """Truncated completions have another score than the others, but are in no pair."""
    cfg = vars(settings("recipe=tiny", "align=online_dpo"))["online_dpo"]
    cfg = replace(cfg, label=block().label)
    with pytest.raises(UserError) as error:
        first_draws(groups, cfg, relative).require_contrast(cfg)
    assert way_out in str(error.value)


@pytest.mark.parametrize(
    ("groups", "changes", "relative"),
    [
        ([LIVE], {}, False),
        ([CUT, CUT, LIVE], {}, False),
        ([WRONG] * 60 + [LIVE], {}, False),
        ([RIGHT] * 60 + [LIVE], {}, False),
        ([group_of(0.1, 0.2)], {}, False),
        ([group_of(-5.0, -6.0)], {}, True),
        ([group_of(1.0, cut=1)], {}, False),
        ([LIVE], {"baseline": "best"}, False),
        ([group_of(0.5, 0.2)], {"baseline": "best", "min_score": 0.5}, False),
        ([group_of(-5.0, -6.0)], {"baseline": "best"}, True),
    ],
)
def test_one_prompt_with_contrast_is_enough(
    groups: list[list[Rollout]], changes: dict[str, Any], relative: bool
) -> None:
    """A warning says so where a step has fewer than one such prompt."""
    cfg = block(**{"batch_size": 4, **changes})
    first = first_draws(groups, cfg, relative)
    first.require_contrast(cfg)
    assert bool(first.few_message(cfg)) == (first.figures["first_contrast"] * 4 < 1)


def test_scores_that_only_tell_who_ended_are_named() -> None:
    cfg = block(batch_size=4)
    by_ending = first_draws([group_of(0.4, 0.4, cut=1)] * 4, cfg, False)
    by_ending.require_contrast(cfg)
    assert by_ending.ending_message(cfg).startswith("align=grpo: ")
    one_differs = first_draws([*[group_of(0.4, 0.4, cut=1)] * 3, LIVE], cfg, False)
    assert one_differs.ending_message(cfg) == ""


def test_a_training_without_contrast_stops_before_its_first_step(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = list[int]()
    monkeypatch.setattr(DrawingTrainer, "draw_step", lambda self, ids: steps.append(1))
    cfg = block(temperature=1.5, max_new_tokens=1, evaluations=0, batch_size=16)
    with pytest.raises(
        UserError, match=r"^align=grpo: none of 48 .*grpo\.max_new_tokens \(now 1\)"
    ):
        train(cfg, inputs, tmp_path / "dead")
    assert not steps


def test_raft_is_a_word_for_the_best_baseline(tmp_path: Path) -> None:
    cfg = settings("recipe=tiny", "align=raft")
    assert (cfg.align, cfg.grpo.baseline, cfg.grpo.title) == (Align.grpo, "best", "Best draws")
    by_word, by_key = (
        nodes(tmp_path, *line)["grpo"]
        for line in (["align=raft"], ["align=grpo", "grpo.baseline=best"])
    )
    assert by_word.fingerprint == by_key.fingerprint


def test_a_control_has_the_objectives_prompts_draws_and_steps(tmp_path: Path) -> None:
    """It differs in its baseline and its rate alone."""
    line = ("grpo.completions=6", "grpo.sync_every=2", "control=true", "control_learning_rate=3e-5")
    graph = nodes(tmp_path, "align=grpo", *line)
    policy, control = graph["grpo"], graph["control"]
    different = {
        key
        for key in {**policy.settings, **control.settings}
        if policy.settings.get(key) != control.settings.get(key)
    }
    assert different == {
        *("baseline", "best", "min_score", "choose", "learning_rate", "control"),
    }
    assert (control.settings["baseline"], control.settings["learning_rate"]) == ("best", 3e-5)
    assert control.inputs == policy.inputs
    assert graph["eval"].config.models["control"] == "Best draws"
    of_best = nodes(tmp_path, "align=raft", *line)
    assert of_best["control"].settings["sync_every"] == 0
    assert of_best["eval"].config.models["control"] == "Best of one pool"
    of_random = nodes(tmp_path, "align=raft", "grpo.choose=random", *line)
    assert of_random["control"].settings["choose"] == "best"
    beside_dpo = nodes(tmp_path, "arms=[grpo]", *line)
    assert beside_dpo["control"].stage == "sft"
    assert beside_dpo["control_grpo"].fingerprint == control.fingerprint
    assert {"control", "control_grpo"} <= {*beside_dpo["eval"].inputs}


def test_the_keys_of_these_draws_change_no_node_at_their_values_of_before(tmp_path: Path) -> None:
    implied = ("sync_every=1", "truncated=floor", "sampler=hf")
    plain, typed = (
        nodes(tmp_path, "align=grpo", *line)["grpo"]
        for line in ([], [f"grpo.{key}" for key in implied])
    )
    assert plain.fingerprint == typed.fingerprint
    assert {"sync_every", "truncated", "skip", "best"}.isdisjoint(plain.settings)


@pytest.mark.parametrize(
    ("line", "way_out"),
    [
        ("align=grpo grpo.best=2", "grpo.baseline=best"),
        ("align=grpo grpo.skip=false", "grpo.baseline=best"),
        ("align=raft grpo.loss_type=grpo", "leave the key out"),
        ("align=raft grpo.baseline=leave_one_out", "align=grpo"),
        ("arms=[raft]", "control=true"),
        ("align=raft grpo.sync_every=0 control=true", "Leave one of them out"),
        ("align=grpo grpo.truncated=drop", "floor, mask"),
        ("align=grpo grpo.sync_every=-1", "from 0"),
    ],
)
def test_keys_of_draws_that_cannot_work_are_refused(line: str, way_out: str) -> None:
    assert way_out in refused(*TINY, *line.split())
