"""Reward models as labelers: rendering, missing scores, and resuming after a kill."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from stages.config.blocks import labels
from stages.config.choices import Precision, Weights
from stages.config.errors import UserError
from stages.labelers import reward_model
from stages.labelers.labeler import Pool
from stages.labelers.reward_model import RewardModelLabeler
from stages.models.contract import load_contract
from stages.models.loading import (
    create_reward_model,
    load_reward_model,
    load_tokenizer,
    save_model,
)
from stages.store.records import Candidate, Example, Judgement, load
from tests.helpers import TINY, Chain, refused, settings
from tests.rows import work


@pytest.fixture
def model(chain: Chain, tmp_path: Path) -> Path:
    """Make an untrained reward model with the chain's contract."""
    sft = chain.folder("sft") / "model"
    folder = tmp_path / "model"
    contract = load_contract(sft)
    begun = create_reward_model(
        sft, Weights.fp32, torch.device("cpu"), contract.tokenizer.pad_token_id, 0
    )
    save_model(begun, folder)
    contract.save(folder)
    return folder


@pytest.fixture
def pool(chain: Chain) -> Pool:
    folder = chain.folder("sample")
    prompts = load(folder / "prompts.parquet", Example)[:6]
    pool_candidates = {prompt.id for prompt in prompts}
    candidates = [
        c for c in load(folder / "candidates.parquet", Candidate) if c.prompt_id in pool_candidates
    ]
    return Pool(prompts, candidates)


def judged(model: Path, pool: Pool, folder: Path, **runtime: int) -> list[Judgement]:
    folder.mkdir(exist_ok=True)
    cfg: labels.RewardModel = settings(
        "recipe=tiny", "label=reward_model", f"label.path={model}"
    ).label
    block = replace(cfg, precision=Precision.fp32, runtime=replace(cfg.runtime, **runtime))
    labeler = RewardModelLabeler(block, work(folder))
    return [*labeler.judge_all(pool)]


def test_scores_do_not_depend_on_batches(model: Path, pool: Pool, tmp_path: Path) -> None:
    judgements = judged(model, pool, tmp_path / "all")
    alone = judged(model, pool, tmp_path / "alone", token_budget=1)
    rewards = [float(str(j.raw)) for j in judgements]
    assert [float(str(j.raw)) for j in alone] == pytest.approx(rewards, abs=1e-5)
    assert len({*rewards}) > 1


def test_weights_that_are_not_finite_are_told_before_anything_is_built(
    model: Path, tmp_path: Path
) -> None:
    """The label stage comes after SFT and sampling."""
    file = model / "model.safetensors"
    tensors = load_file(file)
    tensors["score.weight"][0, 1] = float("nan")
    save_file(tensors, file, {"format": "pt"})
    outputs = tmp_path / "other"
    typed = ("stage=label", "label=reward_model", f"label.path={model}", f"outputs={outputs}")
    line = refused(*TINY, *typed)
    assert f"label.path={model}" in line and f"{file}: 1 of " in line and "score.weight" in line
    assert not (outputs / "sft").exists()
    with pytest.raises(UserError, match=r"score\.weight"):
        load_reward_model(model, Weights.fp32, torch.device("cpu"))


def test_a_model_without_padding_reads_the_whole_answer(
    model: Path, pool: Pool, tmp_path: Path
) -> None:
    """Compare with transformers and a batch of one. The template ends an answer with the end of turn."""
    (model / "contract.json").unlink()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"pad_token_id": None}))
    tokenizer = load_tokenizer(model)
    tokenizer.pad_token = None
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
    (model / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(model)
    plain = AutoModelForSequenceClassification.from_pretrained(model)
    prompts = {prompt.id: prompt.messages for prompt in pool.prompts}
    rewards = {j.candidate_id: float(str(j.raw)) for j in judged(model, pool, tmp_path / "here")}
    for c in pool.candidates:
        turns = [*prompts[c.prompt_id], {"role": "assistant", "content": c.text}]
        ids = tokenizer.apply_chat_template(turns, return_tensors="pt", return_dict=True)[
            "input_ids"
        ]
        assert rewards[c.candidate_id] == pytest.approx(plain(ids).logits.item(), abs=1e-5)


def test_a_reward_that_is_no_number_is_a_failure(
    model: Path, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_batch = reward_model.predict_rewards

    def overflowing(*arguments: Any) -> list[float]:
        return [float("nan"), *of_batch(*arguments)[1:]]

    monkeypatch.setattr(reward_model, "predict_rewards", overflowing)
    judgements = judged(model, pool, tmp_path / "label", token_budget=1)
    assert {j.error for j in judgements} == {"the reward is nan"}
    assert all(j.score is None for j in judgements)


def test_scores_from_before_a_kill_are_reused(model: Path, pool: Pool, tmp_path: Path) -> None:
    some = Pool(pool.prompts, pool.candidates[:20])
    judgements = judged(model, some, tmp_path / "label", shard_size=5)
    (model / "model.safetensors").unlink()
    assert judged(model, some, tmp_path / "label") == judgements
    next((tmp_path / "label" / "scratch" / "shards").glob("*-000001-*.parquet")).unlink()
    with pytest.raises(UserError, match="the model cannot be loaded"):
        judged(model, some, tmp_path / "label")


def test_a_candidate_that_is_too_long_is_missing_with_its_reason(
    model: Path, pool: Pool, tmp_path: Path
) -> None:
    pool.candidates[0].text = "word " * 3000
    pool.candidates[0].token_ids = None
    judgements = judged(model, pool, tmp_path / "label")
    missing = [j for j in judgements if j.error]
    assert [j.candidate_id for j in missing] == [pool.candidates[0].candidate_id]
    assert "2048 tokens" in str(missing[0].error)
