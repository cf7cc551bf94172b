"""Data: verifiable instructions, the door for files, and splits that share no prompt."""

import csv
import gzip
import json
import math
import os
import random
import re
from collections import Counter, defaultdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.config.errors import UNSEEN, UserError
from stages.formats.readers.files import rows_of
from stages.store.records import Example, load
from stages.store.workspace import StageDir
from stages.tasks.checks import share_passed
from stages.tasks.generator import FAMILIES, generate, known_families
from stages.tasks.words import ALSO, NOUNS
from tests.formats.reading import lines
from tests.helpers import TINY, nodes, refused, settings
from tests.rows import work
from tests.stages.reading import joined, ran, wired

EXAMPLES = generate(
    7,
    {"test": 600, "unseen_phrasings": 200, "unseen_tasks": 200, "validation": 100, "sft": 900},
    [],
)


def test_every_reference_passes_its_own_checks() -> None:
    assert all(share_passed(e.checks, str(e.reference)) == 1 for e in EXAMPLES)


def corrupted(text: str, rng: random.Random) -> str:
    """One edit: a character that is no white space (which JSON ignores) dropped, doubled or replaced."""
    place = rng.choice([i for i, c in enumerate(text) if not c.isspace()])
    edit = rng.choice(["", text[place] * 2, rng.choice("abcxyzQ7,.")])
    return text[:place] + edit + text[place + 1 :]


@pytest.mark.parametrize("name", sorted(known_families()))
def test_checks_reject_what_is_no_answer(name: str) -> None:
    """At least 98% of empty, echoed, another prompt's and one-edit-corrupted answers (DESIGN's contract on labels)."""
    rng = random.Random(name)
    family = FAMILIES[name]
    examples = generate(3, {"unseen_tasks" if family.unseen else "test": 150}, [name])
    wrong = Counter[str]()
    for example in examples:
        other = rng.choice([e for e in examples if e.reference != example.reference])
        damaged = corrupted(str(example.reference), rng)
        answers = {
            "empty": "",
            "echo": example.messages[-1]["content"],
            "another": str(other.reference),
        }
        if damaged.strip() != example.reference:
            answers["one edit"] = damaged
        for kind, answer in answers.items():
            wrong[kind] += share_passed(example.checks, answer) == 1
    assert all(count <= 0.02 * len(examples) for count in wrong.values()), wrong


def of_family(name: str, seeds: int = 4) -> list[Example]:
    group = "unseen_tasks" if known_families()[name].unseen else "test"
    return [e for seed in range(seeds) for e in generate(seed, {group: 150}, [name])]


def test_a_question_asks_for_what_its_text_says() -> None:
    for e in of_family("where_from"):
        request = e.messages[-1]["content"]
        assert ("comes from" in request) == bool(re.search(r"Where does \w+ come from\?", request))


def test_no_answer_depends_on_what_else_a_word_means() -> None:
    """A kiwi is a bird too, an orange a fruit and a colour, a teal a duck."""
    assert not any(
        "kiwi" in e.messages[-1]["content"].lower() for e in of_family("extract_animals")
    )
    assert not any("kiwi" in e.messages[-1]["content"].lower() for e in of_family("classify_noun"))
    for e in of_family("odd_one_out"):
        [options] = [check.params["options"] for check in e.checks if check.kind == "one_of"]
        kinds = {
            word: {k for k, words in NOUNS.items() if word in words} | {ALSO.get(word, "")}
            for word in options
        }
        alike = [word for word in options if word != e.reference]
        shared = set.intersection(*(kinds[word] for word in alike)) - {""}
        assert shared
        assert not shared & kinds[str(e.reference)]


