"""Tests of scores that are known up to a constant of their prompt: a constant changes nothing that follows."""

import random

import pytest

from stages.evaluation.relative_scores import (
    floors_by_prompt,
    pooled_deviation,
    quantile,
    quantiles_over_prompts,
)

CONSTANTS = (-20.0, -5.0, 0.1, 20.0)


def rewards(seed: int, prompts: int = 12, candidates: int = 5) -> dict[str, list[float]]:
    draw = random.Random(seed)
    return {
        f"p{i}": [draw.gauss(0, 1) for _ in range(draw.randint(1, candidates))]
        for i in range(prompts)
    }


@pytest.mark.parametrize("constant", CONSTANTS)
def test_a_relative_floor_moves_with_its_prompt(constant: float) -> None:
    """The same constant for all prompts, and another one for each."""
    plain = rewards(0)
    floors = floors_by_prompt(plain, relative=True)
    assert all(floors[name] < min(scores) for name, scores in plain.items())
    for step in (0.0, 3.0):
        shifts = {name: constant + step * i for i, name in enumerate(plain)}
        moved = {name: [s + shifts[name] for s in scores] for name, scores in plain.items()}
        expected = {name: floor + shifts[name] for name, floor in floors.items()}
        assert floors_by_prompt(moved, relative=True) == pytest.approx(expected)


def test_right_answers_beside_one_without_a_score_still_teach() -> None:
    """All have one score, so the deviation is 0, and the floor lies 1 below."""
    assert pooled_deviation([[0.7] * 7]) == 1.0
    assert floors_by_prompt({"p": [0.7] * 7}, relative=True) == {"p": pytest.approx(-0.3)}


def test_an_absolute_floor_is_0_or_the_lowest() -> None:
    scores = {"right": [1.0, 0.5], "below": [-3.0, 2.0], "none": []}
    assert floors_by_prompt(scores, relative=False) == {"right": 0.0, "below": -3.0, "none": 0.0}
    assert floors_by_prompt(scores, relative=True).keys() == {"right", "below"}


@pytest.mark.parametrize("constant", CONSTANTS)
def test_quantiles_know_no_constant_of_a_prompt(constant: float) -> None:
    plain = rewards(1)
    scores = {f"{p}/{i}": score for p, each in plain.items() for i, score in enumerate(each)}
    prompt_of = {name: name.partition("/")[0] for name in scores}
    shifts = {prompt: constant * (1 + i) for i, prompt in enumerate(plain)}
    moved = {name: score + shifts[prompt_of[name]] for name, score in scores.items()}
    quantiles = quantiles_over_prompts(scores, prompt_of)
    assert quantiles_over_prompts(moved, prompt_of) == quantiles
    assert all(0 < each < 1 for each in quantiles.values())
    for prompt in plain:
        names = [name for name in scores if prompt_of[name] == prompt]
        assert sorted(names, key=scores.__getitem__) == sorted(names, key=quantiles.__getitem__)


def test_quantiles_split_ties_and_exclude_0_and_1() -> None:
    assert [quantile(x, [1.0, 2.0, 2.0, 5.0]) for x in (1.0, 2.0, 5.0)] == [0.125, 0.5, 0.875]
