"""Data: the door for files, and splits that share no prompt."""

import gzip
import json
import os
import random
from pathlib import Path

import pytest

from stages.config.blocks.data import Data
from stages.config.errors import UNSEEN, UserError
from stages.formats.readers.files import rows_of
from stages.store.records import Example, load
from stages.store.workspace import StageDir
from stages.tasks.words import NOUNS
from tests.formats.reading import lines
from tests.helpers import nodes, refused, settings
from tests.rows import work
from tests.stages.reading import joined, ran, wired


def test_a_column_that_nothing_reads_is_named_once(tmp_path: Path) -> None:
    unread = {"id": 1, "score_rejected": 0.5, "empty": None}
    rows = [json.dumps({"instruction": f"{i}", "output": "b", **unread}) for i in range(9)]
    out, _ = source(tmp_path, rows)
    [warning] = out.warnings
    assert "rows.jsonl: columns id, score_rejected " in warning


def test_bad_answers_are_left_out_and_counted(tmp_path: Path) -> None:
    labels = {f"{i}": i % 3 > 0 for i in range(30)}
    rows = [{"prompt": text, "completion": "b", "label": up} for text, up in labels.items()]
    out, metrics = source(tmp_path, list(map(json.dumps, rows)))
    examples = load(out / "examples.parquet", Example)
    assert {e.messages[0]["content"] for e in examples} == {text for text in labels if labels[text]}
    assert (metrics["left_out"], metrics["quarantined"]) == (10, 0)


def test_a_task_of_ones_own_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    file = lines(tmp_path, [{"a": "1", "b": "2"}])
    task = tmp_path / "own.yaml"
    fingerprints = set[str]()
    for ask in ("{{ a }}?", "What comes after {{ a }}?"):
        task.write_text(f'columns: {{a: a, b: b}}\nanswer: "{{{{ b }}}}"\nphrasings: ["{ask}"]\n')
        nodes_of_data = wired(source_settings(file, f"task: {task}"), tmp_path / "cache")
        task.unlink()  # the kept copy is used
        out = work(tmp_path / "out")
        ran(nodes_of_data, out)
        [example] = load(out / "examples.parquet", Example)
        assert example.messages[0]["content"] == ask.replace("{{ a }}", "1")
        fingerprints.add(nodes_of_data[-1].fingerprint)
    assert len(fingerprints) == 2


RED = "\x1b[31m\u202ered\x9b"


def test_what_a_file_says_cannot_steer_the_terminal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source(tmp_path, [json.dumps({"instruction": "a", "output": "b", RED: 1})])
    for row in ({RED: 1}, {"messages": [{"role": RED, "content": "a"}]}):
        with pytest.raises(UserError, match="red") as raised:
            source(tmp_path, [json.dumps(row)])
        assert not UNSEEN.search(str(raised.value))
    (tmp_path / f"{RED}.parquet").touch()
    with pytest.raises(UserError, match="red") as raised:
        list(rows_of(tmp_path / f"{RED}.parquet"))
    assert not UNSEEN.search(str(raised.value))
    assert "red" in caplog.messages[0]
    assert not UNSEEN.search("".join(caplog.messages))


UNUSABLE = {
    "nested too deeply": '{"instruction": "a", "output": "b", "x": '
    + "[" * 10**5
    + "]" * 10**5
    + "}",
    "NaN is not a number": '{"instruction": "a", "output": "b", "x": NaN}',
    "the key occurs twice": '{"instruction": "a", "output": "b", "output": "c"}',
    "Invalid control character": '{"instruction": "a\0", "output": "b"}',
}


