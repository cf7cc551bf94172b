"""Tests of scores that are known up to a constant of their prompt: a constant changes nothing that follows."""

import random
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier
from typing import Any

import pytest

from stages.evaluation.relative_scores import (
    floors_by_prompt,
    have_difference,
    quantiles_over_prompts,
)


def rewards(seed: int) -> dict[str, list[float]]:
    """Scores of up to five candidates of twelve prompts."""
    draw = random.Random(seed)
    return {f"p{i}": [draw.gauss(0, 1) for _ in range(1 + i % 5)] for i in range(12)}


@pytest.mark.parametrize("constant", [-20.0, 0.1])
def test_a_relative_floor_moves_with_its_prompt(constant: float) -> None:
    plain = rewards(0)
    floors = floors_by_prompt(plain, relative=True)
    assert all(floors[name] < min(scores) for name, scores in plain.items())
    moved = dict[str, list[float]]()
    expected = dict[str, float]()
    for i, (name, scores) in enumerate(plain.items()):
        shift = constant + 3.0 * i
        moved[name] = [score + shift for score in scores]
        expected[name] = floors[name] + shift
    assert floors_by_prompt(moved, relative=True) == pytest.approx(expected)


def test_an_absolute_floor_is_0_or_the_lowest() -> None:
    scores = {"right": [1.0, 0.5], "below": [-3.0, 2.0], "none": []}
    assert floors_by_prompt(scores, relative=False) == {"right": 0.0, "below": -3.0, "none": 0.0}
    assert floors_by_prompt(scores, relative=True).keys() == {"right", "below"}


@pytest.mark.parametrize("constant", [-20.0, 0.1])
def test_quantiles_know_no_constant_of_a_prompt(constant: float) -> None:
    scores = dict[str, float]()
    moved = dict[str, float]()
    prompt_of = dict[str, str]()
    for i, (prompt, rewards_of_prompt) in enumerate(rewards(1).items()):
        for j, score in enumerate(rewards_of_prompt):
            name = f"{prompt}/{j}"
            scores[name], prompt_of[name] = score, prompt
            moved[name] = score + constant * (1 + i)
    quantiles = quantiles_over_prompts(scores, prompt_of)
    assert quantiles_over_prompts(moved, prompt_of) == quantiles
    assert all(0 < each < 1 for each in quantiles.values())


class TwoProcesses:
    """Threads that gather lists as two processes do."""

    def __init__(self) -> None:
        self.barrier = Barrier(2)
        self.lists: list[list[Any]] = [[], []]

    def gather(self, process: int, own: list[Any]) -> list[Any]:
        self.lists[process] = own
        self.barrier.wait()
        both = self.lists[0] + self.lists[1]
        self.barrier.wait()
        return both


def test_processes_with_prompts_of_their_own_have_the_floors_and_quantiles_of_one() -> None:
    scores = rewards(2)
    prompt_of = {f"{name}/{i}": name for name, each in scores.items() for i in range(len(each))}
    by_candidate = {f"{name}/{i}": s for name, each in scores.items() for i, s in enumerate(each)}
    processes = TwoProcesses()

    def compute(process: int) -> tuple[dict[str, float], dict[str, float]]:
        names = [*scores][process::2]
        of_process = {
            name: score for name, score in by_candidate.items() if prompt_of[name] in names
        }
        gather = partial(processes.gather, process)
        floors = floors_by_prompt({name: scores[name] for name in names}, True, gather)
        return floors, quantiles_over_prompts(of_process, prompt_of, gather)

    with ThreadPoolExecutor(2) as threads:
        (floors, quantiles), (other_floors, other_quantiles) = threads.map(compute, range(2))
    assert floors | other_floors == pytest.approx(floors_by_prompt(scores, True))
    assert quantiles | other_quantiles == quantiles_over_prompts(by_candidate, prompt_of)


def test_rounding_is_no_difference() -> None:
    assert not have_difference([0.3, 0.1 + 0.2])
    assert not have_difference([])
    assert have_difference([0.3, 0.4, 0.3])
