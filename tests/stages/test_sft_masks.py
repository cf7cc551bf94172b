"""Check which tokens SFT trains for answers of weight 0 and for training on the last turn only: on real tokenizers,
templates, TRL's packing and TRL's collator."""

import json
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
    Demonstrations,
    choose_turns,
    read_rows,
    require_trained_rows,
    write_token_example,
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
    turns = [
        turn
        for i, answer in enumerate(answers)
        for turn in (
            {"role": "user", "content": f"ask {name} {i}"},
            {"role": "assistant", "content": answer},
        )
    ]
    return Example(name, turns[:-1], answers[-1], "s", "t", "sft", trained=trained)


EXAMPLES = [
    conversation("a", ["one é", "two", "three ✓"], [False, True, True]),
    conversation("b", ["four", "five\n", "six"], [True, False, False]),
    conversation("c", ["seven", "eight"], None),
    conversation("d", ["nine"], [True]),
]
ALL = [["two", "three ✓"], ["four"], ["seven", "eight"], ["nine"]]
ONLY_LAST = [["three ✓"], [], ["eight"], ["nine"]]  # the last of b has weight 0


def prepared(examples: list[Example], contract: Contract, cfg: SFT, folder: Path) -> Demonstrations:
    return read_rows(examples, contract, cfg, work(folder))


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
    prepared_rows = prepared(EXAMPLES, contract, replace(cfg, max_dropped=0.5), tmp_path)
    rows = prepared_rows.train
    answer_texts = ["".join(answer + end for answer in answers) for answers in expected]
    assert trained_text(contract, rows, packing=False) == [each for each in answer_texts if each]
    assert sum(prepared_rows.dropped.values()) == answer_texts.count("")
    by_id = sorted(zip(rows.ids, rows.lengths, filter(None, answer_texts), strict=True))
    rows.pack(sum(rows.lengths), 1)
    assert len(rows) == 1
    longest_first = sorted(by_id, key=lambda row: -row[1])
    assert trained_text(contract, rows, packing=True) == [
        "".join(text for *_, text in longest_first)
    ]


def test_the_report_shows_a_masked_turn(tmp_path: Path) -> None:
    contract = establish(*TERMS["chatml"])
    rows = prepared(EXAMPLES[2:] + EXAMPLES[:2], contract, CFG, tmp_path)
    write_token_example(rows.report_row, contract, tmp_path / "tokens.json")
    tokens = json.loads((tmp_path / "tokens.json").read_text())
    trained = "".join(token["text"] for token in tokens if token["trained"])
    assert trained == "two<|im_end|>three ✓<|im_end|>".replace("✓", "\ufffd" * 3)  # a byte a token
    assert not any(token["trained"] for token in tokens if "masked" in token)
    assert sum("masked" in token and token["end_of_turn"] for token in tokens) == 1


def test_each_answer_is_trained_after_the_prompt_as_it_is_generated(tmp_path: Path) -> None:
    """As the templates of some reasoning models do, this one keeps the thoughts of the last answer only."""
    tokenizer = byte_level(CHATML, eos_token="<|endoftext|>")
    content, whole = (
        "message['content'].rstrip()",
        (TEMPLATES / "chatml.jinja").read_text(encoding="utf-8"),
    )
    assert content in whole
    tokenizer.chat_template = whole.replace(
        content, f"({content}).split('\0' if loop.last else '</think>')[-1].strip()"
    )
    answers = ["<think>\nhm one\n</think>\n\none", "<think>\nhm two\n</think>\n\ntwo"]
    thoughts = conversation("t", answers, None)
    out = work(tmp_path)
    rows = read_rows([thoughts, EXAMPLES[2]], contract := establish(tokenizer, "own"), CFG, out)
    trained = trained_text(contract, rows.train, packing=False)
    end = contract.tokenizer.eos_token
    assert trained == [*(answer + end for answer in answers), f"seven{end}eight{end}"]
    assert len({*rows.train.ids}) == 3
    second = contract.tokenizer.decode(rows.train.dataset[1]["input_ids"])
    assert "hm one" not in second and "one" in second, "the first thought is no longer there"
    assert " 1 of 2 " in out.warnings[0]


def test_rows_without_a_trained_turn_are_dropped_and_counted(tmp_path: Path) -> None:
    contract = establish(*TERMS["chatml"])
    nothing = [conversation("e", ["ten"], [False])]
    with pytest.raises(UserError, match=r"1 of 1 rows .* no token"):
        prepared(nothing, contract, CFG, tmp_path)


def test_weights_without_a_turn_to_each_are_refused(tmp_path: Path) -> None:
    contract = establish(*TERMS["chatml"])
    with pytest.raises(UserError, match=r"1 weights .* 2 answers"):
        prepared([conversation("f", ["one", "two"], [True])], contract, CFG, tmp_path)


@pytest.mark.parametrize(
    ("adapter", "sharding", "trains"),
    [
        ("none", "fsdp", True),
        ("lora", "none", True),
        ("lora", "fsdp", False),
        ("qlora", "none", False),
    ],
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
    if trains:
        return require_trained_rows(contract, cfg, rows)
    with pytest.raises(UserError, match=r"no embedding of <tool>, </tool>"):
        require_trained_rows(contract, cfg, rows)
    require_trained_rows(contract, cfg, rows + 2)


def test_a_template_that_changes_earlier_turns_trains_the_last_where_each_triples_the_tokens(
    tmp_path: Path,
) -> None:
    out = work(tmp_path)
    changing, answers = (
        of_family("qwen3"),
        ["one", "two", "three", "four", "five", "six", "seven", "eight"],
    )
    for contract, turns, expected in (
        (changing, answers, Turns.last),
        (changing, answers[:3], Turns.each),
        (establish(*TERMS["chatml"]), answers, Turns.each),
    ):
        examples = [conversation("a", turns, None), conversation("b", turns[:2], None)]
        assert choose_turns(examples, contract, out) is expected
    rows = read_rows([conversation("a", answers, None)], changing, LAST, out)
    assert len(rows.train) == 1
    assert "eight" in trained_text(changing, rows.train, packing=False)[0]