@pytest.mark.parametrize("reason", UNUSABLE)
def test_a_row_that_json_cannot_hold_costs_that_row(reason: str, tmp_path: Path) -> None:
    out, metrics = source(tmp_path, [*alpaca(9), UNUSABLE[reason]], "data.max_bad=0.5")
    assert sum(metrics["examples"].values()) == 9
    [row] = quarantined(out)
    assert reason in row["reason"]
    assert (row["line"], row["row"]) == (10, UNUSABLE[reason])


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "bomb"])
def test_what_may_never_end_is_no_input(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    if kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "bomb":
        file.write_bytes(gzip.compress(bytes(2_000_001)))
    else:
        os.mkfifo(file)
    path = tmp_path if kind == "folder" else file
    keys = (f"data.sources=[{{path: {path}}}]", f"outputs={tmp_path / 'outputs'}")
    message = refused("stage=data", "data=file", *keys, "data.max_file=2")
    assert message.startswith("data.sources[0].path")
    assert ("data.max_file" in message) == (kind == "bomb")


def test_a_labelled_set_without_labels_is_told_with_file_and_line(tmp_path: Path) -> None:
    file = lines(tmp_path, [{"prompt": f"Say {i}."} for i in range(20)])
    entry = f"{{path: {file}, check: label, splits: {{preference: 1.0}}}}"
    keys = (f"data.sources=[{entry}]", f"outputs={tmp_path / 'outputs'}")
    message = refused("data=file", "stage=data", *keys)
    assert f"{file.name}: " in message
    assert "data.sources[0].check=null" in message


def source_settings(file: Path, more: str = "", *overrides: str) -> Data:
    """Settings of a data stage that reads this file alone. `more`: further keys of the source."""
    entry = f"{{path: {file}, {more}}}" if more else f"{{path: {file}}}"
    return settings("data=file", f"data.sources=[{entry}]", *overrides).data


def source(
    tmp_path: Path, lines: list[str], *overrides: str, more: str = ""
) -> tuple[StageDir, dict]:
    """Run the data stage on a file of these lines, and nothing else."""
    tmp_path.mkdir(exist_ok=True)
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    out = work(tmp_path / "out")
    return out, joined(source_settings(file, more, *overrides), out)


def quarantined(out: StageDir) -> list[dict]:
    return [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]


def alpaca(count: int) -> list[str]:
    return [json.dumps({"instruction": f"Say {i}.", "output": str(i)}) for i in range(count)]


def test_bad_rows_are_kept_with_their_reasons(tmp_path: Path) -> None:
    lines = [*alpaca(200), '{"instruction": "a", "out', json.dumps({"instruction": "a"})]
    out, metrics = source(tmp_path, lines, "data.max_bad=0.05")
    broken, missing = quarantined(out)
    assert metrics["quarantined"] == 2
    assert (broken["line"], broken["row"]) == (201, lines[200])
    assert (missing["line"], missing["field"]) == (202, "output")
    assert "rows.jsonl: line 201: " in out.warnings[0]


def test_too_many_bad_rows_stop_the_stage(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rows.jsonl: line 4: .* 1 of 4 "):
        source(tmp_path, [*alpaca(3), '{"instruction'])
    assert (tmp_path / "out" / "quarantine.jsonl").exists()


def test_duplicates_are_dropped_and_other_answers_kept(tmp_path: Path) -> None:
    rows = [("a", "1"), ("a", "1"), ("A ", "1"), ("a", "2"), ("a", "2"), ("b", "1")]
    lines = [json.dumps({"instruction": request, "output": answer}) for request, answer in rows]
    out, metrics = source(tmp_path, lines, more="splits: {sft: 1.0}")
    examples = load(out / "examples.parquet", Example)
    kept = [(e.messages[0]["content"], e.reference) for e in examples]
    assert kept == [("a", "1"), ("a", "2"), ("b", "1")]
    assert len({e.id for e in examples}) == 3
    assert metrics["duplicates_dropped"] == 3
    assert "3 of 6 rows" in out.warnings[0]


@pytest.mark.parametrize(
    ("more", "count"),
    [("splits: {sft: 0.5, preference: 0.3, validation: 0.2}", 300), ("rows: 40", 40)],
)
def test_a_prompt_falls_into_the_same_split_from_every_file(
    more: str, count: int, tmp_path: Path
) -> None:
    """So does a part that is drawn, whatever the order of the rows."""
    splits = list[dict[str, str]]()
    for name, order in (("one", 1), ("two", -1)):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("\n".join((alpaca(300) + alpaca(20))[::order]))
        out = work(tmp_path / name)
        joined(source_settings(file, more), out)
        splits.append({e.id: e.split for e in load(out / "examples.parquet", Example)})
    assert splits[0] == splits[1]
    assert len(splits[0]) == count
    assert len(set(splits[0].values())) > 1


def test_an_audit_takes_out_what_it_is_told_to_and_counts_it(tmp_path: Path) -> None:
    echo = {"instruction": "Fix it.\n\nthe dogs run home now", "output": "The dogs run home now."}
    wrong = {"instruction": "What is 2 + 2?", "output": "2 + 2 = 5"}
    lines = [*alpaca(40), json.dumps(echo), json.dumps(wrong)]
    _, metrics = source(tmp_path / "all", lines)
    assert (metrics["unwanted"], sum(metrics["examples"].values())) == (0, 42)
    actions = "data.audit.actions={echo: drop, wrong_sum: quarantine, refusal: keep}"
    out, metrics = source(tmp_path / "audited", lines, actions, "data.max_bad=0")
    assert (metrics["unwanted"], sum(metrics["examples"].values())) == (2, 40)
    [row] = quarantined(out)
    assert (row["field"], row["reason"], row["line"]) == ("wrong_sum", "2 + 2 = 5", 42)


def test_without_actions_an_audit_is_no_part_of_the_fingerprint(tmp_path: Path) -> None:
    plain = nodes(tmp_path)["data"].fingerprint
    assert nodes(tmp_path, "data.audit.against=null")["data"].fingerprint == plain
    assert nodes(tmp_path, "data.audit.actions={echo: drop}")["data"].fingerprint != plain


def test_near_copies_stay_on_one_side_and_no_row_moves_another(tmp_path: Path) -> None:
    """Twins of prompts are left out where they fall into another split; a row keeps its split whatever else there
    is."""
    rng = random.Random(0)
    requests = [" ".join(rng.choices([*NOUNS], k=24)) for _ in range(60)]
    twins = [request.rsplit(" ", 1)[0] + " otherwise" for request in requests]

    def splits(name: str, texts: list[str]) -> dict[str, str]:
        rows = [json.dumps({"instruction": text, "output": "Yes, so it is."}) for text in texts]
        drop = "data.audit.actions={crosses_splits: drop}"
        shares = "splits: {sft: 0.5, validation: 0.5}"
        out, _ = source(tmp_path / name, rows, drop, more=shares)
        return {e.messages[-1]["content"]: e.split for e in load(out / "examples.parquet", Example)}

    together = splits("both", requests + twins)
    stayed = [pair for pair in zip(requests, twins, strict=True) if pair[1] in together]
    assert 10 < len(stayed) < 50
    assert all(together[request] == together[twin] for request, twin in stayed)
    assert splits("alone", requests).items() <= together.items()


def test_rows_that_continue_one_conversation_are_in_one_split(tmp_path: Path) -> None:
    """As of data that has a row for each answer of a talk."""
    rows = list[str]()
    for talk in range(40):
        turns = list[dict[str, str]]()
        for turn in range(4):
            turns.append({"role": "user", "content": f"ask {turn} of talk {talk}"})
            turns.append({"role": "assistant", "content": f"tell {turn} of talk {talk}"})
            rows.append(json.dumps({"messages": turns}))
    out, _ = source(tmp_path, rows, more="splits: {sft: 0.6, validation: 0.4}")
    examples = load(out / "examples.parquet", Example)
    assert len(examples) == 160
    assert len({(e.messages[0]["content"], e.split) for e in examples}) == 40
    assert {e.split for e in examples} == {"sft", "validation"}


def test_rows_of_one_group_are_in_one_split(tmp_path: Path) -> None:
    rows = [{"prompt": f"ask {i}", "answer": f"tell {i}", "page": i % 60} for i in range(240)]
    more = "splits: {sft: 0.6, test: 0.4}, columns: {group: page}"
    out = work(tmp_path / "data")
    joined(source_settings(lines(tmp_path, rows), more), out)
    examples = load(out / "examples.parquet", Example)
    assert len({(e.together, e.split) for e in examples}) == 60
    assert {e.split for e in examples} == {"sft", "test"}
