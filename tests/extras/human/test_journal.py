"""Journals of answers have a digest per line: damage changes no verdict and gives one warning."""

import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from stages.extras.human.session import Answer, Journal
from stages.store.json_log import sealed
from tests.endpoints.test_client import flipped

SAID = [
    Answer(f"question-{i}", "ann", "ab"[i % 2], ("clear",), "why", "ab", 1.5, "2026")
    for i in range(4)
]


def journal(folder: Path) -> Journal:
    """Write Ann's journal with the four answers of SAID."""
    journal = Journal(folder / "ann.jsonl")
    for answer in SAID:
        journal.append(answer)
    return journal


def test_a_flipped_bit_of_a_journal_turns_no_verdict(tmp_path: Path) -> None:
    content = journal(tmp_path).path.read_bytes()
    draw = random.Random(0)
    for place in (draw.randrange(8 * len(content)) for _ in range(150)):
        (tmp_path / "ann.jsonl").write_bytes(flipped(content, place))
        answers = [*Journal(tmp_path / "ann.jsonl").read()]
        assert len(answers) >= 2 and not {*answers} - {*SAID}, place


ODD: dict[str, Callable[[bytes], bytes]] = {
    "a turned verdict": lambda line: line.replace(b'"verdict": "a"', b'"verdict": "b"'),
    "half a line": lambda line: line[:40] + b"\n",
    "zeros": lambda line: bytes(4096) + b"\n",
    "no UTF-8": lambda line: b"\xff\xfe" + line,
    "a list": lambda line: sealed([1, 2]),
    "no verdict": lambda line: sealed(asdict(SAID[0]) | {"verdict": 1}),
    "an unknown key": lambda line: sealed(asdict(SAID[0]) | {"digesu": ""}),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD.keys())
def test_an_odd_line_is_set_aside_in_one_line_and_the_others_count(
    odd: Callable[[bytes], bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = journal(tmp_path).path
    first, *later = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(odd(first) + b"".join(later))
    for _ in range(2):
        assert [*Journal(path).read()] == SAID[1:]
    assert (tmp_path / "ann.jsonl.unreadable").read_bytes() == odd(first)
    assert len(caplog.records) == 1 and f"{path}: 1 of 4 lines" in caplog.text
