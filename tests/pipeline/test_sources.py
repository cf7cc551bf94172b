"""Tests of source nodes: the work that a further source causes, stable splits, and the memory of reading."""

import gc
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from stages.config.installation import ROOT
from stages.store.records import Example, load
from tests.helpers import Chain, build, nodes, settings
from tests.rows import work
from tests.stages.reading import joined


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
    chain, shares = Chain(tmp_path / "store"), "splits: {sft: 0.6, validation: 0.2, test: 0.2}"
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


def test_a_mixture_is_told_in_the_manifest(tmp_path: Path) -> None:
    chain = Chain(tmp_path / "store")
    a = f"{{path: {written(tmp_path / 'a.jsonl', range(400))}, splits: {{sft: 1.0}}}}"
    b = f"{{path: {written(tmp_path / 'b.jsonl', range(400, 440))}, epochs: 2.5, splits: {{sft: 0.9, test: 0.1}}}}"
    line = (*overrides_of(a, b), "data.mixture.cap=100")
    build(chain.root, *line)
    data_metrics = chain.manifest("data", *line)["metrics"]
    own = data_metrics["sources"][1]["for_sft"]
    examples = load(chain.folder("data", *line) / "examples.parquet", Example)
    counted = Counter(e.source for e in examples if e.split == "sft")
    assert counted == {"a.jsonl": 100, "b.jsonl": round(2.5 * own)}
    times = Counter(
        e.messages[0]["content"] for e in examples if e.source == "b.jsonl" and e.split == "sft"
    )
    assert set(times.values()) == {2, 3}
    assert len({e.id for e in examples}) == len(examples)


MEASURE = """
import json, sys
from pathlib import Path
from stages.hardware import machine
from tests.helpers import settings
from tests.stages.reading import joined
folder, count = Path(sys.argv[1]), int(sys.argv[2])
file, text = folder / f"{count}.jsonl", "many words and some more " * 8
with open(file, "w") as rows:
    for i in range(count):
        rows.write(json.dumps({"instruction": f"Tell me of {i}.", "input": text, "output": f"{i}: {text}"}) + "\\n")
joined(settings("data=file", f"data.sources=[{{path: {file}}}]").data, work(folder / str(count)))
print(machine.peak_memory())  # resource tells what the parent had before it, too
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """A million rows stay below one GiB: what 20,000 take, two of the groups that a table is written in, and the slope
    from there. Rows that are held take three times as much."""

    def peak(count: int) -> int:
        ran = subprocess.run(
            [sys.executable, "-c", MEASURE, str(tmp_path), str(count)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        return int(ran.stdout.splitlines()[-1])

    few, many = peak(20_000), peak(60_000)
    assert few + 980_000 * (many - few) / 40_000 < 2**30


def test_the_garbage_collector_has_nothing_to_walk_through(tmp_path: Path) -> None:
    """It runs whenever 700 more objects stay: of a piece of rows fewer do. With one object more of each row it ran 33
    times, and reading took a fifth longer."""

    def collections(count: int) -> int:
        file, before = (
            written(tmp_path / f"{count}.jsonl", range(count)),
            gc.get_stats()[0]["collections"],
        )
        joined(
            settings("data=file", f"data.sources=[{{path: {file}}}]").data,
            work(tmp_path / str(count)),
        )
        return gc.get_stats()[0]["collections"] - before

    collections(10)  # which imports what reading takes
    few, many = collections(1_000), collections(9_000)
    assert many - few < 8
