"""Keys of one item of a list, such as `data.sources[0].columns`, on the command line."""

import shlex

from stages.config.override_text import override
from tests.helpers import refused, settings

TWO = "data.sources=[{path: 'a b.jsonl', columns: {prompt: frage}}, {path: ~/c.jsonl}]"


def test_a_key_of_an_item_joins_the_typed_list() -> None:
    columns = {"completion": 'Antwort: "x\\', "image": None}
    typed = shlex.split(override("data.sources[0].columns", columns))
    sources = settings(
        "data=file",
        TWO,
        *typed,
        "data.sources[1].splits.sft=0.5",
        "data.sources[1].reasoning=strip",
    ).data.sources
    assert sources[0].path == "a b.jsonl"
    assert sources[0].columns == {"prompt": "frage", **columns}
    assert (sources[1].splits, sources[1].reasoning) == ({"sft": 0.5}, "strip")


def test_an_item_that_is_not_typed_is_refused_with_the_list_to_type() -> None:
    message = refused("data=file", TWO, "data.sources[2].columns={prompt: a}")
    assert "'data.sources=[{path: FILE, columns: {prompt: a}}]'" in message
    assert "data.sources[0].rows" in refused("data=file", TWO, "data.sources[0].rows=[1")
