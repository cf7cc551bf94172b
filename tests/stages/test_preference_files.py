"""Files of preferences from the file to the pairs: which rows are used, what became of the others, and whether every
pair is the right way round. In the small replicas an answer begins with a digit, and the higher one is the better."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from stages import label, pairs
from stages.formats.readers import files
from stages.pairing.admission import COPIES
from stages.store.records import Pair, load
from tests.helpers import DATA, settings
from tests.rows import work

TIE = "without a better answer"
EQUAL = "of equal scores"


class Read(NamedTuple):
    """The result of using a preference file: metrics of label and pairs, and the pairs."""

    label: dict[str, Any]
    pairs: dict[str, Any]
    built: list[Pair]


def used(file: Path, folder: Path, *settings_: str) -> Read:
    """A file through `label` and `pairs`, by the settings of `label=dataset` under the default recipe."""
    cfg = settings("label=dataset", f"label.path={file}", *settings_)
    outs = [work(folder / stage) for stage in ("label", "pairs")]
    labelled = label.run(cfg.label, {}, outs[0])
    paired = pairs.run(cfg.pairs, {"judged": outs[0].path}, outs[1])
    return Read(labelled, paired, load(outs[1] / "pairs.parquet", Pair))


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def turn(text: str, role: str = "assistant") -> dict[str, Any]:
    return {"role": role, "content": text}


def hh(i: int, chosen: str, rejected: str) -> dict[str, Any]:
    start = f"\n\nHuman: q{i}\n\nAssistant: x\n\nHuman: and?\n\nAssistant:"
    return {"chosen": f"{start} {chosen}", "rejected": f"{start} {rejected}"}


def numbered(a: str, b: str, of: str, first: Any, second: Any, tie: Any) -> list[dict[str, Any]]:
    """Four rows in which the first answer is the better, three with the second, two ties, and a copy of the first row.
    `first`, `second` and `tie` are what the column `of` says then."""
    rows = list[dict[str, Any]]()
    for i in range(4):
        rows.append({"prompt": f"q{i}", a: f"2 yes {i}", b: f"1 no {i}", of: first})
    for i in range(4, 7):
        rows.append({"prompt": f"q{i}", a: f"1 no {i}", b: f"2 yes {i}", of: second})
    for i in (7, 8):
        rows.append({"prompt": f"q{i}", a: f"2 or {i}", b: f"2 so {i}", of: tie})
    return [*rows, rows[0]]


SCORED = [
    {"model": "m", "response": text, "overall_score": int(text[0])}
    for text in ("3 a", "1 b", "2 c", "2 d")
]
ALL_NINE = (7, {TIE: 2, COPIES: 1})
# Rows of a file, settings, the pairs that come of it, the comparisons that are left out, the rows that are unusable.
FILES: dict[str, tuple[list[dict[str, Any]], tuple[str, ...], int, dict[str, int], dict[str, int]]] = {
    "HH": (
        [*(hh(i, "2 yes", "1 no") for i in range(9)), hh(1, "2 yes", "2 yes"), hh(2, "", "1 no")],
        ("label.max_failed=0.2",),
        9,
        {},
        {"rejected: is the same as chosen": 1, "chosen: is empty": 1},
    ),
    "several rejected": ([{"prompt": "q", "chosen": "2", "rejected": ["1 b", "1 c"]}], (), 2, {}, {}),
    "UltraFeedback": ([{"instruction": f"q{i}", "completions": SCORED} for i in range(3)], (), 15, {EQUAL: 3}, {}),
    "KTO": (
        [
            {"prompt": f"q{i}", "completion": text, "label": text[0] == "2"}
            for i in range(3)
            for text in ("2 yes", "1 no")
        ],
        (),
        3,
        {},
        {},
    ),
    "0, 1, 2 without a name": (
        numbered("response 1", "response 2", "label", 0, 1, 2),
        ("label.labels={0: left, 1: right, 2: tie}",),
        *ALL_NINE,
        {},
    ),
    "arena": (numbered("answer_a", "answer_b", "winner", "model_a", "model_b", "tie (bothbad)"), (), *ALL_NINE, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_row_is_a_pair_the_right_way_round_or_counted_by_its_reason(
    name: str, tmp_path: Path
) -> None:
    rows, line, count, left_out, unusable = FILES[name]
    usage = used(written(tmp_path, rows), tmp_path, *line)
    assert (usage.label["rows"], usage.label["unusable"]) == (len(rows), unusable)
    assert (usage.pairs["pairs"], usage.pairs["left_out"]) == (count, left_out)
    assert usage.pairs["comparisons"] == count + sum(left_out.values())
    assert len(usage.built) == count
    for pair in usage.built:
        assert pair.chosen[0]["content"] > pair.rejected[0]["content"]


ASK = turn("q", "user")
MORE = turn("and?", "user")
LONG = [turn("2 yes"), MORE, turn("2 so")]
SHORT = [turn("1 no"), turn("how?", "user"), turn("1 or")]


REFUSED = {
    "rejected: answers another prompt than chosen": [MORE, *SHORT],
    "rejected: goes on where chosen ends, or the reverse": [ASK, *LONG, MORE, turn("1")],
    "rejected: is the same as chosen": [ASK, *LONG],
    "rejected: does not end with an assistant turn": [ASK, turn("1"), MORE],
}


def test_rows_that_share_no_request_are_quarantined_with_line_and_reason(tmp_path: Path) -> None:
    rows = [{"chosen": [ASK, *LONG], "rejected": turns} for turns in REFUSED.values()]
    rows.append({"chosen": [ASK, *LONG], "rejected": [ASK, *SHORT]})
    usage = used(written(tmp_path, rows), tmp_path, "label.max_failed=0.9")
    assert usage.label["unusable"] == dict.fromkeys(REFUSED, 1)
    assert len(usage.built) == 1
    quarantine = (tmp_path / "label" / "quarantine.jsonl").read_text()
    assert [json.loads(line)["line"] for line in quarantine.splitlines()] == [1, 2, 3, 4]


# Real files whose columns are chosen and rejected, and: rows, unusable ones, pairs, copies.
REAL = {
    "preferences/hh_helpful_base_test.jsonl.gz": (2354, 21, 2333, 0),
    "preferences/rasbt_instruction_preference.json.gz": (1100, 6, 1094, 0),
    "formats/lf_dpo_en_demo.json.gz": (300, 0, 295, 5),
}


@pytest.mark.extended
@pytest.mark.skipif(not DATA.exists(), reason="the shared data is not here")
@pytest.mark.parametrize("name", REAL)
def test_real_files_are_used_whole_and_the_right_way_round(name: str, tmp_path: Path) -> None:
    usage = used(DATA / name, tmp_path)
    rows = [row.value for row in files.rows_of(DATA / name)]
    chosen = {spoken(row["chosen"]) for row in rows}
    rejected = {spoken(row["rejected"]) for row in rows}
    for pair in usage.built:
        assert pair.chosen[0]["content"].strip() in chosen
        assert pair.rejected[0]["content"].strip() in rejected
    unusable = sum(usage.label["unusable"].values())
    copies = usage.pairs["left_out"].get(COPIES, 0)
    assert (usage.label["rows"], unusable, usage.pairs["pairs"], copies) == REAL[name]
    assert REAL[name][0] == unusable + usage.pairs["pairs"] + copies


def spoken(value: Any) -> str:
    """The text of a column of a transcript, a turn or a text."""
    text = value["value"] if isinstance(value, dict) else value
    return str(text).split("\n\nAssistant:")[-1].strip()
