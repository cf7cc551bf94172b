"""Check which tokens SFT trains for answers of weight 0 and for training on the last turn only: on real tokenizers,
templates, TRL's packing and TRL's collator."""

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from stages.config.blocks.training import SFT
from stages.config.choices import Adapter, Sharding, Turns
from stages.config.errors import UserError
from stages.models.chat_templates import TEMPLATES
from stages.models.contract import Contract
from stages.objectives.sft import (
    choose_turns,
    read_rows,
    require_trained_rows,
)
from stages.store.records import Example
from stages.training.token_rows import IGNORED, TokenRows
from tests.helpers import settings
from tests.models.test_contract import CHATML, byte_level, establish, with_bos
from tests.models.test_model_templates import establish as of_family
from tests.rows import work

CFG = settings("recipe=tiny").sft
LAST = replace(CFG, turns=Turns.last)
TERMS = {
    "chatml": (byte_level(CHATML, eos_token="<|endoftext|>"), "auto"),
    "plain": (byte_level(["</s>", "<unk>"], eos_token="</s>"), "plain"),
    "zephyr": (with_bos(), "zephyr"),
}


def conversation(name: str, answers: list[str], trained: list[bool] | None) -> Example:
    turns = list[dict[str, str]]()
    for i, answer in enumerate(answers):
        turns.append({"role": "user", "content": f"ask {name} {i}"})
        turns.append({"role": "assistant", "content": answer})
    return Example(name, turns[:-1], answers[-1], "s", "t", "sft", trained=trained)


EXAMPLES = [
    conversation("a", ["one é", "two", "three ✓"], [False, True, True]),
    conversation("b", ["four", "five\n", "six"], [True, False, False]),
    conversation("c", ["seven", "eight"], None),
    conversation("d", ["nine"], [True]),
]
ALL = [["two", "three ✓"], ["four"], ["seven", "eight"], ["nine"]]
ONLY_LAST = [["three ✓"], [], ["eight"], ["nine"]]  # the last of b has weight 0


def trained_text(contract: Contract, rows: TokenRows, packing: bool) -> list[str]:
    """Return the trained text of each row that TRL's collator makes."""
    collate = DataCollatorForLanguageModeling(contract.tokenizer.pad_token_id, padding_free=packing)
    batch = collate(list(rows.dataset))
    assert (batch["labels"] == batch["input_ids"])[batch["labels"] != IGNORED].all()
    return [
        contract.tokenizer.decode([i for i in row if i != IGNORED])
        for row in batch["labels"].tolist()
    ]


@pytest.mark.parametrize(("tokenizer", "kind"), TERMS.values(), ids=TERMS)
@pytest.mark.parametrize(("cfg", "expected"), [(CFG, ALL), (LAST, ONLY_LAST)], ids=["all", "last"])
def test_the_loss_is_on_the_turns_that_have_a_weight(
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    cfg: SFT,
    expected: list[list[str]],
    tmp_path: Path,
) -> None:
    contract = establish(tokenizer, kind)
    end = contract.tokenizer.eos_token
    prepared = read_rows(EXAMPLES, contract, replace(cfg, max_dropped=0.5), work(tmp_path))
    rows = prepared.train
    texts = ["".join(answer + end for answer in answers) for answers in expected]
    trained = [text for text in texts if text]
    assert trained_text(contract, rows, packing=False) == trained
    assert sum(prepared.dropped.values()) == texts.count("")
    by_length = sorted(zip(rows.lengths, rows.ids, trained, strict=True), key=longest_first)
    rows.pack(sum(rows.lengths), 1)
    assert trained_text(contract, rows, packing=True) == ["".join(text for *_, text in by_length)]


def longest_first(row: tuple[int, str, str]) -> tuple[int, str]:
    return -row[0], row[1]


def test_each_answer_is_trained_after_the_prompt_as_it_is_generated(tmp_path: Path) -> None:
    """As the templates of some reasoning models do, this one keeps the thoughts of the last answer only."""
    tokenizer = byte_level(CHATML, eos_token="<|endoftext|>")
    content = "message['content'].rstrip()"
    last_thought = f"({content}).split('\0' if loop.last else '</think>')[-1].strip()"
    template = (TEMPLATES / "chatml.jinja").read_text(encoding="utf-8")
    assert content in template
    tokenizer.chat_template = template.replace(content, last_thought)
    answers = ["<think>\nhm one\n</think>\n\none", "<think>\nhm two\n</think>\n\ntwo"]
    contract = establish(tokenizer, "own")
    out = work(tmp_path)
    rows = read_rows([conversation("t", answers, None)], contract, CFG, out).train
    end = contract.tokenizer.eos_token
    assert trained_text(contract, rows, packing=False) == [answer + end for answer in answers]
    second = contract.tokenizer.decode(rows.dataset[1]["input_ids"])
    assert "hm one" not in second
    assert out.warnings


@pytest.mark.parametrize(
    ("adapter", "sharding", "trains"),
    [("none", "fsdp", True), ("lora", "none", True), ("lora", "fsdp", False)],
)
def test_tokens_without_an_embedding_are_refused_where_their_rows_are_not_trained(
    adapter: str, sharding: str, trains: bool
) -> None:
    """New rows of a frozen embedding would stay as they are drawn."""
    tokenizer = byte_level([*CHATML, "<|pad|>"], eos_token="<|im_end|>", pad_token="<|pad|>")
    rows = len(tokenizer)
    tokenizer.add_tokens(["<tool>", "</tool>"])
    contract = establish(tokenizer, "chatml")
    runtime = replace(CFG.runtime, sharding=Sharding(sharding))
    cfg = replace(CFG, adapter=Adapter(adapter), runtime=runtime)
    require_trained_rows(contract, cfg, rows + 2)
    if trains:
        require_trained_rows(contract, cfg, rows)
        return
    with pytest.raises(UserError, match=r"no embedding of <tool>, </tool>"):
        require_trained_rows(contract, cfg, rows)


def test_a_template_that_changes_earlier_turns_trains_the_last_where_each_triples_the_tokens(
    tmp_path: Path,
) -> None:
    answers = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    for contract, count, expected in (
        (of_family("qwen3"), 8, Turns.last),
        (of_family("qwen3"), 3, Turns.each),
        (establish(*TERMS["chatml"]), 8, Turns.each),
    ):
        examples = [conversation("a", answers[:count], None)]
        assert choose_turns(examples, contract, work(tmp_path)) is expected
