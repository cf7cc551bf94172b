"""Tests of rows as columns: TRL packs them like lists, and they take little memory."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from trl import pack_dataset

from stages.config.installation import ROOT
from stages.store.records import content_id
from stages.training.token_rows import IGNORED, TokenRows
from tests.helpers import Chain

LENGTH, BIN = 64, 256  # the most tokens of a row, and of a packed row


def added(count: int) -> tuple[TokenRows, list[dict[str, object]]]:
    """Return rows of random tokens as columns and as lists."""
    draw, rows, lists = random.Random(0), TokenRows(), []
    for i in range(count):
        ids = [draw.randrange(50_000) for _ in range(draw.randrange(1, LENGTH))]
        trained = [draw.random() < 0.5 for _ in ids]
        rows.add(content_id(i), (ids, trained))
        labels = [token if each else IGNORED for token, each in zip(ids, trained, strict=True)]
        lists.append({"id": content_id(i), "input_ids": ids, "labels": labels})
    return rows, lists


def test_columns_are_packed_as_trl_packs_lists() -> None:
    """Pack rows in the order of their ids, more than TRL packs at once."""
    rows, lists = added(1_500)
    in_order = [
        {k: v for k, v in row.items() if k != "id"}
        for row in sorted(lists, key=lambda row: row["id"])
    ]
    expected = pack_dataset(Dataset.from_list(in_order), BIN, "bfd").to_list()
    rows.pack(BIN, batch_size=1)
    assert list(rows.dataset) == expected
    assert rows.ids == [content_id(row["input_ids"]) for row in expected]
    assert rows.trained_counts == [
        sum(label != IGNORED for label in row["labels"]) for row in expected
    ]
    repeated, _ = added(1_500)
    repeated.pack(BIN, batch_size=len(expected) - 1)
    assert len(repeated) == 2 * (len(expected) - 1)
    assert [t for row in repeated.dataset for t in row["input_ids"]] == [
        t for row in expected for t in row["input_ids"]
    ]


MEASURE = """
import json, sys
from pathlib import Path
import datasets
from stages.hardware import machine
from stages.models.contract import load_contract
from stages.store.records import Example
from stages.store.workspace import StageDir
from stages.objectives.sft import read_rows
from tests.helpers import settings
contract, text = load_contract(Path(sys.argv[1])), "many words and some more " * 100
out, cfg = StageDir(Path(sys.argv[2]), lambda metrics, step: None), settings("recipe=tiny").sft
datasets.disable_progress_bars()
def examples(count):
    for i in range(count):
        yield Example(f"{i:016x}", [{"role": "user", "content": f"Tell me of {i}."}], f"{i}: {text}", "s", "t", "sft")
def peaks(count):
    rows = read_rows(examples(count), contract, cfg, out).train
    tokens, before = sum(rows.lengths), machine.peak_memory()
    rows.pack(cfg.max_length, 1)
    return tokens, before, machine.peak_memory()
print(json.dumps([peaks(500), peaks(3_000)]))
"""


@pytest.mark.slow
def test_a_token_takes_a_few_bytes(built: Path, tmp_path: Path) -> None:
    """A tokenised token takes eight bytes, and packing needs four copies. The bounds are three times that, because
    allocators keep freed memory. Lists of Python integers with their examples took 80, and 200 in packing."""
    model = str(Chain(built).folder("sft") / "model")
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, model, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    few, many = json.loads(ran.stdout.splitlines()[-1])
    tokens, tokenised, packed = (b - a for a, b in zip(few, many, strict=True))
    assert tokenised < 3 * 8 * tokens
    assert packed < 3 * 4 * 8 * tokens
