"""The arms of each table differ in what they state alone, its rule recommends what it says, and its record is kept."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from stages.config.blocks.draws import Drawing
from stages.evaluation.estimate import over_seeds
from stages.evaluation.outcomes import Table
from stages.store.records import Example
from tests.bench import arm_record, arms
from tests.bench.arm_record import ArmOutcome, Record, Training
from tests.bench.arm_settings import Arm, TableSettings, read_tables
from tests.bench.arm_table import Printed, recommended
from tests.helpers import composed, settings_by_key

TABLES = [*read_tables()]
ARMS = [(name, arm) for name in TABLES for arm in TableSettings.read(name).arms]
COSTS = {"a": 600.0, "b": 500.0, "c": 100.0}


@pytest.mark.parametrize("name, arm", ARMS)
def test_an_arm_differs_from_the_base_arm_in_what_it_states_alone(name: str, arm: str) -> None:
    table = TableSettings.read(name)
    assert table.changed_keys(arm) == table.stated_keys(arm)


def test_a_setting_that_changes_more_keys_than_it_names_is_found() -> None:
    """As the precision of the run, which each training takes."""
    table = TableSettings.read("bakeoff")
    table.arms["more"] = Arm("", ["precision=fp32"])
    assert table.stated_keys("more") == {"precision"}
    assert table.changed_keys("more") > {"precision", "dpo.precision"}


def test_an_objective_with_a_block_of_its_own_draws_as_the_base_arm_does() -> None:
    """Its prompts, draws and steps are those of GRPO; its loss and the learning rate are its own."""
    table = TableSettings.read("short_tasks")
    values = settings_by_key(composed(*table.line("online_dpo", None, 0)))
    shared = {key.name for key in fields(Drawing)} - {"learning_rate"}
    keys = [key for key in values if key.split(".")[0] == "grpo" and key.split(".")[1] in shared]
    assert "grpo.epochs" in keys
    own = {key: values[key.replace("grpo", "online_dpo")] for key in keys}
    assert own == {key: values[key] for key in keys}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_names_arms_and_views_that_it_has(name: str) -> None:
    table = TableSettings.read(name)
    named = {table.base}
    for arm in table.arms.values():
        named |= {arm.rate_of, arm.control} - {""}
    assert named <= table.arms.keys()
    assert {table.decides, table.guards} <= table.views.keys()
    for arm in table.arms.values():
        assert not arm.rates or not arm.rate_of


def a_table(shares: dict[str, float], group: str, prompts: int = 1250) -> Table:
    """Return a table in which each arm passes the first of the prompts, as many as its share says."""
    examples = [
        Example(f"{i}", [], None, "", f"t{i % 30}", "test", group=group) for i in range(prompts)
    ]
    # in an order in which each task has its part of the prompts that pass
    places = np.random.default_rng(0).permutation(prompts)
    columns = [places < share * prompts for share in shares.values()]
    passed = np.array(columns, float).T
    return Table([*shares], examples, passed, passed, passed)


@pytest.mark.parametrize(
    "decides, guards, expected",
    [
        ((0.2, 0.4, 0.3, 0.3), (0.9, 0.9, 0.9, 0.9), "a"),  # the highest
        ((0.2, 0.4, 0.4, 0.3), (0.9, 0.9, 0.9, 0.9), "b"),  # of two alike the cheaper one
        ((0.2, 0.4, 0.3, 0.2), (0.9, 0.8, 0.9, 0.9), "b"),  # the highest lost plain requests
        ((0.2, 0.4, 0.3, 0.3), (0.9, 0.8, 0.8, 0.8), "sft"),  # all have
        ((0.4, 0.2, 0.1, 0.1), (0.9, 0.9, 0.9, 0.9), "a"),  # SFT is no arm
    ],
)
def test_the_rule(decides: Sequence[float], guards: Sequence[float], expected: str) -> None:
    roles = ("sft", *COSTS)
    tables = (
        a_table(dict(zip(roles, decides, strict=True)), "unseen_kinds", 900),
        a_table(dict(zip(roles, guards, strict=True)), "open_plain"),
    )
    assert recommended(*tables, COSTS) == expected


def test_a_loss_that_may_be_three_points_does_not_qualify() -> None:
    decides = a_table({"sft": 0.2, "a": 0.4}, "unseen_kinds", 900)
    few = a_table({"sft": 0.5, "a": 0.49}, "open_plain", 100)
    many = a_table({"sft": 0.5, "a": 0.49}, "open_plain", 1250)
    assert recommended(decides, few, COSTS) == "sft"
    assert recommended(decides, many, COSTS) == "a"


def a_training(arm: str, seed: int, cost: float | None) -> Training:
    return Training(arm, seed, 1e-5, cost, kl=0.1, pass_at_draws=0.5, distinct=2.0, processor="")


def test_a_record_is_read_as_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arm_record, "RESULTS", tmp_path)
    row = ArmOutcome("p", "best", True, 5, stopped=True, seed=1, loops=False)
    trainings = [a_training("best", 0, None), a_training("best", 1, 300.0), a_training("sft", 1, 9)]
    record = Record("t", {"best": {"1e-05": 7}}, trainings, [row])
    record.write()
    again = Record.read("t")
    assert again == record
    assert again.seeds_of("best", "sft") == [1]
    assert again.cpu_seconds("best") == 300.0
    assert again.rows(["best"], 1) == [row]
    assert not again.rows(["best"], 0)


def test_of_rates_that_pass_as_many_the_lowest_is_taken(tmp_path: Path) -> None:
    table = TableSettings.read("short_tasks")
    record = Record("t", {"best": {"1e-05": 7, "2.5e-05": 9, "5e-05": 9}})
    runs = arms.Runs(tmp_path, table, record)
    assert runs.rate("best") == runs.rate("random") == 2.5e-5
    assert runs.rate("mask") == 2e-5
    assert runs.rate("sft") is None


def test_a_table_has_differences_over_prompts_and_over_seeds() -> None:
    """`best` passes 6 and 5 of 10 prompts of two seeds where SFT passes 2 and 3."""
    table = TableSettings.read("short_tasks")
    prompts = [Example(f"p{i}", [], None, "", "t", "test", group="seen") for i in range(10)]
    record = Record(
        "t", trainings=[a_training(arm, s, 60) for arm in ("sft", "best") for s in (0, 1)]
    )
    for arm, seed, passes in (("sft", 0, 2), ("sft", 1, 3), ("best", 0, 6), ("best", 1, 5)):
        for place, prompt in enumerate(prompts):
            row = ArmOutcome(
                prompt.id, arm, place < passes, 4, stopped=True, seed=seed, loops=place == 0
            )
            record.outcomes.append(row)
    printed = Printed(table, record, {prompt.id: prompt for prompt in prompts})
    cells = printed.cells("trained tasks", "best")
    assert cells[:3] == ["1e-05", "2", "55.0% of 10"]
    assert cells[3].startswith("+30.0 points (")
    assert cells[4] == over_seeds([0.4, 0.2], 0.1).points()
    assert cells[6:] == ["–", "–", "4.0", "100.0%", "10.0%"]
    assert "no seed has all arms" in printed.recommendation()


@pytest.mark.parametrize("words", [[], ["long_tasks"], ["short_tasks", "rlhf"]])
def test_an_unknown_table_or_arm_is_refused_with_the_names(
    words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match=r"(short_tasks, instructions|best, random)"):
        arms.main(tmp_path, words)
    assert not [*tmp_path.iterdir()]


# seven commands, each a process that loads TRL: a minute of one core
@pytest.mark.slow
def test_an_arm_is_trained_once_and_its_row_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "arms.yaml"
    recipe.write_text("defaults: [tiny]\ngrpo: {epochs: 0.5}\n")
    table = TableSettings(
        name="tiny",
        recipe=str(recipe),
        seeds=[1],
        base="grpo",
        tuning_epochs=0.5,
        views={"trained": ["seen"]},
        decides="trained",
        guards="trained",
        arms={
            "sft": Arm("SFT", ["align=none"]),
            "grpo": Arm(
                "GRPO", ["align=grpo"], rate_key="grpo.learning_rate", rates=[1e-3], control="sft"
            ),
        },
    )
    monkeypatch.setattr(arm_record, "RESULTS", tmp_path / "outcomes")
    monkeypatch.setattr(arms, "read_tables", lambda: {"tiny": {}})
    monkeypatch.setattr(TableSettings, "read", lambda name: table)
    monkeypatch.setattr(arms, "DRAWS", 2)
    arms.main(tmp_path / "store", ["tiny"])
    record = Record.read("tiny")
    assert [training.arm for training in record.trainings] == ["sft", "grpo"]
    for training in record.trainings:
        assert training.cpu_seconds is not None
        assert training.cpu_seconds > 1
    assert {row.role for row in record.outcomes} == {"sft", "grpo"}
    monkeypatch.setattr(arms.Runs, "train", lambda *_: pytest.fail("it is trained again"))
    arms.main(tmp_path / "store", ["tiny"])
    assert Record.read("tiny") == record
