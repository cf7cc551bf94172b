"""Weights of 0 and 1 select the answers that are trained; any other weight is refused by its column."""

from pathlib import Path

import pytest

from stages.config.blocks.data import Data, Source
from stages.config.errors import UserError
from stages.store.records import Example, load
from tests.formats.reading import lines, read
from tests.rows import work
from tests.stages.reading import joined

ASK = {"role": "user", "content": "a"}
REPLY = {"role": "assistant", "content": "b"}
GPT = {"from": "gpt", "value": "b"}
TALK = {"messages": [ASK, {**REPLY, "weight": 0}, ASK, {**REPLY, "weight": 1}]}


@pytest.mark.parametrize(
    ("row", "trained"),
    [
        (TALK, [False, True]),
        (
            {"messages": [ASK, {**REPLY, "train": True}, ASK, {**REPLY, "train": False}]},
            [True, False],
        ),
        ({"messages": [ASK, {**REPLY, "channel": "analysis", "loss": False}, REPLY]}, [False]),
        ({"conversations": [{"from": "human", "value": "a"}, {**GPT, "weight": "0"}]}, [False]),
        ({**TALK, "system": "s", "history": [["c", "d"]]}, [True, False, True]),
        ({**TALK, "weight": 0}, [False, False]),
        ({"messages": [{**ASK, "weight": 0}, {**REPLY, "weight": 1}], "weight": 1.0}, None),
        ({"instruction": "a", "output": "b", "loss_weight": 0}, [False]),
    ],
)
def test_a_weight_says_which_answers_are_trained(
    row: dict, trained: list[bool] | None, tmp_path: Path
) -> None:
    result = read(lines(tmp_path, [row]))
    assert [each.trained for each in result.parsed] == [trained]
    left_out = (trained or []).count(False)
    assert any("weight 0" in line for line in result.notes) == bool(left_out)


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"instruction": "a", "output": "b", "loss_weight": 0.5}, "loss_weight"),
        (
            {"conversations": [{"from": "human", "value": "a"}, {**GPT, "weight": 0.3}]},
            "conversations.weight",
        ),
        ({"messages": [ASK, {**REPLY, "train": "perhaps"}]}, "messages.train"),
    ],
)
def test_a_weight_in_between_is_refused_with_the_way_out(
    row: dict, column: str, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match=rf"line 1: the column '{column}' is .*must be 0 or 1"
    ) as raised:
        read(lines(tmp_path, [row]))
    name = column.rpartition(".")[2]
    assert str(raised.value).endswith(f"data.sources[0].columns={{{name}: null}}' to leave it out.")
    [parsed] = read(lines(tmp_path, [row]), columns={name: None}).parsed
    assert parsed.trained is None


def test_weights_reach_the_examples_and_rows_that_teach_nothing_are_left_out(
    tmp_path: Path,
) -> None:
    rows = [TALK, {"messages": [{**ASK, "content": "c"}, {**REPLY, "weight": 0}]}]
    source = Source(str(lines(tmp_path, rows)), splits={"sft": 1.0})
    metrics = joined(
        Data(seed=0, sources=[source], max_bad=0.0),
        work(tmp_path),
    )
    [example] = load(tmp_path / "examples.parquet", Example)
    assert example.trained == [False, True]
    assert (metrics["left_out"], metrics["quarantined"]) == (1, 0)
