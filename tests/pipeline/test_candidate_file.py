"""Tests of `sample=file`: candidates from a file, judged by any labeler, alone without a model and in a chain."""

import json
from pathlib import Path

import pytest

from stages.store.records import Pair, load
from tests.endpoints.servers import Model, running
from tests.helpers import TINY, Chain, build, refused
from tests.labelers.judging import better, judging

pytest.importorskip("openai")


def written(file: Path, prompts: int = 24) -> Path:
    rows = [
        {"prompt": f"Request {i}.", "completions": [f"fair {i % 3}", f"good {i % 3 + 4}"]}
        for i in range(prompts)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def line(file: Path, url: str, *more: str) -> tuple[str, ...]:
    judge = f"label.endpoints=[{{base_url: '{url}', model: judge}}]"
    return ("sample=file", f"sample.file={file}", "label=judge", judge, *more)


@pytest.mark.extended
def test_candidates_and_a_judge_need_no_model_and_no_data(tmp_path: Path) -> None:
    file = written(tmp_path / "mine.jsonl")
    root = tmp_path / "outputs"
    with running(Model(judging(better))) as server:
        overrides = line(file, server.url)
        for stage in ("label", "pairs", "unpaired"):
            build(root, f"stage={stage}", *overrides)
    chain = Chain(root)
    assert chain.count() == {"sample": 1, "label": 1, "pairs": 1, "unpaired": 1}
    pairs = load(chain.folder("pairs", *overrides) / "pairs.parquet", Pair)
    assert len(pairs) == 24
    assert {(p.chosen[0]["content"][:4], p.rejected[0]["content"][:4]) for p in pairs} == {
        ("good", "fair")
    }
    assert {p.chosen_policy for p in pairs} == {"mine.jsonl"}
    assert "judge" in (root / "labels.html").read_text()


def test_what_is_wrong_with_a_file_is_told_before_anything_is_trained(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text(
        '{"prompt": "Nobody asks this.", "completions": ["a", "b"]}\n{"prompt": "Nor this."}'
    )
    root = tmp_path / "outputs"
    typed = (*TINY, f"outputs={root}")
    foreign = "is not a sampled prompt of the data"
    of_data = ("sample=file", "sample.own_prompts=false", f"sample.file={wrong}")
    assert foreign in refused(*typed, *of_data)
    assert foreign in refused(*typed, f"sample.pool=[{{n: 2}}, {{file: {wrong}}}]")
    judge = "label.endpoints=[{base_url: 'http://127.0.0.1:1', model: m}]"
    own = ("sample=file", f"sample.file={wrong}", "label=judge", judge)
    assert "line 2: completions: " in refused(*typed, *own)
    assert Chain(root).count() == {"data": 1}


@pytest.mark.parametrize(
    ("typed", "pattern"),
    [
        ("sample=file", "Add sample.file=FILE"),
        ("sample=file sample.file=README.md", "label=verifier needs prompts with checks"),
        (
            "sample=file sample.file=README.md label=dataset label.path=README.md",
            "Leave out sample.file and sample.pool",
        ),
    ],
)
def test_what_cannot_be_is_refused_at_composition(typed: str, pattern: str, tmp_path: Path) -> None:
    assert pattern in refused(*TINY, f"outputs={tmp_path}", *typed.split())
