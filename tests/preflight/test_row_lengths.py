"""Tests of the count of rows that are too long, before anything is built."""

import json
import re
from pathlib import Path

import pytest

from stages.preflight import row_lengths
from stages.store.store import Store
from tests.helpers import TINY, Chain, nodes, refused

LONG = {
    "dpo": (60, 150),
    "kto": (60, 150),
    "grpo": (40, 150),
    "sft": (60, 150),
    "reward": (60, 150),
}


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
    pairs, splits = folder / "preferences.jsonl", "sft" if stage == "sft" else "preference"
    source = (
        f"data.sources=[{{path: {folder / 'demonstrations.jsonl'}, splits: {{{splits}: 1.0}}}}]"
    )
    alone = ("data.tasks.sft=0", "data.tasks.validation=0", "data.tasks.preference=0", source)
    if stage == "grpo":
        (folder / "reward.py").write_text("def one(completions): return [1.0 for _ in completions]")
        own = f"label.own={{file: {folder / 'reward.py'}, name: one}}"
        return ("data.tasks.preference=0", "data.tasks.validation=0", source, "label=own", own)
    if stage == "reward":
        return (f"reward.source.path={pairs}",)
    return alone if stage == "sft" else ("label=dataset", f"label.path={pairs}")


@pytest.mark.parametrize(
    ("stage", "length"), [(stage, length) for stage in LONG for length in LONG[stage]]
)
def test_rows_that_do_not_fit_are_refused_before_a_model_is_loaded(
    stage: str, length: int, chain: Chain, tmp_path: Path
) -> None:
    align = {"dpo": (), "kto": ("align=kto",), "grpo": ("align=grpo",)}.get(stage, ())
    line = (*long_rows_line(stage, tmp_path), *align)
    built = chain.count()
    run = (*TINY, f"outputs={chain.root}", f"stage={stage}", *line)
    too_short = f"{stage}.max_length={length}"
    refusal = refused(*run, too_short)
    assert f"are longer than {too_short}" in refusal and f"{stage}.max_dropped=0.1" in refusal
    [keeps] = re.findall(rf"({stage}\.max_length=\d+) keeps 100%", refusal)
    assert chain.count() == built
    store, planned = Store(chain.root), nodes(chain.root, *line, keeps)
    node = planned[stage]
    assert row_lengths.long_rows([node], planned, store) == ([], [])
    if "keeps 90%" in refusal:
        [some] = re.findall(rf"({stage}\.max_length=\d+) keeps 90%", refusal)
        planned = nodes(chain.root, *line, some)
        errors, [warning] = row_lengths.long_rows([planned[stage]], planned, store)
        assert not errors and "keeps 100%" in warning


def test_many_rows_are_drawn_and_refused_only_where_the_share_is_certain(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = long_rows_line("dpo", tmp_path)
    monkeypatch.setattr(row_lengths, "COUNTED", 8)
    store, planned = Store(chain.root), nodes(chain.root, *line, "dpo.max_length=60")
    [error], warnings = row_lengths.long_rows([planned["dpo"]], planned, store)
    assert " of 8 of 20 rows are longer" in error and not warnings
    monkeypatch.setattr(row_lengths, "READ", 20)  # a longer file is not read to its end
    errors, [_] = row_lengths.long_rows([planned["dpo"]], planned, store)
    assert not errors


def test_no_length_beyond_the_models_context_is_named(chain: Chain, tmp_path: Path) -> None:
    planned = nodes(chain.root, *long_rows_line("dpo", tmp_path), "dpo.max_length=500")
    [file] = row_lengths.files_read(planned["dpo"])
    lengths = row_lengths.RowLengths(planned["dpo"].config, file, [50, 150, 200], 3, True, 100)
    assert "2 of 3 rows are longer than the 100 tokens that the model reads" in lengths.message
    assert " keeps " not in lengths.message and lengths.exceeds_limit
