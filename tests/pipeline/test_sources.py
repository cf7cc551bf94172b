"""Tests of source nodes: the work that a further source causes, stable splits, and the memory of reading."""

import json
from collections import Counter
from pathlib import Path

from stages.store.records import Example, load
from tests.helpers import Chain, build


def written(file: Path, rows: range, answer: str = "Yes") -> Path:
    lines = [
        json.dumps({"instruction": f"Tell me of the number {i}.", "output": f"{answer}, {i}."})
        for i in rows
    ]
    file.write_text("\n".join(lines))
    return file


def overrides_of(*sources: str) -> tuple[str, ...]:
    return ("data=file", "stage=data", f"data.sources=[{', '.join(sources)}]")


def test_one_more_source_reads_itself_alone(tmp_path: Path) -> None:
    chain = Chain(tmp_path / "store")
    shares = "splits: {sft: 0.6, validation: 0.2, test: 0.2}"
    a = f"{{path: {written(tmp_path / 'a.jsonl', range(300))}, {shares}}}"
    b = f"{{path: {written(tmp_path / 'b.jsonl', range(200, 500), 'No')}, splits: {{sft: 0.5, preference: 0.5}}}}"
    build(chain.root, *overrides_of(a))
    first = chain.folder("data_source_1", *overrides_of(a))
    first_time = first.stat().st_mtime_ns
    build(chain.root, *overrides_of(a, b))
    assert chain.count() == {"source": 2, "data": 2}
    assert first.stat().st_mtime_ns == first_time
    examples = load(chain.folder("data", *overrides_of(a, b)) / "examples.parquet", Example)
    assert len({e.id for e in examples}) == len(examples)
    of_prompt: dict[str, set[str]] = {}
    for e in examples:
        of_prompt.setdefault(e.messages[0]["content"], set()).add(e.split)
    assert len(of_prompt) == 500
    assert all(len(splits) == 1 for splits in of_prompt.values()), "over all sources together"
    metrics = chain.manifest("data", *overrides_of(a, b))["metrics"]
    assert metrics["examples"] == Counter(e.split for e in examples)
    assert [each["rows"] for each in metrics["sources"]] == [300, 300]
