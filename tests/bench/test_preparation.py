"""Compare the tokens that SFT trains with those of TRL's trainer for the same file."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages.models import chat_templates
from stages.models.loading import count_embedding_rows, load_tokenizer
from tests.bench.preparation import compare_rows, prepare_by_plumbline, trl
from tests.formats.reading import lines
from tests.helpers import settings

ALPACA = [
    {
        "instruction": f"Sag es auf Deutsch, {i}.",
        "input": "" if i % 2 else "yes\n\nno",
        "output": f"ja {i}, 日本 é",
    }
    for i in range(20)
]
TALK = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            *(
                {"role": who, "content": f"{who} {i} {j} ✓"}
                for j in range(1 + i % 3)
                for who in ("user", "assistant")
            ),
        ]
    }
    for i in range(20)
]


@pytest.mark.parametrize("rows", [ALPACA, TALK], ids=["alpaca", "messages"])
def test_token_ids_and_labels_are_those_of_trls_trainer(
    rows: list[dict[str, Any]], built: Path, tmp_path: Path
) -> None:
    """But for the line feed behind the last end of turn, which TRL keeps, untrained, and which says nothing."""
    base = next((built / "base").glob("*")) / "model"
    block = settings("recipe=tiny", "sft.packing=true", "sft.max_length=256").sft
    contract = chat_templates.establish_contract(
        load_tokenizer(base), block.template, True, count_embedding_rows(base)
    )
    file = lines(tmp_path, rows)
    (_, our_rows), (_, trl_rows) = (
        way(file, block, contract, tmp_path / way.__name__) for way in (prepare_by_plumbline, trl)
    )
    assert compare_rows(our_rows, trl_rows) == {"equal up to the last end of turn": len(rows)}
    assert {contract.tokenizer.decode(row.input_ids[-1:]) for row in trl_rows} == {"\n"}
    untrained = [replace(row, labels=[-100] * len(row.labels)) for row in our_rows[:1]]
    assert compare_rows([*our_rows[1:], *untrained], trl_rows)["other labels"] == 1, json.dumps(
        rows[0]
    )
