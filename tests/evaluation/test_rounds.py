"""Rounds are compared on validation prompts, and the best one is named."""

from pathlib import Path

import pytest

from stages.evaluation.rounds import compare_rounds, sentence
from stages.store.records import Candidate, Check, Example, save
from tests.rows import candidate, prompt

PROMPTS = 40
RIGHT = [10, 16, 36, 20]  # answers of SFT and of three rounds that pass


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    return answered(tmp_path, RIGHT)


def answered(root: Path, right_counts: list[int]) -> dict[str, Path]:
    """The answers of SFT and rounds to validation prompts, beside a test prompt that no round may be judged by."""
    check = Check("equals", {"text": "yes"})
    examples = list[Example]()
    for i in range(PROMPTS + 1):
        fields = {"reference": "yes", "task": f"task {i % 2}", "checks": [check]}
        split = "validation" if i < PROMPTS else "test"
        examples.append(prompt(f"{i}", split=split, **fields))
    folders = {"data": root / "data"}
    folders["data"].mkdir(parents=True)
    save(folders["data"] / "examples.parquet", examples, Example)
    for number, right in enumerate(right_counts):
        folder = folders[f"round_{number}"] = root / f"{number}"
        folder.mkdir()
        texts = ["yes"] * right + ["no"] * (PROMPTS - right)
        answers = [candidate(f"{i}", text) for i, text in enumerate(texts)]
        save(folder / "answers.parquet", answers, Candidate)
    return folders


def test_the_best_round_is_named_with_its_lead_over_the_last(inputs: dict[str, Path]) -> None:
    by_round = compare_rounds(inputs, 0.95, set())
    assert by_round.prompts == PROMPTS
    assert [rate.mean for rate in by_round.rates] == [right / PROMPTS for right in RIGHT]
    gains = [(right - RIGHT[0]) / PROMPTS for right in RIGHT[1:]]
    assert [gain.mean for gain in by_round.gains] == pytest.approx(gains)
    assert by_round.best == 2
    assert by_round.over_last.mean == (RIGHT[2] - RIGHT[3]) / PROMPTS
    assert by_round.over_last.low > 0
    assert "rounds=2" in sentence(by_round)


def test_a_lead_within_noise_is_called_so_and_the_last_round_may_be_the_best(
    inputs: dict[str, Path],
) -> None:
    tied = compare_rounds(inputs | {"round_3": inputs["round_2"]}, 0.95, set())
    assert tied.best == 2, "the first of equal rounds"
    assert "may be noise" in sentence(tied)
    del inputs["round_3"]
    rising = compare_rounds(inputs, 0.95, set())
    assert rising.best == 2
    assert "rounds=" not in sentence(rising)


def test_prompts_that_were_trained_on_choose_no_round(inputs: dict[str, Path]) -> None:
    """Nothing but the first answers is right, and of these only the last one of round 2 was not trained on."""
    trained = {str(i) for i in range(RIGHT[2] - 1)}
    by_round = compare_rounds(inputs, 0.95, trained)
    assert by_round.prompts == PROMPTS - len(trained)
    assert [rate.mean > 0 for rate in by_round.rates] == [False, False, True, False]
    assert compare_rounds(inputs, 0.95, {str(i) for i in range(PROMPTS)}) is None


def test_the_same_lead_is_less_certain_for_the_best_of_more_rounds(tmp_path: Path) -> None:
    """The best of many rounds leads by luck more often than the better of two."""
    sft, best, last = 10, 16, 11
    two = compare_rounds(answered(tmp_path / "two", [sft, best, last]), 0.95, set())
    many = [sft, best, 0, 2, 4, 6, 8, 12, last]
    eight = compare_rounds(answered(tmp_path / "eight", many), 0.95, set())
    assert two.best == eight.best == 1
    for lead in ("over_sft", "over_last"):
        of_two, of_eight = getattr(two, lead), getattr(eight, lead)
        assert of_two.mean == of_eight.mean
        assert of_two.low > 0 > of_eight.low, lead
    assert two.gains[0] == eight.gains[0], "one round by itself is corrected for nothing"
    assert "may be noise" not in sentence(two)
    assert "may be noise" in sentence(eight)


def test_the_better_of_two_rounds_is_corrected_for_both(tmp_path: Path) -> None:
    """By the largest of both leads, which Bonferroni's correction exceeds because both share the errors of SFT."""
    by_round = compare_rounds(answered(tmp_path, [10, 16, 11]), 0.95, set())
    stricter = compare_rounds(answered(tmp_path / "stricter", [10, 16, 11]), 0.975, set())
    uncorrected, bonferroni = by_round.gains[0].low, stricter.gains[0].low
    assert bonferroni <= by_round.over_sft.low < uncorrected