@pytest.mark.parametrize("name", sorted(known_families()))
def test_a_request_names_what_it_asks_for(name: str) -> None:
    """Not a slot left open, nor a bar that was taken for a blank line."""
    family = known_families()[name]
    assert len(family.further) == (0 if family.unseen else 5)
    for phrasing in family.phrasings + family.further:
        assert not phrasing.startswith("|")
        assert not phrasing.endswith("|")
        assert all("{" in part or re.search(r"\w{2}", part) for part in phrasing.split("\n\n")), (
            phrasing
        )
        assert not any(
            word in phrasing.split("\n\n")[0].split()[-1:] for word in ("with", "like", "by")
        ), phrasing


def test_splits_share_no_prompt_and_tests_are_held_out() -> None:
    assert len({e.id for e in EXAMPLES}) == len(EXAMPLES)
    trained = {e.task for e in EXAMPLES if e.split == "sft"}
    assert not trained & {e.task for e in EXAMPLES if e.group == "unseen_tasks"}


def words_asked(phrasing: str) -> set[str]:
    return set(re.sub(r"{\w+}", " ", phrasing).lower().split())


@pytest.mark.parametrize(
    "name", sorted(name for name, family in known_families().items() if not family.unseen)
)
def test_each_group_has_phrasings_of_its_own(name: str) -> None:
    """Validation and test have one each that nothing trains on. None that is trained is nearly the test's."""
    family = FAMILIES[name]
    names = ("sft", "preference", "validation", "unseen_phrasings")
    groups = {group: {*family.phrasings_of(group)} for group in names}
    assert groups["sft"] < groups["preference"]
    assert len(groups["validation"] - groups["preference"]) == 1
    assert groups["unseen_phrasings"].isdisjoint(groups["preference"] | groups["validation"])
    for held_out in groups["unseen_phrasings"]:
        for phrasing in groups["preference"]:
            words, trained = words_asked(held_out), words_asked(phrasing)
            assert len(words & trained) < 0.5 * len(words | trained), phrasing


def test_generation_is_a_function_of_the_seed() -> None:
    repeated = generate(7, {"sft": 50}, [])
    assert repeated == generate(7, {"sft": 50}, [])
    assert {e.id for e in repeated}.isdisjoint(e.id for e in generate(8, {"sft": 50}, []))


def test_an_unknown_family_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'sentiment'"):
        generate(0, {"sft": 1}, ["sentimnt"])


def test_a_column_that_nothing_reads_is_named_once(tmp_path: Path) -> None:
    rows = [
        {"instruction": f"{i}", "output": "b", "id": i, "score_rejected": 0.5, "empty": None}
        for i in range(9)
    ]
    out, _ = source(tmp_path, list(map(json.dumps, rows)))
    assert out.warnings == [f"{tmp_path / 'rows.jsonl'}: columns id, score_rejected are not used"]


def test_bad_answers_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}", "completion": "b", "label": i % 3 > 0} for i in range(30)]
    out, metrics = source(tmp_path, list(map(json.dumps, rows)))
    examples = load(out / "examples.parquet", Example)
    assert sorted(int(e.messages[0]["content"]) for e in examples) == [
        i for i in range(30) if i % 3
    ]
    assert (metrics["left_out"], metrics["quarantined"]) == (10, 0)
    assert "10 rows left out" in metrics["summary"]
    assert "{prompt: prompt, label: label, completion:" in metrics["read"][0]


def test_a_check_says_how_many_references_it_can_compare(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answers = ["72", "#### 3", "3/4", "12 or 13", "1.5"] * 2
    rows = [{"prompt": f"{i}", "completion": answer} for i, answer in enumerate(answers)]
    rows[0] |= {"completion": 72}
    with caplog.at_level("INFO"):
        checked = ("data.sources.0.check=number", "data.max_bad=0.5")
        _, metrics = source(tmp_path, list(map(json.dumps, rows)), *checked)
    [line] = [message for message in caplog.messages if "check number" in message]
    assert "6 of 10 references" in line
    assert "6 of 10 references" in metrics["read"][-1]
    assert metrics["quarantined"] == 4


def test_a_task_of_ones_own_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"a": "1", "b": "2"}))
    task, pinned = tmp_path / "own.yaml", []
    for ask in ("{{ a }}?", "What comes after {{ a }}?"):
        task.write_text(f'columns: {{a: a, b: b}}\nanswer: "{{{{ b }}}}"\nphrasings: ["{ask}"]\n')
        cfg = settings(
            "data=file", f"data.sources=[{{path: {tmp_path / 'rows.jsonl'}, task: {task}}}]"
        ).data
        read = wired(cfg, tmp_path / "cache")
        task.unlink()  # what was kept is what is run
        out = work(tmp_path / "out")
        ran(read, out)
        [example] = load(out / "examples.parquet", Example)
        assert example.messages[0]["content"] == ask.replace("{{ a }}", "1")
        pinned.append(read[-1].fingerprint)
    assert pinned[0] != pinned[1]


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


