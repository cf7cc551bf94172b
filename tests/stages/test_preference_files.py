"""Files of preferences from the file to the pairs: which rows are used, what became of the others, and whether every
pair is the right way round. In the small replicas an answer begins with a digit, and the higher one is the better."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from stages import label, pairs
from stages.config.errors import UserError
from stages.formats.readers import files
from stages.pairing.admission import COPIES
from stages.store.records import Pair, load
from tests.helpers import DATA, settings
from tests.rows import work

TIE = "without a better answer"
EQUAL = "of equal scores"


class Read(NamedTuple):
    """The result of using a preference file: metrics of label and pairs, messages, and the pairs."""

    label: dict[str, Any]
    pairs: dict[str, Any]
    messages: list[str]
    built: list[Pair]


def used(file: Path, folder: Path, *settings_: str) -> Read:
    """A file through `label` and `pairs`, by the settings of `label=dataset` under the default recipe."""
    cfg = settings("label=dataset", f"label.path={file}", *settings_)
    outs = [work(folder / stage) for stage in ("label", "pairs")]
    labelled = label.run(cfg.label, {}, outs[0])
    paired = pairs.run(cfg.pairs, {"judged": outs[0].path}, outs[1])
    messages = [*labelled["read"], *outs[0].warnings, *outs[1].warnings]
    return Read(labelled, paired, messages, load(outs[1] / "pairs.parquet", Pair))


def turn(text: str, role: str = "assistant") -> dict[str, Any]:
    return {"role": role, "content": text}


def hh(i: int, chosen: str, rejected: str) -> dict[str, Any]:
    start = f"\n\nHuman: q{i}\n\nAssistant: x\n\nHuman: and?\n\nAssistant:"
    return {"chosen": f"{start} {chosen}", "rejected": f"{start} {rejected}"}


def two(
    a: str, b: str, of: str, i: int, answers: tuple[str, str], value: Any, **more: Any
) -> dict[str, Any]:
    """Two answers in columns a and b, and what the column `of` holds of them."""
    return {"prompt": f"q{i}", a: answers[0], b: answers[1], of: value, **more}


def numbered(
    a: str, b: str, of: str, first: Any, second: Any, tie: Any = None, **more: Any
) -> list[dict[str, Any]]:
    """Four rows in which the first answer is the better, three with the second, two ties, and a copy of the first row.
    `first`, `second` and `tie` are what the file says then."""
    rows = [two(a, b, of, i, (f"2 yes {i}", f"1 no {i}"), first, **more) for i in range(4)]
    rows += [two(a, b, of, i, (f"1 no {i}", f"2 yes {i}"), second, **more) for i in range(4, 7)]
    rows += [
        two(a, b, of, i, (f"2 or {i}", f"2 so {i}"), tie, **more) for i in (7, 8) if tie is not None
    ]
    return [*rows, rows[0]]


def letters(text: str) -> dict[str, str]:
    return {"instruction": text, "input": ""}


PANDA = {f"annotator{i}": 1 for i in (1, 2, 3)}
MAKERS = {"generator_1": "m", "generator_2": "n"}
SCORED = [
    {"model": "m", "response": text, "overall_score": int(text[0])}
    for text in ("3 a", "1 b", "2 c", "2 d")
]
SAME = {"rejected: is the same as chosen": 1}
ALL_NINE = (7, {TIE: 2, COPIES: 1})
ONE_A_ROW = ("KTO", "rated, one a row as text")
# Rows of a file, settings, the pairs that come of it, the comparisons that are left out, the rows that are unusable.
FILES: dict[str, tuple[list[dict[str, Any]], tuple[str, ...], int, dict[str, int], dict[str, int]]] = {
    "HH": (
        [*(hh(i, "2 yes", "1 no") for i in range(9)), hh(1, "2 yes", "2 yes"), hh(2, "", "1 no")],
        ("label.max_failed=0.2",),
        9,
        {},
        {"rejected: is the same as chosen": 1, "chosen: is empty": 1},
    ),
    "rasbt": (
        [{**letters(f"q{i}"), "output": "2 gold", "rejected": "1 no", "chosen": "2 yes"} for i in range(9)]
        + [{**letters("q9"), "output": "2 gold", "rejected": "2 yes", "chosen": "2 yes"}],
        (),
        9,
        {},
        SAME,
    ),
    "LLaMA-Factory, DPO": (
        [
            {
                "conversations": [{"from": "human", "value": f"q{i}"}],
                "chosen": {"from": "gpt", "value": f"2 yes {i}"},
                "rejected": {"from": "gpt", "value": f"1 no {i}"},
            }
            for i in (0, 1, 2, 2)
        ],
        (),
        3,
        {COPIES: 1},
        {},
    ),
    "TRL": (
        [{"chosen": [turn("q", "user"), turn("2")], "rejected": [turn("q", "user"), turn(t)]} for t in ("1 b", "1 c")],
        (),
        2,
        {},
        {},
    ),
    "UltraFeedback": ([{"instruction": f"q{i}", "completions": SCORED} for i in range(3)], (), 15, {EQUAL: 3}, {}),
    "ranks": ([{"prompt": "q", "completions": ["1 c", "3 a", "2 b"], "ranks": [3, 1, 2]}], (), 3, {}, {}),
    "ranks with an answer twice": (
        [{"prompt": "q", "completions": ["9 a", "9 a", "8 b"], "ranks": [1, 2, 3]}],
        (),
        1,
        {COPIES: 1},
        {},
    ),
    "ranks of a prompt in two rows, which compare no answers of the other": (
        [{"prompt": "q", "completions": words, "ranks": [1, 2]} for words in (["9 a", "8 b"], ["3 c", "2 d"])],
        (),
        2,
        {},
        {},
    ),
    "rated, one a row as text": (
        [{"prompt": "q", "response": words, "score": words[0]} for words in ("3 a", "1 b", "2 c")],
        ("label.columns={completions: response, scores: score}",),
        3,
        {},
        {},
    ),
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
    "LLMBar, 1 and 2": (numbered("output_1", "output_2", "label", 1, 2), (), 7, {COPIES: 1}, {}),
    "PandaLM, 0 is a tie": (numbered("response_1", "response_2", "majority", 1, 2, 0, **PANDA), (), *ALL_NINE, {}),
    "AlpacaEval, 0 is a tie": (numbered("output_1", "output_2", "preference", 1, 2, 0, **MAKERS), (), *ALL_NINE, {}),
    "Auto-J, 2 is a tie": (
        numbered("response 1", "response 2", "label", 0, 1, 2, scenario="planning"),
        (),
        *ALL_NINE,
        {},
    ),
    "0, 1, 2 without a name": (
        numbered("response 1", "response 2", "label", 0, 1, 2),
        ("label.labels={0: left, 1: right, 2: tie}",),
        *ALL_NINE,
        {},
    ),
    "0, 1, 2, the other way": (
        numbered("response_1", "response_2", "label", 1, 2, 0),
        ("label.labels={0: tie, 1: left, 2: right}",),
        *ALL_NINE,
        {},
    ),
    "0 and 1": (
        numbered("response_1", "response_2", "label", 1, 0),
        ("label.labels={0: right, 1: left}",),
        7,
        {COPIES: 1},
        {},
    ),
    "-1, 0, 1": (
        numbered("response_1", "response_2", "preference", -1, 1, 0),
        ("label.labels={-1: left, 0: tie, 1: right}",),
        *ALL_NINE,
        {},
    ),
    "HelpSteer2, -3 to 3": (
        numbered("response_1", "response_2", "preference_strength", -2, 3, 0),
        (),
        *ALL_NINE,
        {},
    ),
    "SafeRLHF, the number of a column": (
        numbered("response_0", "response_1", "better_response_id", 0, 1),
        (),
        7,
        {COPIES: 1},
        {},
    ),
    "A and B": (numbered("response_a", "response_b", "winner", "A", "B", "tie"), (), *ALL_NINE, {}),
    "arena": (numbered("answer_a", "answer_b", "winner", "model_a", "model_b", "tie (bothbad)"), (), *ALL_NINE, {}),
    "a score each": (
        [{"prompt": "q", "response_a": f"{i} a", "response_b": "3 b", "score_a": i, "score_b": 3} for i in range(6)],
        (),
        5,
        {TIE: 1},
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_row_is_a_pair_the_right_way_round_or_counted_by_its_reason(
    name: str, tmp_path: Path
) -> None:
    rows, line, count, left_out, unusable = FILES[name]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    usage = used(file, tmp_path, *line)
    assert (usage.label["rows"], usage.label["unusable"]) == (len(rows), unusable)
    assert (usage.pairs["pairs"], usage.pairs["left_out"]) == (count, left_out)
    assert usage.pairs["comparisons"] == count + sum(left_out.values())
    wrong = [p for p in usage.built if p.chosen[0]["content"][0] <= p.rejected[0]["content"][0]]
    assert (len(usage.built), wrong) == (count, [])
    assert ("better" in usage.messages[0]) == (name not in ONE_A_ROW), (
        "an example shows which is which"
    )


ASK, MORE = turn("q", "user"), turn("and?", "user")
LONG, SHORT = (
    [turn("2 yes"), MORE, turn("2 so")],
    [turn("1 no"), turn("how?", "user"), turn("1 or")],
)
# Conversations that part before the last turn: a row, the prompt, chosen and rejected.
EARLY: dict[str, tuple[dict[str, Any], list[Any], list[Any], list[Any]]] = {
    "TRL": ({"chosen": [ASK, *LONG], "rejected": [ASK, *SHORT]}, [ASK], LONG, SHORT),
    "TRL, with a prompt": (
        {"prompt": [ASK], "chosen": LONG, "rejected": SHORT},
        [ASK],
        LONG,
        SHORT,
    ),
    "TRL, one turn of chosen": (
        {"prompt": [ASK], "chosen": LONG[:1], "rejected": SHORT},
        [ASK],
        LONG[:1],
        SHORT,
    ),
    "a prompt as text": (
        {"prompt": "q", "chosen": [ASK, *LONG], "rejected": [ASK, turn("1")]},
        [ASK],
        LONG,
        [turn("1")],
    ),
    "ShareGPT": (
        {
            side: [
                {"from": {"user": "human"}.get(t["role"], "gpt"), "value": t["content"]}
                for t in (ASK, *turns)
            ]
            for side, turns in (("chosen", LONG), ("rejected", SHORT))
        },
        [ASK],
        LONG,
        SHORT,
    ),
    "LLaMA-Factory": (
        {"conversations": [{"from": "human", "value": "q"}], "chosen": LONG, "rejected": SHORT},
        [ASK],
        LONG,
        SHORT,
    ),
    "HH": (
        {
            "chosen": "\n\nHuman: q\n\nAssistant: 2 yes\n\nHuman: and?\n\nAssistant: 2 so",
            "rejected": "\n\nHuman: q\n\nAssistant: 1 no\n\nHuman: how?\n\nAssistant: 1 or",
        },
        [ASK],
        LONG,
        SHORT,
    ),
    "two conversations": (
        {"conversation_a": [ASK, *SHORT], "conversation_b": [ASK, *LONG], "winner": "model_b"},
        [ASK],
        LONG,
        SHORT,
    ),
    "at a user turn": (
        {
            "chosen": [ASK, turn("x"), MORE, turn("2")],
            "rejected": [ASK, turn("x"), turn("how?", "user"), turn("1")],
        },
        [ASK],
        [turn("x"), MORE, turn("2")],
        [turn("x"), turn("how?", "user"), turn("1")],
    ),
    "at a tool's result": (
        {
            side: [ASK, turn("call"), turn(result, "tool"), turn(answer)]
            for side, result, answer in (("chosen", "a", "2"), ("rejected", "b", "1"))
        },
        [ASK],
        [turn("call"), turn("a", "tool"), turn("2")],
        [turn("call"), turn("b", "tool"), turn("1")],
    ),
}


@pytest.mark.parametrize("name", EARLY)
def test_conversations_that_part_early_become_a_pair(name: str, tmp_path: Path) -> None:
    row, prompt, chosen, rejected = EARLY[name]
    file = tmp_path / "early.jsonl"
    file.write_text(json.dumps(row) + "\n")
    usage = used(file, tmp_path)
    [pair] = usage.built
    assert (pair.prompt, pair.chosen, pair.rejected) == (prompt, chosen, rejected)
    assert usage.pairs["part_early"] == 1
    assert any("better: " in line and "worse: " in line for line in usage.messages)


REFUSED = {
    "rejected: answers another prompt than chosen": [[ASK, *LONG], [MORE, *SHORT]],
    "rejected: goes on where chosen ends, or the reverse": [
        [ASK, *LONG],
        [ASK, *LONG, MORE, turn("1")],
    ],
    "rejected: is the same as chosen": [[ASK, *LONG], [ASK, *LONG]],
    "rejected: does not end with an assistant turn": [[ASK, *LONG], [ASK, turn("1"), MORE]],
    "user and assistant do not alternate": [[ASK, *LONG], [ASK, ASK, turn("1")]],
}


def test_rows_that_share_no_request_are_quarantined_with_line_and_reason(tmp_path: Path) -> None:
    rows = [{"chosen": [ASK, *LONG], "rejected": [ASK, *SHORT]}]
    rows += [{"chosen": chosen, "rejected": rejected} for chosen, rejected in REFUSED.values()]
    file = tmp_path / "early.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    usage = used(file, tmp_path, "label.max_failed=0.9")
    assert usage.label["unusable"] == dict.fromkeys(REFUSED, 1)
    assert len(usage.built) == 1
    quarantined = [
        json.loads(line)
        for line in (tmp_path / "label" / "quarantine.jsonl").read_text().splitlines()
    ]
    reasons = [reason.partition(": ")[2] or reason for reason in REFUSED]
    assert [entry["line"] for entry in quarantined] == [2, 3, 4, 5, 6]
    assert all(
        entry["reason"].startswith(why) for entry, why in zip(quarantined, reasons, strict=True)
    )
    assert {entry["file"] for entry in quarantined} == {str(file)}


@pytest.mark.parametrize(
    "name", [name for name, (_, line, *_) in FILES.items() if any("labels" in key for key in line)]
)
def test_numbers_alone_are_asked_for(name: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in FILES[name][0]))
    with pytest.raises(UserError, match=r"label\.labels={.*: WORD"):
        used(file, tmp_path)


Truth = Callable[[dict[str, Any]], tuple[str, str] | None]


def first_or_second(a: str, b: str, of: str) -> Truth:
    """The better and the worse answer where 1 and 2 name them."""

    def better(row: dict[str, Any]) -> tuple[str, str] | None:
        return {1: (row[a], row[b]), 2: (row[b], row[a])}.get(row[of])

    return better


def spoken(value: Any) -> str:
    """The text of a column, or that of its last turn."""
    if isinstance(value, list):
        value = value[-1]
    while isinstance(value, dict):
        value = value.get("value") or value.get("content") or ""
        value = "".join(part["value"] for part in value) if isinstance(value, list) else value
    return str(value).split("\n\nAssistant:")[-1]


def chosen_first(chosen: str, rejected: str) -> Truth:
    return lambda row: (spoken(row[chosen]), spoken(row[rejected]))


# Real files, what their documentation calls better, and: rows, unusable ones, pairs, ties, copies.
REAL: dict[str, tuple[Truth, tuple[str, ...], tuple[int, int, int, int, int]]] = {
    "preferences/hh_helpful_base_test.jsonl.gz": (
        chosen_first("chosen", "rejected"),
        (),
        (2354, 21, 2333, 0, 0),
    ),
    "preferences/rasbt_instruction_preference.json.gz": (
        chosen_first("chosen", "rejected"),
        (),
        (1100, 6, 1094, 0, 0),
    ),
    "formats/lf_dpo_en_demo.json.gz": (chosen_first("chosen", "rejected"), (), (300, 0, 295, 0, 5)),
    "formats/lf_v1_dpo_demo.jsonl": (
        chosen_first("chosen_messages", "rejected_messages"),
        (),
        (10, 0, 10, 0, 0),
    ),
    "preferences/llmbar_natural_neighbor.jsonl.gz": (
        first_or_second("output_1", "output_2", "label"),
        (),
        (234, 0, 234, 0, 0),
    ),
    "preferences/pandalm_human_pairs_shared.jsonl.gz": (
        first_or_second("response_1", "response_2", "majority"),
        (),
        (407, 23, 313, 40, 31),
    ),
    "dirty/alpaca_dirty_pairs.jsonl.gz": (
        chosen_first("output_cleaned", "output_original"),
        ("label.columns={chosen: output_cleaned, rejected: output_original}",),
        (1457, 18, 1439, 0, 0),
    ),
}


@pytest.mark.extended
@pytest.mark.skipif(not DATA.exists(), reason="the shared data is not here")
@pytest.mark.parametrize("name", REAL)
def test_real_files_are_used_whole_and_the_right_way_round(name: str, tmp_path: Path) -> None:
    truth, line, figures = REAL[name]
    usage = used(DATA / name, tmp_path, *line)
    rows = [row.value for row in files.rows_of(DATA / name)]
    right = {
        (better.strip(), worse.strip())
        for row in rows
        if (each := truth(row))
        for better, worse in [each]
    }
    of_pairs = [
        (p.chosen[0]["content"].strip(), p.rejected[0]["content"].strip()) for p in usage.built
    ]
    assert [pair for pair in of_pairs if pair not in right] == []
    left_out = usage.pairs["left_out"]
    counts = (usage.label["rows"], sum(usage.label["unusable"].values()), usage.pairs["pairs"])
    assert (*counts, left_out.get(TIE, 0), left_out.get(COPIES, 0)) == figures
    assert figures[0] == sum(figures[1:]), "all rows are counted"
