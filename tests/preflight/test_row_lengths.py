"""Tests of the count of rows that are too long, before anything is built."""

import json
import re
from pathlib import Path

import pytest

from stages.preflight import row_lengths
from stages.store.store import Store
from tests.helpers import TINY, Chain, nodes, refused

LONG = ("dpo", "kto", "sft", "reward")


def long_rows_line(stage: str, folder: Path) -> tuple[str, ...]:
    """Write 20 preferences and 20 demonstrations of 10 to 200 words, and return the settings of a training on them."""
    words = [" ".join(["river"] * 10 * i) for i in range(1, 21)]
    preferences = [
        {"prompt": f"Question {i}", "chosen": text, "rejected": "Short."}
        for i, text in enumerate(words)
    ]
    demonstrations = [
        {"prompt": f"{text} {i}?", "completion": text} for i, text in enumerate(words)
    ]
    for name, rows in (("preferences", preferences), ("demonstrations", demonstrations)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pairs = folder / "preferences.jsonl"
    source = f"data.sources=[{{path: {folder / 'demonstrations.jsonl'}, splits: {{sft: 1.0}}}}]"
    alone = ("data.tasks.sft=0", "data.tasks.validation=0", "data.tasks.preference=0", source)
    if stage == "reward":
        return (f"reward.source.path={pairs}",)
    return alone if stage == "sft" else ("label=dataset", f"label.path={pairs}")


@pytest.mark.parametrize("stage", LONG)
def test_rows_that_do_not_fit_are_refused_before_a_model_is_loaded(
    stage: str, chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    align = ("align=kto",) if stage == "kto" else ()
    line = (*long_rows_line(stage, tmp_path), *align)
    built = chain.count()
    too_short = f"{stage}.max_length=60"
    refusal = refused(*TINY, f"outputs={chain.root}", f"stage={stage}", *line, too_short)
    assert f"are longer than {too_short}" in refusal and f"{stage}.max_dropped=0.1" in refusal
    assert chain.count() == built
    [keeps] = re.findall(rf"({stage}\.max_length=\d+) keeps 100%", refusal)
    store = Store(chain.root)
    planned = nodes(chain.root, *line, keeps)
    assert row_lengths.messages_of_long_rows([planned[stage]], planned, store) == []
    monkeypatch.setattr(row_lengths, "MOST_COUNTED", 8)  # a longer file is not read to its end
    planned = nodes(chain.root, *line, too_short)
    assert row_lengths.messages_of_long_rows([planned[stage]], planned, store) == []


def test_no_length_beyond_the_models_context_is_named(chain: Chain, tmp_path: Path) -> None:
    node = nodes(chain.root, *long_rows_line("dpo", tmp_path), "dpo.max_length=500")["dpo"]
    [file] = row_lengths.local_files_read(node)
    message = row_lengths.long_rows_message(node, file, 3, [150, 200], 100)
    assert "2 of 3 rows are longer than the 100 tokens that the model reads" in message
    assert " keeps " not in message
