"""Compare the tokens that SFT trains with those of TRL's trainer for the same file."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from transformers import LlamaConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer
from trl.trainer import sft_trainer

from stages.config.blocks.training import SFT
from stages.models import chat_templates
from stages.models.contract import Contract
from stages.models.loading import count_embedding_rows, load_tokenizer
from stages.objectives.sft import read_rows
from stages.store.records import Example, stream
from tests.formats.reading import lines
from tests.helpers import Chain, build, settings
from tests.rows import work

Tokens = dict[str, tuple[list[int], list[int]]]  # ids and labels, by the conversation

ALPACA = [
    {"instruction": f"Say {i}.", "input": "yes\n\nno", "output": f"ja {i}, 日本"} for i in range(9)
]
ALPACA += [{"instruction": f"Say it, {i}.", "input": "", "output": f"é {i}"} for i in range(9)]
TALK = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": f"one {i} ✓"},
            {"role": "assistant", "content": f"two {i} ✓"},
            {"role": "user", "content": "three"},
            {"role": "assistant", "content": f"four {i}"},
        ]
    }
    for i in range(9)
]


def by_stages(file: Path, block: SFT, contract: Contract, root: Path) -> Tokens:
    line = (
        "stage=data",
        "data=file",
        f"data.sources=[{{path: '{file}', splits: {{sft: 1.0}}}}]",
        "sft.packing=true",
    )
    build(root, *line)
    examples = Chain(root).folder("data", *line) / "examples.parquet"
    rows = read_rows(stream(examples, Example), contract, block, work(root / "work")).train
    conversations = {each.id: each.conversation for each in stream(examples, Example)}
    tokens = Tokens()
    for name, row in zip(rows.ids, rows.dataset, strict=True):
        tokens[json.dumps(conversations[name])] = (row["input_ids"], row["labels"])
    return tokens


def by_trl(
    messages: list[list[dict[str, str]]], block: SFT, contract: Contract, folder: Path
) -> Tokens:
    """What SFTTrainer is about to pack."""
    from datasets import Dataset

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(contract.tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
        )
    )
    args = SFTConfig(
        str(folder / "trainer"),
        packing=True,
        max_length=block.max_length,
        assistant_only_loss=True,
        use_cpu=True,
        bf16=False,
        report_to="none",
    )
    rows = Dataset.from_list([{"messages": each} for each in messages])
    with mock.patch.object(sft_trainer, "pack_dataset", wraps=sft_trainer.pack_dataset) as pack:
        SFTTrainer(model, args, train_dataset=rows, processing_class=contract.tokenizer)
    packed = pack.call_args.args[0]
    tokens = Tokens()
    for each, ids, labels in zip(messages, packed["input_ids"], packed["labels"], strict=True):
        tokens[json.dumps(each)] = (ids, labels)
    return tokens


def as_messages(row: dict[str, Any]) -> list[dict[str, str]]:
    if "messages" in row:
        return row["messages"]
    request = "\n\n".join(filter(None, (row["instruction"], row["input"])))
    return [
        {"role": "user", "content": request},
        {"role": "assistant", "content": row["output"]},
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
    ours = by_stages(lines(tmp_path, rows), block, contract, tmp_path / "outputs")
    theirs = by_trl([as_messages(row) for row in rows], block, contract, tmp_path)
    assert ours.keys() == theirs.keys() and len(ours) == len(rows)
    for conversation, (ids, labels) in theirs.items():
        assert ours[conversation] == (ids[:-1], labels[:-1])
        assert contract.tokenizer.decode(ids[-1:]) == "\n" and labels[-1] == -100
        assert any(label != -100 for label in labels)
