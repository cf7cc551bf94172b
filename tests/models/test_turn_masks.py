"""Token ids and masks of pairs of several turns: what is trained of each side, in TRL's batch and in the control."""

from pathlib import Path
from typing import NamedTuple

import pytest
from trl.trainer.dpo_trainer import DataCollatorForPreference

from stages.models.contract import Contract
from stages.models.scoring import tokenize_pair
from stages.objectives.dpo import collate_masked, trl_row
from stages.objectives.sft import read_rows
from stages.select import example_of_chosen
from stages.store.records import Message, Pair
from stages.store.workspace import StageDir
from stages.training.token_rows import IGNORED
from tests.helpers import settings
from tests.models.test_contract import CHATML, byte_level, establish


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


class Parted(NamedTuple):
    """Two conversations: their shared prompt, an answer that they share too, and the further turns of each."""

    prompt: list[Message]
    answer: list[Message]
    chosen: list[Message]
    rejected: list[Message]

    def pair(self) -> Pair:
        sides = [[*self.answer, *side] for side in (self.chosen, self.rejected)]
        return Pair("p", "q", self.prompt, *sides, None, "dataset", "all", "a", "b", "train")


PARTED = {
    "at the first answer": Parted(
        [user("Name a colour.")],
        [],
        [assistant("Blue, as the sea.")],
        [assistant("Cup"), user("A colour!"), assistant("Kite"), user("No."), assistant("Green")],
    ),
    "at the user's second turn": Parted(
        [user("Positive or negative?")],
        [assistant("Of which text?")],
        [user("I love the garden."), assistant("positive")],
        [user("I love it"), assistant(" Which?\n"), user("the old one"), assistant("negative")],
    ),
    "after a system message and an answer": Parted(
        [{"role": "system", "content": "Be brief."}, user("2 + 2?"), assistant("4"), user("3?\n")],
        [],
        [assistant("- ja\n- 日本"), user("Why?"), assistant("4 > 3")],
        [assistant("no ✓"), user("Sure?"), assistant("no, not\n\nsure 🙂")],
    ),
}


@pytest.fixture(scope="module")
def contract() -> Contract:
    return establish(byte_level(CHATML, eos_token="<|endoftext|>"), "chatml")


def chatml(turns: list[Message]) -> str:
    """Return a conversation up to its last end of turn."""
    text = ""
    for turn in turns:
        content = turn["content"]
        if turn["role"] == "assistant":
            content = content.rstrip()
        text += f"<|im_start|>{turn['role']}\n{content}<|im_end|>\n"
    return text.removesuffix("\n")


def marked_text(contract: Contract, ids: list[int], mask: list[bool]) -> str:
    return contract.tokenizer.decode([i for i, marked in zip(ids, mask, strict=True) if marked])


@pytest.mark.parametrize("how", PARTED)
def test_the_answers_of_each_side_are_trained_from_where_the_two_part(
    how: str, contract: Contract
) -> None:
    parted = PARTED[how]
    scored = tokenize_pair(parted.pair(), contract)
    decode = contract.tokenizer.decode
    assert decode(scored.prompt_ids) == f"{chatml(parted.prompt)}\n<|im_start|>assistant\n"
    for ids, mask, side in (
        (scored.chosen_ids, scored.chosen_mask, parted.chosen),
        (scored.rejected_ids, scored.rejected_mask, parted.rejected),
    ):
        whole = chatml([*parted.prompt, *parted.answer, *side])
        assert decode(scored.prompt_ids + ids) == whole
        answers = [turn["content"].rstrip() for turn in side if turn["role"] == "assistant"]
        assert marked_text(contract, ids, mask) == "".join(f"{each}<|im_end|>" for each in answers)


@pytest.mark.parametrize("how", PARTED)
def test_trls_batch_and_the_control_train_the_marked_tokens_alone(
    how: str, contract: Contract, tmp_path: Path
) -> None:
    """TRL's own mask would have all tokens of a completion. A pair without masks stays as TRL collates it."""
    pair = PARTED[how].pair()
    scored = tokenize_pair(pair, contract)
    scored.chosen_logps = [-1.0]
    scored.rejected_logps = [-2.0]
    row = trl_row(scored, None)
    collate = DataCollatorForPreference(contract.tokenizer.pad_token_id)
    ordinary = {**row, "chosen_mask": None, "rejected_mask": None}
    batch = collate_masked(collate, [row, ordinary])
    expected = collate([row, ordinary])
    start = len(scored.prompt_ids)
    for i, mask in enumerate((scored.chosen_mask, scored.rejected_mask)):
        marks = batch["completion_mask"][2 * i].tolist()
        assert marks[start : start + len(mask)] == [*map(int, mask)]
        assert sum(marks) == sum(mask)
        plain = batch["completion_mask"][2 * i + 1]
        assert plain.tolist() == expected["completion_mask"][2 * i + 1].tolist()
    assert batch["input_ids"].tolist() == expected["input_ids"].tolist()

    out = StageDir(tmp_path, lambda metrics, step: None)
    rows = read_rows([example_of_chosen(pair)], contract, settings("recipe=tiny").sft, out)
    [control] = list(rows.train.dataset)
    assert control["input_ids"] == scored.prompt_ids + scored.chosen_ids
    marked = zip(scored.chosen_ids, scored.chosen_mask, strict=True)
    labels = [i if is_marked else IGNORED for i, is_marked in marked]
    assert control["labels"] == [IGNORED] * start + labels
