"""Tests of source nodes: the work that a further source causes, stable splits, and the memory of reading."""

import json
from collections import Counter
from pathlib import Path

from stages.store.records import Example, load
from tests.helpers import Chain, build, nodes


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
    source_metrics = metrics["sources"]
    assert [each["rows"] for each in source_metrics] == [300, 300]
    assert all(
        each["rows"] == each["duplicates"] + sum(each["examples"].values())
        for each in source_metrics
    )


def test_what_a_source_is_does_not_depend_on_its_place_or_its_mixture(tmp_path: Path) -> None:
    a, b = (written(tmp_path / f"{name}.jsonl", range(9)) for name in "ab")
    one, other = (
        nodes(tmp_path, *overrides_of(*sources))
        for sources in (
            (f"{{path: {a}}}", f"{{path: {b}}}"),
            (f"{{path: {b}, weight: 2, epochs: 3}}", f"{{path: {a}, weight: 1, rows: 5}}"),
        )
    )
    assert one["data_source_1"].fingerprint == other["data_source_2"].fingerprint
    assert one["data_source_2"].fingerprint == other["data_source_1"].fingerprint
    assert one["data"].fingerprint != other["data"].fingerprint
    moved = (
        a.rename(tmp_path / "elsewhere" / "a.jsonl")
        if (tmp_path / "elsewhere").mkdir() is None
        else a
    )
    moved_nodes = nodes(tmp_path, *overrides_of(f"{{path: {moved}}}", f"{{path: {b}}}"))
    assert moved_nodes["data"].fingerprint == one["data"].fingerprint, "wherever it lies"
    rows = "data.audit.actions={refusal: drop}", "data.audit.actions={duplicate: drop}"
    alone, among = (nodes(tmp_path, *overrides_of(f"{{path: {b}}}"), action) for action in rows)
    assert (
        among["data_source_1"].fingerprint
        == one["data_source_2"].fingerprint
        != alone["data_source_1"].fingerprint
    )
