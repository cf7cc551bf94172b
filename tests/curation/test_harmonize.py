"""Normalized rows: repairs, normal forms, the policy for system messages, and the counts of changes."""

import json
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stages.config.blocks.data import Audit, Data, Form, Source
from stages.curation.audit.faults import damaged
from stages.curation.harmonize import FIXES, Harmonizer, normalise_whitespace, repair_encoding
from stages.formats.format import ParsedRow
from stages.formats.turns import TOOLS
from stages.store.records import Example, load
from tests.formats.reading import lines
from tests.helpers import refused
from tests.rows import work
from tests.stages.reading import joined

USER = {"role": "user", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
TOOL = {"role": "system", "content": TOOLS.format("{}")}
# Letters of every length in UTF-8, quotation marks and dashes of Windows-1252, and both forms of à.
TEXTS = [
    "Größe",
    "café à la carte",
    "“Well”, she said — it’s 5 €…",
    "Ærø ¿qué? ½",
    "日本 ✓ 😀 ł İ",
    "plain",
]


def misread(text: str) -> str:
    """Return a text whose UTF-8 was decoded as Windows-1252, or as Latin-1 for undefined bytes, as most programs
    do."""
    return "".join(bytes([b]).decode("cp1252", "ignore") or chr(b) for b in text.encode())


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("times", [1, 2])
def test_what_was_read_in_a_wrong_encoding_is_read_again(text: str, times: int) -> None:
    assert repair_encoding(text) == text, "undamaged text is unchanged"
    broken = f"caf\u00e9 {text}\ufeff"
    for _ in range(times):
        broken = misread(broken)
    assert damaged(broken)
    assert repair_encoding(broken) == f"café {text}"


@pytest.mark.parametrize("text", ["a\ufffdb", "\x1b[0mred", "\ue000 item"])
def test_what_could_mean_several_things_is_not_mended(text: str) -> None:
    assert repair_encoding(text) == text
    assert damaged(text)


def test_an_input_marker_is_removed_from_the_last_request_alone() -> None:
    first = {"role": "user", "content": "Name a tree.\n\n<noinput>"}
    row = ParsedRow([first, {"role": "assistant", "content": "Oak."}, first], ["Ash."])
    [*before, last] = FIXES["input_marker"](row).messages
    assert before == row.messages[:2]
    assert last == {"role": "user", "content": "Name a tree."}


def test_white_space_is_normalised_and_code_keeps_its_indentation() -> None:
    assert (
        normalise_whitespace("\r\n \r\n  def f():\t\r\n\treturn\u00a01  \u2028\n")
        == "  def f():\n\treturn 1"
    )
    for text in ("a\n\nb", "全角\u3000空白", "a  b"):
        assert normalise_whitespace(text) == text


def test_characters_are_normalised_and_changed_rows_counted() -> None:
    shape = Harmonizer(Form(unicode="NFC", whitespace="trim"))
    split = unicodedata.normalize("NFD", "Größe")
    assert shape(ParsedRow([USER], [split])).answers == ["Größe"]
    assert shape(ParsedRow([{**USER, "content": "b \n"}], ["x²"])) == ParsedRow(
        [{**USER, "content": "b"}], ["x²"]
    )
    assert shape.metrics() == {"normalised": {"unicode": 1, "whitespace": 1}, "shaped": 2}
    assert Harmonizer(Form(unicode="NFKC"))(ParsedRow([USER], ["x²"])).answers == ["x2"]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("keep", [None, "s", TOOL["content"]]),
        ("insert", ["one", "s", TOOL["content"]]),
        ("drop", [None, None, TOOL["content"]]),
    ],
)
def test_the_policy_decides_which_conversations_have_a_system_message(
    policy: str, expected: list[str | None]
) -> None:
    shape = Harmonizer(Form(system=policy, system_prompts=["one"]))
    rows = [[USER], [SYSTEM, USER], [TOOL, USER]]
    for messages, system in zip(rows, expected, strict=True):
        shaped = shape(ParsedRow(messages, ["b"])).messages
        assert system_of(shaped) == system
        assert shaped[-1] == USER


def system_of(messages: list[Any]) -> str | None:
    first = messages[0]
    return first["content"] if first["role"] == "system" else None


def test_a_system_prompt_depends_on_its_conversation_alone() -> None:
    def drawn(order: range) -> dict[int, str]:
        shape = Harmonizer(Form(system="vary", system_prompts=["one", "two", "three"]))
        systems = dict[int, str]()
        for i in order:
            row = ParsedRow([SYSTEM, {**USER, "content": str(i)}], ["b"])
            systems[i] = shape(row).messages[0]["content"]
        return systems

    systems = drawn(range(300))
    assert systems == drawn(range(299, -1, -1))
    # 100 of each are expected; four standard deviations of a binomial of 300 and 1/3 are 33.
    counts = Counter(systems.values())
    assert counts.keys() == {"one", "two", "three"} and min(counts.values()) > 100 - 33


def test_the_data_is_in_form_and_says_what_was_changed(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Name a cafÃ©.", "output": "One\ufffd."},
        {"instruction": "Name a cafÃ©.", "output": "BrÃ¼he."},
        {"instruction": "Name a tree.", "system": "s", "output": "Oak. "},
    ]
    source = Source(str(lines(tmp_path, rows)), splits={"sft": 1.0})
    form = Form(system="insert", system_prompts=["Be brief."], whitespace="trim")
    audit = Audit({"damaged": "fix"})
    data = Data(seed=0, sources=[source], max_bad=1.0, form=form, audit=audit)
    metrics = joined(data, work(tmp_path))
    examples = load(tmp_path / "examples.parquet", Example)
    assert [([m["content"] for m in e.messages], e.reference) for e in examples] == [
        (["Be brief.", "Name a café."], "Brühe."),
        (["s", "Name a tree."], "Oak."),
    ]
    assert metrics["unwanted"] == 1, "a row that cannot be repaired is quarantined"
    quarantined = json.loads((tmp_path / "quarantine.jsonl").read_text())
    assert (quarantined["field"], quarantined["row"]) == ("damaged", rows[0])
    assert metrics["system"] == {"before": 1, "after": 3}
    assert metrics["fixed"] == {"damaged": 2}
    assert metrics["normalised"] == {"whitespace": 1}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "data.form={system: insert}",
            "data.form.system=insert needs 1 in data.form.system_prompts",
        ),
        (
            "data.form={system: vary, system_prompts: [a]}",
            "data.form.system=vary needs 2",
        ),
        ("data.form={system_prompts: [a]}", "data.form.system=keep needs none"),
        ("data.form.system=inset", "Did you mean 'insert'"),
        ("data.audit.actions={echo: fix}", "data.audit.actions.echo=fix"),
        ("data.audit.thresholds={echo: 1}", "data.audit.thresholds=echo"),
        ("data.audit.thresholds={near_duplicate: 0.3}", "must be from 0.6"),
    ],
)
def test_impossible_settings_are_refused(setting: str, message: str, tmp_path: Path) -> None:
    assert message in refused("stage=data", f"outputs={tmp_path}", setting)
