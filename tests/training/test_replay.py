"""Replay: demonstrations of SFT in the steps of an objective that draws."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch

from stages.config.blocks.training import GRPO
from stages.config.choices import Split
from stages.config.errors import UserError
from stages.labelers.verifier import VerifierLabeler
from stages.models.contract import load_contract
from stages.models.loading import load_model
from stages.store.records import Example, load
from stages.training.replay import Replay
from stages.training.saving import Checkpoints
from tests.equality import assert_metrics_do_not_depend_on_memory
from tests.helpers import nodes
from tests.objectives.test_grpo import (
    block,
    by_tokens,
    first_ids,
    gradients_of_a_step,
    inputs,
    train,
    trainer_of,
)

__all__ = ["inputs"]  # the fixture
ON = ("align=grpo", "grpo.replay=0.2", "control=true")


class Stopped(BaseException):
    pass


def replay_of(cfg: GRPO, inputs: dict[str, Path]) -> Replay:
    examples = load(inputs["data"] / "examples.parquet", Example)
    return Replay(examples, load_contract(inputs["policy"] / "model"), cfg, None)


def count_replayed(replay: Replay, step: int, tokens: int) -> int:
    return sum(len(row["completion_ids"]) for row in replay.rows(step, tokens))


def test_the_share_of_tokens_is_kept_on_average_also_of_steps_shorter_than_a_row(
    inputs: dict[str, Path],
) -> None:
    replay = replay_of(block(replay=0.2), inputs)
    for tokens in (8, 400):
        counts = [count_replayed(replay, step, tokens) for step in range(400)]
        assert fmean(counts) == pytest.approx(tokens / 4, rel=0.2)
    replay = replay_of(block(replay=0.05), inputs)
    counts = [count_replayed(replay, step, 1900) for step in range(100)]
    assert fmean(counts) == pytest.approx(100, rel=0.05)


def test_the_rows_of_a_step_follow_from_its_number_and_the_seed(inputs: dict[str, Path]) -> None:
    cfg = block(replay=0.2)
    replay = replay_of(cfg, inputs)
    first = [replay.rows(step, 400) for step in range(5)]
    again = replay_of(cfg, inputs)
    assert [again.rows(step, 400) for step in (4, 3, 2, 1, 0)] == first[::-1]
    other = replay_of(replace(cfg, seed=cfg.seed + 1), inputs)
    assert other.rows(0, 400) != first[0] != first[1]


def test_a_row_is_the_last_answer_that_is_trained(inputs: dict[str, Path]) -> None:
    replay = replay_of(block(replay=0.2), inputs)
    example = next(iter(replay.by_hash.values()))
    [question] = example.messages
    answers = [{"role": "assistant", "content": text} for text in ("one", "two")]
    turns = [question, answers[0], question, answers[1], question]
    for trained, answer, before in ((None, example.reference, 5), ([True, True, False], "two", 3)):
        row = replay.row(replace(example, messages=turns, trained=trained))
        assert row
        assert replay.contract.text(row["completion_ids"]).strip() == answer
        assert row["prompt_ids"] == replay.contract.prompt(turns[:before])


def test_without_demonstrations_it_is_refused(inputs: dict[str, Path]) -> None:
    examples = load(inputs["data"] / "examples.parquet", Example)
    others = [example for example in examples if example.split != Split.sft]
    contract = load_contract(inputs["policy"] / "model")
    with pytest.raises(UserError, match=r"^grpo\.replay=0\.2: .*data\.tasks\.sft"):
        Replay(others, contract, block(replay=0.2), None)


def test_demonstrations_that_cannot_be_trained_are_counted_and_all_of_them_refused(
    inputs: dict[str, Path],
) -> None:
    examples = load(inputs["data"] / "examples.parquet", Example)
    contract = load_contract(inputs["policy"] / "model")
    ends = list[int]()
    for example in examples:
        if example.split == Split.sft:
            ends.append(len(contract.example(example.conversation)[0]))
    middle = sorted(ends)[len(ends) // 2]
    replay = Replay(examples, contract, block(replay=0.5, max_length=middle), None)
    for step in range(60):
        assert replay.rows(step, 400)
    assert 0 < len(replay.skipped_ids) < len(ends)
    assert f"{len(replay.skipped_ids)} of {len(ends)} " in replay.skipped_message
    replay = Replay(examples, contract, block(replay=0.5, max_length=min(ends) // 2), None)
    with pytest.raises(UserError, match=r"^grpo\.replay=0\.5: none of .*grpo\.max_length"):
        replay.rows(0, 400)


def test_off_changes_no_node_and_on_reads_what_sft_read(built: Path) -> None:
    plain = nodes(built, "align=grpo", "control=true")
    off = nodes(built, "align=grpo", "control=true", "grpo.replay=0")
    on = nodes(built, *ON)
    assert {n: node.fingerprint for n, node in plain.items()} == {
        n: node.fingerprint for n, node in off.items()
    }
    for name in ("grpo", "control"):
        assert "replayed" not in plain[name].inputs
        assert on[name].inputs["replayed"] is on["sft"].inputs["data"]
        assert on[name].fingerprint != plain[name].fingerprint


@pytest.mark.parametrize("changes", [{}, {"baseline": "best", "min_score": 0.0}])
def test_the_gradient_is_that_of_the_draws_plus_cross_entropy_at_temperature_1(
    changes: dict[str, Any], inputs: dict[str, Path], tmp_path: Path
) -> None:
    """The model of transformers computes the cross-entropy row by row. A token weighs as one of the draws."""
    cfg = block(temperature=1.5, replay=0.3, **changes)
    without = trainer_of(cfg, inputs, tmp_path / "without")
    rows = first_ids(without, 4)
    gradients = gradients_of_a_step(without, rows)
    trainer = trainer_of(cfg, inputs, tmp_path / "ours")
    trainer.replay = replay_of(cfg, inputs)
    ours = gradients_of_a_step(trainer, rows)
    groups = trainer.rollouts.of_step([row["id"] for row in rows])
    live = trainer.step_rows(groups)
    completions = [completion for row in live for completion in row["completions"]]
    tokens = sum(len(completion.token_ids) for completion in completions)
    replayed = trainer.replay.rows(0, tokens)
    assert replayed
    model = load_model(inputs["policy"] / "model")
    for row in replayed:
        prompt, completion = row["prompt_ids"], row["completion_ids"]
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(completion), reduction="sum")
        (loss * completions[0].share).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(
                ours[name], gradients[name] + parameter.grad, atol=1e-5, rtol=1e-4
            )
    metrics = trainer.summarize("train")
    count = sum(len(row["completion_ids"]) for row in replayed)
    assert metrics["replayed"] == pytest.approx(count / (count + tokens))


def test_no_budget_changes_a_metric_of_a_step(inputs: dict[str, Path], tmp_path: Path) -> None:
    cfg = block(temperature=1.5, replay=0.4)
    trainer = trainer_of(cfg, inputs, tmp_path / "ours")
    trainer.replay = replay_of(cfg, inputs)
    rows = [*first_ids(trainer, 5)]
    metrics = assert_metrics_do_not_depend_on_memory(trainer, rows, [1, 90, 250])
    assert metrics.keys() >= {"replayed", "replay_loss", "reward"}


@pytest.mark.extended
def test_a_resumed_training_is_as_one_run(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(self: Any, pool: Any) -> Iterator[Any]:
        yield from by_tokens([], [*pool.candidates])

    monkeypatch.setattr(VerifierLabeler, "judge_rollouts", judge)
    inputs["replayed"] = inputs["data"]
    cfg = block(replay=0.3, batch_size=8, evaluations=0)
    cfg = replace(cfg, runtime=replace(cfg.runtime, save_steps=2))
    whole, metrics = train(cfg, inputs, tmp_path / "whole")
    assert metrics["replayed"] > 0
    stepped = Checkpoints.on_step_end

    def stop(self: Any, args: Any, state: Any, *rest: Any, **kwargs: Any) -> None:
        stepped(self, args, state, *rest, **kwargs)
        if state.global_step == 3:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_step_end", stop)
        with pytest.raises(Stopped):
            train(cfg, inputs, tmp_path / "resumed")
    resumed, _ = train(cfg, inputs, tmp_path / "resumed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
