"""A skill that SFT taught, and that training on draws of other prompts destroys, is kept by replay."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from stages.labelers.verifier import VerifierLabeler
from stages.models.contract import Contract, load_contract
from stages.models.loading import load_model
from stages.models.scoring import IGNORED
from stages.store.records import Example, Judgement, load, save
from tests.objectives.test_grpo import block, inputs, train

__all__ = ["inputs"]  # the fixture
DEMONSTRATED = range(64)  # the numbers of stones and rivers
PROMPTS = range(64, 224)  # of rivers
ASKED = range(64, 80)  # of stones
STEPS_OF_SFT = 60
ROWS = 16  # of such a step


def question(kind: str, number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Name the colour of {kind} {number}."}]


def plant(like: Example) -> list[Example]:
    """Return demonstrations that every stone is red, and rivers green or blue, and prompts about rivers."""
    examples = list[Example]()
    for number in DEMONSTRATED:
        colours = {"stone": "red", "river": ("green", "blue")[number % 2]}
        for kind, colour in colours.items():
            asked = question(kind, number)
            name = f"{kind}{number}"
            examples.append(replace(like, id=name, messages=asked, reference=colour, split="sft"))
    for number in PROMPTS:
        asked = question("river", number)
        examples.append(replace(like, id=f"river{number}", messages=asked, reference=None))
    return examples


def teach(model: Any, contract: Contract, examples: list[Example], seed: int) -> None:
    """Train the model on the demonstrations."""
    rows = list[tuple[torch.Tensor, torch.Tensor]]()
    for example in examples:
        if example.split == "sft":
            ids, trained = map(torch.tensor, contract.example(example.conversation))
            rows.append((ids, ids.masked_fill(~trained, IGNORED)))
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(STEPS_OF_SFT):
        chosen = torch.randperm(len(rows), generator=generator)[:ROWS].tolist()
        ids = pad_sequence([rows[i][0] for i in chosen], batch_first=True)
        labels = pad_sequence([rows[i][1] for i in chosen], True, IGNORED)
        model(ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def skill(model: Any, contract: Contract) -> float:
    """Return the share of new stones that are red in greedy answers."""
    right = 0
    for number in ASKED:
        ids = torch.tensor([contract.prompt(question("stone", number))])
        answer = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False
        )
        right += contract.text(answer[0, ids.shape[1] :].tolist()).strip() == "red"
    return right / len(ASKED)


@pytest.mark.extended
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_skill_that_falls_without_replay_is_kept_with_it(
    seed: int, inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judge(self: Any, pool: Any) -> Iterator[Judgement]:
        for draw in pool.candidates:
            is_green = draw.text.strip() == "green"
            yield Judgement(draw.prompt_id, "green", draw.candidate_id, score=float(is_green))

    monkeypatch.setattr(VerifierLabeler, "judge_rollouts", judge)
    policy = shutil.copytree(inputs["policy"], tmp_path / "policy")
    data = shutil.copytree(inputs["data"], tmp_path / "data")
    given = load(data / "examples.parquet", Example)
    like = next(example for example in given if example.split == "preference" and example.checks)
    examples = plant(like)
    save(data / "examples.parquet", examples, Example)
    contract = load_contract(policy / "model")
    model = load_model(policy / "model")
    teach(model, contract, examples, seed)
    assert skill(model, contract) == 1.0
    model.save_pretrained(policy / "model")
    cfg = block(
        seed=seed,
        baseline="best",
        skip=False,  # a step without rows of its own would replay none
        batch_size=16,
        epochs=2,
        learning_rate=3e-3,
        evaluations=0,
        temperature=1.0,
        max_new_tokens=4,
    )
    roles = {"policy": policy, "data": data, "replayed": data}
    after = dict[float, float]()
    for share in (0.0, 0.05):
        folder = tmp_path / f"replay {share}"
        _, metrics = train(replace(cfg, replay=share), roles, folder)
        assert metrics["reward"] >= 0.9, "the new task is learnt"
        after[share] = skill(load_model(folder / "model"), contract)
    assert after[0.0] < 0.3
    assert after[0.05] >= 0.9
