"""Rounds are compared on validation prompts, and the best one is named."""

from pathlib import Path

import pytest

from stages.evaluation.rounds import compare_rounds, sentence, table_rows
from stages.store.records import Candidate, Check, Example, save
from tests.rows import candidate

PROMPTS = 40
RIGHT = [10, 16, 36, 20]  # answers of SFT and of three rounds that pass


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """The answers of four models to validation prompts, beside a test prompt that no round may be judged by."""
    examples = [
        Example(
            f"{i}",
            [{"role": "user", "content": f"{i}?"}],
            "yes",
            "",
            f"task {i % 2}",
            split,
            checks=[check],
        )
        for check in [Check("equals", {"text": "yes"})]
        for i, split in [*((i, "validation") for i in range(PROMPTS)), (PROMPTS, "test")]
    ]
    folders = {"data": tmp_path / "data"} | {
        f"round_{i}": tmp_path / f"{i}" for i in reversed(range(len(RIGHT)))
    }
    for name, folder in folders.items():
        folder.mkdir()
        if name == "data":
            save(folder / "examples.parquet", examples, Example)
            continue
        texts = ["yes" if i < RIGHT[int(name[-1])] else "no" for i in range(PROMPTS)]
        answers = [candidate(f"{i}", text) for i, text in enumerate(texts)]
        save(folder / "answers.parquet", answers, Candidate)
    return folders


def test_the_best_round_is_named_with_its_lead_over_the_last(inputs: dict[str, Path]) -> None:
    by_round = compare_rounds(inputs, 0.95, set())
    assert by_round["prompts"] == PROMPTS
    assert [rate["mean"] for rate in by_round["rates"]] == [right / PROMPTS for right in RIGHT]
    assert [gain["mean"] for gain in by_round["gains"]] == pytest.approx(
        [(n - RIGHT[0]) / PROMPTS for n in RIGHT[1:]]
    )
    assert by_round["best"] == RIGHT.index(max(RIGHT))
    assert (
        0
        < by_round["over_last"]["low"]
        < by_round["over_last"]["mean"]
        == (RIGHT[2] - RIGHT[3]) / PROMPTS
    )
    assert "rounds=2" in sentence(by_round) and "more than noise" in sentence(by_round)


def test_a_lead_within_noise_is_called_so_and_the_last_round_may_be_the_best(
    inputs: dict[str, Path],
) -> None:
    inputs["round_3"] = inputs["round_2"]
    tied = compare_rounds(inputs, 0.95, set())
    assert tied["best"] == 2, "the first of equal rounds"
    assert "may be noise" in sentence(tied)
    rising = compare_rounds(
        {name: inputs[name] for name in ("data", "round_0", "round_1", "round_2")}, 0.95, set()
    )
    assert rising["best"] == 2 and "rounds=" not in sentence(rising)


def test_the_best_of_many_rounds_needs_a_larger_lead(inputs: dict[str, Path]) -> None:
    of_three = compare_rounds(inputs, 0.95, set())["over_last"]
    two = {"round_1": inputs["round_2"], "round_2": inputs["round_3"]}
    of_two = compare_rounds(
        {name: inputs[name] for name in ("data", "round_0")} | two, 0.95, set()
    )["over_last"]
    assert of_three["mean"] == of_two["mean"] and of_three["low"] < of_two["low"]


def test_prompts_that_were_trained_on_choose_no_round(inputs: dict[str, Path]) -> None:
    """Nothing but the first answers is right, and of these only the last one of round 2 was not trained on."""
    trained = {str(i) for i in range(RIGHT[2] - 1)}
    by_round = compare_rounds(inputs, 0.95, trained)
    assert by_round["prompts"] == PROMPTS - len(trained)
    assert [rate["mean"] * by_round["prompts"] for rate in by_round["rates"]] == pytest.approx(
        [0, 0, 1, 0]
    )
    assert compare_rounds(inputs, 0.95, {str(i) for i in range(PROMPTS)}) == {}


def test_a_run_of_one_round_has_nothing_to_compare(inputs: dict[str, Path]) -> None:
    assert compare_rounds({"data": inputs["data"]}, 0.95, set()) == {}


def test_the_share_of_right_candidates_is_known_of_checks_alone(inputs: dict[str, Path]) -> None:
    rates = {"label_1": 0.3, "label_2": 0.6, "label": 0.4}
    labels = {
        name: {"metrics": {"labeler": "verifier", "pass_rate": rate}}
        for name, rate in rates.items()
    }
    nodes = labels | {name: {"metrics": {}} for name in ("dpo_1", "dpo_2", "dpo")}
    by_round = compare_rounds(inputs, 0.95, set())
    assert [row["right"] for row in table_rows(nodes, by_round)] == [0.3, 0.6, 0.4]
    nodes["label_2"]["metrics"]["labeler"] = "judge"  # whose best score is no pass of checks
    assert [row["right"] for row in table_rows(nodes, by_round)] == [0.3, None, 0.4]