DEEP = "[" * 100_000 + "]" * 100_000
UNUSABLE = {
    "nested too deeply": f'{{"instruction": "a", "output": "b", "x": {DEEP}}}',
    "a number with too many digits": '{"instruction": "a", "output": "b", "x": ' + "9" * 5000 + "}",
    "NaN is not a number": '{"instruction": "a", "output": "b", "x": NaN}',
    "the key occurs twice": '{"instruction": "a", "output": "b", "output": "c"}',
    "Invalid control character": '{"instruction": "a\0", "output": "b"}',
}


def strict(line: str) -> dict:
    """A line of a quarantine as a strict reader takes it."""

    def refused(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(line, parse_constant=refused)


@pytest.mark.parametrize("reason", UNUSABLE)
@pytest.mark.parametrize("array", [False, True])
def test_a_row_that_json_cannot_hold_costs_that_row(
    reason: str, array: bool, tmp_path: Path
) -> None:
    lines = [*alpaca(9), UNUSABLE[reason], '{"instruction": "a, [b", "output": "c\\"]"}']
    if array and reason == "Invalid control character":
        pytest.skip("where a broken array has its rows is not known")
    content = [f"[{', '.join(lines)}]"] if array else lines
    out, metrics = source(tmp_path, content, "data.max_bad=0.5")
    assert sum(metrics["examples"].values()) == 10
    [quarantined] = [strict(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert reason in quarantined["reason"]
    assert (quarantined["line"], quarantined["row"]) == (10, UNUSABLE[reason])


def table(tmp_path: Path, name: str, content: bytes) -> tuple[StageDir, dict]:
    file = tmp_path / name
    file.write_bytes(content)
    out = work(tmp_path / "out")
    cfg = settings(
        "data=file", f"data.sources=[{{path: {file}, splits: {{sft: 1.0}}}}]", "data.max_bad=0.9"
    ).data
    return out, joined(cfg, out)


def test_rows_of_a_csv_file_that_do_not_fit_are_kept_apart(tmp_path: Path) -> None:
    long = "x" * (csv.field_size_limit() if csv.field_size_limit() < 1 << 20 else 200_000)
    lines = ["instruction,output", f"a,{long}", "b, c, d", "e", '"f" g,h', "ä,i", '"j\nk",l']
    content = "\n".join(lines).encode().replace("ä".encode(), b"\xe4")
    out, _ = table(tmp_path, "rows.csv", content)
    examples = load(out / "examples.parquet", Example)
    assert [e.reference for e in examples] == [long, "l"]
    quarantined = [strict(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [(entry["line"], entry["reason"]) for entry in quarantined] == [
        (3, "3 fields, but the header has 2"),
        (4, "1 fields, but the header has 2"),
        (5, "broken CSV: ',' expected after '\"'"),
        (
            6,
            f"not UTF-8, but maybe Windows-1252: iconv -f CP1252 -t UTF-8 {tmp_path / 'rows.csv'} > rows.utf8.csv",
        ),
    ]
    with pytest.raises(UserError, match=r"twice.csv: .*'output' .* twice"):
        table(tmp_path, "twice.csv", b"instruction,output,output\na,b,c\n")


def test_a_parquet_row_that_is_no_text_costs_that_row(tmp_path: Path) -> None:
    offsets = pa.py_buffer(b"".join(i.to_bytes(4, "little") for i in (0, 1, 2)))
    texts = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"a\xff"))
    written = pa.table({"instruction": texts, "output": ["b", "c"], "score": [math.nan, math.nan]})
    pq.write_table(written, tmp_path / "made.parquet")
    out, metrics = table(tmp_path, "rows.parquet", (tmp_path / "made.parquet").read_bytes())
    assert (metrics["quarantined"], metrics["examples"]) == (1, {"sft": 1})
    assert "cannot be read" in strict((out / "quarantine.jsonl").read_text())["reason"]


@pytest.mark.parametrize("kind", ["pipe", "device", "link", "folder", "bomb"])
def test_what_may_never_end_is_no_input(kind: str, tmp_path: Path) -> None:
    file, key, line = tmp_path / "rows.jsonl", "data.sources[0].path", ()
    if kind in ("pipe", "folder"):
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    elif kind == "link":
        file.symlink_to(tmp_path / "nowhere")
    else:
        key, line = "data.max_file", ("data.max_file=2",)
        file.write_bytes(gzip.compress(bytes(2_000_001)))
    path = tmp_path if kind == "folder" else file
    source = f"data.sources=[{{path: {path}}}]"
    outputs = f"outputs={tmp_path / 'outputs'}"
    message = refused("stage=data", "data=file", source, outputs, *line)
    assert message.startswith("data.sources[0].path") and key in message


@pytest.mark.parametrize("key", ["data.sources", "outside"])
def test_a_labelled_set_without_labels_is_told_with_file_and_line(key: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": f"Say {i}."}) for i in range(20)))
    shares = ", splits: {preference: 1.0}" if key == "data.sources" else ""
    entries = [f"{key}=[{{path: {file}, check: label{shares}}}]", f"outputs={tmp_path / 'outputs'}"]
    recipe = (
        ("data=file", "stage=data")
        if key == "data.sources"
        else (*TINY, "stage=report", "seeds=[1]")
    )
    message = refused(*recipe, *entries)
    assert "prompts.jsonl: {prompt: prompt} " in message
    assert f"{key}[0].columns={{completion: COLUMN}}" in message
    assert not (tmp_path / "outputs" / "sft").exists()


def source(tmp_path: Path, lines: list[str], *overrides: str) -> tuple[StageDir, dict]:
    """Run the data stage on a file of these lines, and nothing else."""
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(lines), encoding="utf-8")
    cfg = settings("data=file", f"data.sources=[{{path: {file}}}]", *overrides).data
    out = work(tmp_path / "out")
    return out, joined(cfg, out)


def alpaca(count: int) -> list[str]:
    return [json.dumps({"instruction": f"Say {i}.", "output": str(i)}) for i in range(count)]


def test_bad_rows_are_kept_with_their_reasons(tmp_path: Path) -> None:
    lines = [*alpaca(200), '{"instruction": "a", "out', json.dumps({"instruction": "a"})]
    out, metrics = source(tmp_path, lines, "data.max_bad=0.05")
    quarantined = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert metrics["quarantined"] == len(quarantined) == 2
    assert [entry["line"] for entry in quarantined] == [201, 202]
    assert quarantined[0]["row"] == lines[200]
    assert (quarantined[1]["field"], quarantined[1]["reason"]) == (
        "output",
        "the column is missing",
    )
    assert "rows.jsonl: line 201: " in out.warnings[0]


def test_too_many_bad_rows_stop_the_stage(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rows.jsonl: line 4: .* 1 of 4 "):
        source(tmp_path, [*alpaca(3), '{"instruction'])
    assert (tmp_path / "out" / "quarantine.jsonl").exists()


@pytest.mark.parametrize("lines", [[], ["", " "]])
def test_an_empty_source_is_an_error(lines: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no rows"):
        source(tmp_path, lines)


def test_duplicates_are_dropped_and_other_answers_kept(tmp_path: Path) -> None:
    rows = [("a", "1"), ("a", "1"), ("A ", "1"), ("a", "2"), ("a", "2"), ("b", "1")]
    lines = [json.dumps({"instruction": i, "output": o}) for i, o in rows]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(lines))
    cfg = settings("data=file", f"data.sources=[{{path: {file}, splits: {{sft: 1.0}}}}]").data
    out = work(tmp_path / "out")
    metrics = joined(cfg, out)
    examples = load(out / "examples.parquet", Example)
    assert [(e.messages[0]["content"], e.reference) for e in examples] == [
        ("a", "1"),
        ("a", "2"),
        ("b", "1"),
    ]
    assert len({e.id for e in examples}) == 3
    assert metrics["duplicates_dropped"] == 3
    assert "3 copies skipped" in metrics["summary"]
    assert "data.sources[0]" in out.warnings[0]
    assert "3 of 6 rows" in out.warnings[0]


def test_a_prompt_falls_into_the_same_split_from_every_file(tmp_path: Path) -> None:
    splits = []
    for name, order in (("one", 1), ("two", -1)):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("\n".join(alpaca(300)[::order]))
        shares = "{sft: 0.5, preference: 0.3, validation: 0.2}"
        out = work(tmp_path / name)
        joined(
            settings("data=file", f"data.sources=[{{path: {file}, splits: {shares}}}]").data, out
        )
        splits.append({e.id: e.split for e in load(out / "examples.parquet", Example)})
    assert splits[0] == splits[1]
    counts = Counter(splits[0].values())
    assert set(counts) == {"sft", "preference", "validation"}
    assert 120 < counts["sft"] < 180


def test_the_table_loads_as_a_dataset(tmp_path: Path) -> None:
    from datasets import load_dataset

    out, _ = source(tmp_path, alpaca(40))
    dataset = load_dataset(
        "parquet", data_files=str(out / "examples.parquet"), split="train", cache_dir=str(tmp_path)
    )
    assert len(dataset) == 40
    assert {"id", "messages", "reference", "split", "checks"} <= set(dataset.column_names)


def test_a_drawn_part_of_a_source_is_the_same_whatever_the_order(tmp_path: Path) -> None:
    drawn = []
    for name, order in (("one", 1), ("two", -1)):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("\n".join((alpaca(300) + alpaca(20))[::order]))
        out = work(tmp_path / name)
        metrics = joined(
            settings("data=file", f"data.sources=[{{path: {file}, rows: 40}}]").data, out
        )
        assert metrics["duplicates_dropped"] == 20
        drawn.append({e.id for e in load(out / "examples.parquet", Example)})
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 40


def counted_out(
    tmp_path: Path, lines: list[str], *overrides: str
) -> tuple[list[Example], dict, list[dict]]:
    """The examples of a source, the stage's metrics, and what is in quarantine."""
    tmp_path.mkdir()
    out, metrics = source(tmp_path, lines, *overrides)
    quarantine = out / "quarantine.jsonl"
    quarantined = (
        [json.loads(line) for line in quarantine.read_text().splitlines()]
        if quarantine.exists()
        else []
    )
    return load(out / "examples.parquet", Example), metrics, quarantined


def test_an_audit_takes_out_what_it_is_told_to_and_counts_it(tmp_path: Path) -> None:
    echo = json.dumps(
        {"instruction": "Fix it.\n\nthe dogs run home now", "output": "The dogs run home now."}
    )
    wrong = json.dumps({"instruction": "What is 2 + 2?", "output": "2 + 2 = 5"})
    lines = [*alpaca(40), echo, wrong]
    everything, metrics, _ = counted_out(tmp_path / "all", lines)
    assert metrics["unwanted"] == 0
    actions = "data.audit.actions={echo: drop, wrong_sum: quarantine, refusal: keep}"
    examples, metrics, quarantined = counted_out(
        tmp_path / "audited", lines, actions, "data.max_bad=0"
    )
    assert metrics["unwanted"] == 2
    assert len(examples) == len(everything) - 2
    [row] = quarantined
    assert (row["field"], row["reason"], row["line"]) == ("wrong_sum", "2 + 2 = 5", len(lines))
    assert "data.audit" in metrics["summary"]


def test_without_actions_an_audit_is_no_part_of_the_fingerprint(tmp_path: Path) -> None:
    plain, unaudited = (
        nodes(tmp_path, *more)["data"] for more in ((), ("data.audit.against=null",))
    )
    assert "audit" not in plain.settings
    assert plain.fingerprint == unaudited.fingerprint
    assert (
        nodes(tmp_path, "data.audit.actions={echo: drop}")["data"].fingerprint != plain.fingerprint
    )


def test_near_copies_stay_on_one_side_and_no_row_moves_another(tmp_path: Path) -> None:
    """Twins of prompts are left out where they fall into another split; a row keeps its split whatever else there
    is."""
    rng = random.Random(0)
    requests = [" ".join(rng.choices([*NOUNS], k=24)) for _ in range(60)]
    twins = [request.rsplit(" ", 1)[0] + " otherwise" for request in requests]
    both = [
        json.dumps({"instruction": text, "output": "Yes, so it is."}) for text in requests + twins
    ]
    share = "data.sources=[{{path: {}, splits: {{sft: 0.5, validation: 0.5}}}}]"
    drop = "data.audit.actions={crosses_splits: drop}"

    def sides(name: str, lines: list[str]) -> dict[str, str]:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(lines))
        out = work(tmp_path / name)
        joined(settings("data=file", share.format(path), drop).data, out)
        return {e.messages[-1]["content"]: e.split for e in load(out / "examples.parquet", Example)}

    rows_by_side = sides("both", both)
    pairs = [
        (rows_by_side[a], rows_by_side[b])
        for a, b in zip(requests, twins, strict=True)
        if b in rows_by_side
    ]
    assert 10 < len(pairs) < 50
    assert all(a == b for a, b in pairs)
    alone = sides("alone", both[:60])
    assert all(rows_by_side[request] == split for request, split in alone.items())


def test_rows_that_continue_one_conversation_are_in_one_split(tmp_path: Path) -> None:
    """As of data that has a row for each answer of a talk."""
    talks = [
        [
            {"role": role, "content": f"{role} {turn} of talk {talk}"}
            for turn in range(4)
            for role in ("user", "assistant")
        ]
        for talk in range(40)
    ]
    file, splits = tmp_path / "talks.jsonl", "{sft: 0.6, validation: 0.4}"
    rows = [{"messages": talk[: 2 * n]} for talk in talks for n in (1, 2, 3, 4)]
    file.write_text("\n".join(map(json.dumps, rows)))
    out = work(tmp_path / "data")
    joined(settings("data=file", f"data.sources=[{{path: {file}, splits: {splits}}}]").data, out)
    found = defaultdict(set)
    for example in load(out / "examples.parquet", Example):
        found[example.messages[0]["content"]].add(example.split)
    assert len(found) == len(talks)
    assert all(len(each) == 1 for each in found.values())
    assert {split for each in found.values() for split in each} == {"sft", "validation"}


def test_rows_of_one_group_are_in_one_split(tmp_path: Path) -> None:
    rows = [{"prompt": f"ask {i}", "answer": f"tell {i}", "page": i % 60} for i in range(240)]
    source = f"{{path: {lines(tmp_path, rows)}, splits: {{sft: 0.6, test: 0.4}}, columns: {{group: page}}}}"
    out = work(tmp_path / "data")
    joined(settings("data=file", f"data.sources=[{source}]").data, out)
    splits_of_page = defaultdict(set)
    for example in load(out / "examples.parquet", Example):
        splits_of_page[example.together].add(example.split)
    assert len(splits_of_page) == 60
    assert all(len(splits) == 1 for splits in splits_of_page.values())
    assert set.union(*splits_of_page.values()) == {"sft", "test"}
