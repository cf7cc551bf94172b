"""A file has one encoding. A file of another one than UTF-8 is refused with the setting that reads it, and loses no row."""

import csv
import gzip
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from stages.config.errors import UserError
from stages.formats.column_mapping import Purpose
from stages.formats.readers.files import HEAD_BYTES
from tests.formats.reading import read, summarize

ROWS = [
    {"instruction": "Which city?", "output": "Berlin"},
    {"instruction": "Welche Stadt, bitte?", "output": "Zürich"},
    {"instruction": "Noch eine, größer", "output": "München"},
]
READ = [([row["instruction"]], [row["output"]], None) for row in ROWS]


def as_csv() -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["instruction", "output"])
    writer.writeheader()
    writer.writerows(ROWS)
    return text.getvalue()


def as_lines() -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def as_array() -> str:
    return json.dumps(ROWS, ensure_ascii=False, indent=1)


FORMS = {"rows.csv": as_csv(), "rows.jsonl": as_lines(), "rows.json": as_array()}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-le", "utf-16-be"])
def test_a_file_of_another_encoding_is_refused_until_it_is_named(
    name: str, encoding: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_bytes(FORMS[name].encode(encoding))
    with pytest.raises(UserError) as refusal:
        read(file)
    named = str(refusal.value).rpartition("encoding=")[2].split("'")[0]
    assert named == encoding
    assert str(file) in str(refusal.value)
    assert summarize(read(file, encoding=named)) == READ


# A text of each encoding, as people of its languages write it
WRITTEN = {
    "cp1250": "Opisz lampę. Jest użyteczna, ładna i tania.",
    "cp1251": "Опиши лампу. Это полезно.",
    "cp1252": "Décris la lampe. C’est très utile, ça va de soi.",
    "cp1253": "Περιγράψτε τη λάμπα. Είναι χρήσιμη.",
    "cp1254": "Lambayı açıkla. Çok güzel, değil mi?",
    "cp850": "Beschreibe die Größe für mich.",
    "koi8-r": "Опиши лампу. Это полезно.",
    "mac-roman": "Décris la lampe. C’est très utile.",
    "big5": "請描述這盞燈。它很有用。",
    "gb18030": "请描述这盏灯。它很有用，价格也便宜。",
    "shift_jis": "ランプについて説明してください。",
    "euc_jp": "ランプについて説明してください。",
    "euc_kr": "램프를 설명해 주세요. 유용합니다.",
}


@pytest.mark.parametrize("encoding", WRITTEN)
def test_the_first_encoding_that_is_offered_reads_the_file(encoding: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    row = {"instruction": "Lamp?", "output": WRITTEN[encoding]}
    file.write_bytes(json.dumps(row, ensure_ascii=False).encode(encoding))
    with pytest.raises(UserError) as refusal:
        read(file)
    offered = re.findall(r"encoding=([\w-]+)", str(refusal.value))
    assert offered[0] == encoding
    assert len({*offered}) == len(offered)
    assert summarize(read(file, encoding=offered[0])) == [(["Lamp?"], [WRITTEN[encoding]], None)]


def test_each_offered_encoding_shows_a_word_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes("instruction,output\nÍrd le,Nagyon hűvös\n".encode("cp1250"))
    with pytest.raises(UserError) as refusal:
        read(file)
    offered = dict(re.findall(r"encoding=([\w-]+)'? if '([^']+)' is right", str(refusal.value)))
    assert "hűvös" in offered["cp1250"]
    assert len({*offered.values()}) == len(offered)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_a_file_with_the_mark_of_its_encoding_is_read(
    encoding: str, name: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_bytes(FORMS[name].encode(encoding))
    assert summarize(read(file)) == READ


def test_a_character_at_the_end_of_what_is_looked_at_changes_no_encoding(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    text = json.dumps({"prompt": "a" * 487 + "😀", "completion": "b"}, ensure_ascii=False)
    file.write_bytes(text.encode("utf-16-le"))
    assert text.encode("utf-16-le")[:HEAD_BYTES].decode("utf-16-le", "replace")[-1] == "\ufffd"
    with pytest.raises(UserError) as refusal:
        read(file)
    assert "encoding=utf-16-le" in str(refusal.value)


def test_another_encoding_than_the_likely_one_can_be_typed(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_bytes("instruction,output\nГород?,Москва\n".encode("cp1251"))
    with pytest.raises(UserError, match="encoding"):
        read(file)
    assert summarize(read(file, encoding="cp1251")) == [(["Город?"], ["Москва"], None)]
    file.write_bytes("instruction,output\nCity?,Zürich\n".encode("cp1252"))
    with pytest.raises(UserError, match="not in the encoding euc_kr"):
        read(file, encoding="euc_kr")


def test_a_packed_file_is_recoded_too(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(gzip.compress(as_lines().encode("cp1252")))
    with pytest.raises(UserError, match="encoding=cp1252"):
        read(file)
    assert summarize(read(file, encoding="cp1252")) == READ


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_a_damaged_row_among_others_in_utf_8_costs_itself_alone(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    damaged = FORMS[name].encode().replace("Zürich".encode(), "Zürich".encode("cp1252"))
    file.write_bytes(damaged)
    result = read(file)
    assert summarize(result) == [READ[0], READ[2]]
    assert "not UTF-8" in str(result.bad_rows[0].error)


def test_preferences_have_the_key_too(tmp_path: Path) -> None:
    row: dict[str, Any] = {"prompt": "Größe?", "chosen": "groß", "rejected": "klein"}
    file = tmp_path / "rows.jsonl"
    file.write_bytes(json.dumps(row, ensure_ascii=False).encode("cp1252") + b"\n")
    with pytest.raises(UserError, match="encoding=cp1252"):
        read(file, Purpose.preferences)
    [(messages, _, _)] = summarize(read(file, Purpose.preferences, encoding="cp1252"))
    assert messages == ["Größe?"]
