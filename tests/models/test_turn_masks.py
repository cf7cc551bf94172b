"""Token ids and masks of pairs of several turns, composed by hand from each turn's text and the template's marks: 20
pairs of conversations, five with each of four templates."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from transformers import PreTrainedTokenizerBase
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
from tests.models.test_contract import CHATML, byte_level, establish, with_bos
from tests.stages.test_true_bases import gemma3, llama3

Pieces = list[tuple[str, bool]]  # pieces of a rendered conversation, and True for the trained ones
SPECIAL = {"<|im_start|>", "<|im_end|>", "<s>", "</s>", "<|begin_of_text|>", "<|start_header_id|>"}
SPECIAL |= {"<|end_header_id|>", "<|eot_id|>", "<bos>", "<start_of_turn>", "<end_of_turn>"}


def chatml(turn: Message, trained: bool) -> Pieces:
    if turn["role"] != "assistant":
        return [
            ("<|im_start|>", False),
            (f"{turn['role']}\n{turn['content']}", False),
            ("<|im_end|>", False),
            LINE,
        ]
    answer = turn["content"].rstrip()
    start = [("<|im_start|>", False), ("assistant\n", False)]
    return [*start, (answer, trained), ("<|im_end|>", trained), LINE]


def llama3_turn(turn: Message, trained: bool) -> Pieces:
    role, text = turn["role"], turn["content"].strip()
    start = [("<|start_header_id|>", False), (role, False), ("<|end_header_id|>", False)]
    if role == "assistant":
        answer = turn["content"].rstrip()
        return [*start, ("\n\n", False), (answer, trained), ("<|eot_id|>", trained)]
    return [*start, (f"\n\n{text}", False), ("<|eot_id|>", False)]


def zephyr(turn: Message, trained: bool) -> Pieces:
    if turn["role"] != "assistant":
        return [(f"<|{turn['role']}|>\n{turn['content']}", False), ("</s>", False), LINE]
    return [
        ("<|assistant|>\n", False),
        (turn["content"].rstrip(), trained),
        ("</s>", trained),
        LINE,
    ]


def gemma(turn: Message, trained: bool) -> Pieces:
    text = turn["content"].strip()
    if turn["role"] == "system":
        return []  # `compose` puts it into the user's turn
    if turn["role"] == "user":
        return [
            ("<start_of_turn>", False),
            (f"user\n{text}", False),
            ("<end_of_turn>", False),
            LINE,
        ]
    start = [("<start_of_turn>", False), ("model\n", False)]
    return [*start, (turn["content"].rstrip(), trained), ("<end_of_turn>", trained), LINE]


LINE = ("\n", False)


class Case(NamedTuple):
    """A template's tokenizer, its first token, the pieces of a turn, and the pieces before an answer."""

    tokenizer: Callable[[Path], PreTrainedTokenizerBase]
    first: Pieces
    turn: Callable[[Message, bool], Pieces]
    opening: int  # of an answer's pieces, so many come before its text


CASES = {
    "chatml": Case(lambda folder: byte_level(CHATML, eos_token="<|endoftext|>"), [], chatml, 2),
    "llama3": Case(llama3, [("<|begin_of_text|>", False)], llama3_turn, 4),
    "zephyr": Case(lambda folder: with_bos(), [("<s>", False)], zephyr, 1),
    "gemma": Case(gemma3, [("<bos>", False)], gemma, 2),
}
CONTRACTS: dict[str, Contract] = {}


@pytest.fixture(scope="module", params=CASES)
def template(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    name = request.param
    if name not in CONTRACTS:
        CONTRACTS[name] = establish(CASES[name].tokenizer(tmp_path_factory.mktemp(name)), name)
    return name


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


PARTED = {
    "at the first answer": Parted(
        [user("Is a kite a toy?")],
        [],
        [assistant("It is a toy."), user("And a cup?"), assistant("No.")],
        [assistant("Perhaps"), user("Say yes or no!"), assistant("Yes, a cup is a toy.")],
    ),
    "with other numbers of turns": Parted(
        [user("Name a colour.")],
        [],
        [assistant("Blue, as the sea.")],
        [assistant("Cup"), user("A colour!"), assistant("Kite"), user("No."), assistant("Green")],
    ),
    "at the user's second turn": Parted(
        [user("Positive or negative?")],
        [assistant("Of which text?")],
        [user("I love the garden."), assistant("positive")],
        [
            user("I love it"),
            assistant("Positive or negative?"),
            user("the old one"),
            assistant("negative"),
        ],
    ),
    "after a system message and an answer": Parted(
        [
            {"role": "system", "content": "Be brief."},
            user("2 + 2?"),
            assistant("4"),
            user("Größer als 3? {yes/no}"),
        ],
        [],
        [assistant("- ja\n- 日本"), user("Why?"), assistant("4 > 3")],
        [assistant("no ✓"), user("Sure?"), assistant("no, not\n\nsure 🙂")],
    ),
    "at the user's third turn": Parted(
        [user("a"), assistant("b"), user("c\n")],
        [assistant(" d ")],
        [user("e"), assistant("\nf\n")],
        [user("e "), assistant("g h"), user("i"), assistant("j")],
    ),
}


def compose(case: Case, turns: list[tuple[Message, bool]]) -> Pieces:
    """Return the pieces of a conversation. Gemma's system message leads the text of the first user turn."""
    pieces, lead = [*case.first], ""
    for turn, trained in turns:
        if case.turn is gemma and turn["role"] == "system":
            lead = turn["content"].strip() + "\n\n"
        elif lead:
            pieces += case.turn(user(lead + turn["content"].strip()), False)
            lead = ""
        else:
            pieces += case.turn(turn, trained)
    return pieces


def tokens(contract: Contract, pieces: Pieces) -> tuple[list[int], list[bool]]:
    """Return the token ids of each piece alone, and the mask."""
    ids, mask = list[int](), list[bool]()
    for text, trained in pieces:
        tokenizer = contract.tokenizer
        new = [tokenizer.convert_tokens_to_ids(text)] if text in SPECIAL else plain(contract, text)
        ids += new
        mask += [trained] * len(new)
    return ids, mask


def plain(contract: Contract, text: str) -> list[int]:
    return contract.tokenizer(text, add_special_tokens=False).input_ids


def expected(
    name: str, parted: Parted, side: list[Message]
) -> tuple[list[int], list[int], list[bool]]:
    """Return the ids of the prompt, and ids and mask of the completion, composed by hand."""
    case, contract = CASES[name], CONTRACTS[name]
    before = compose(case, [(turn, False) for turn in parted.prompt])
    opening = case.turn(assistant("x"), False)[: case.opening]
    prompt_ids, _ = tokens(contract, before + opening)
    shared = [(turn, False) for turn in (*parted.prompt, *parted.answer)]
    pieces = compose(case, shared + [(turn, turn["role"] == "assistant") for turn in side])
    while not pieces[-1][1]:
        pieces.pop()  # a conversation ends with its last end of turn
    ids, mask = tokens(contract, pieces)
    assert ids[: len(prompt_ids)] == prompt_ids
    return prompt_ids, ids[len(prompt_ids) :], mask[len(prompt_ids) :]


def pair(parted: Parted) -> Pair:
    sides = [[*parted.answer, *side] for side in (parted.chosen, parted.rejected)]
    return Pair("p", "q", parted.prompt, *sides, None, "dataset", "all", "a", "b", "train")


@pytest.mark.parametrize("how", PARTED)
def test_ids_and_masks_are_those_composed_by_hand(template: str, how: str) -> None:
    parted, contract = PARTED[how], CONTRACTS[template]
    scored = tokenize_pair(pair(parted), contract)
    prompt_ids, chosen_ids, chosen_mask = expected(template, parted, parted.chosen)
    _, rejected_ids, rejected_mask = expected(template, parted, parted.rejected)
    assert (scored.prompt_ids, scored.chosen_ids, scored.rejected_ids) == (
        prompt_ids,
        chosen_ids,
        rejected_ids,
    )
    assert (scored.chosen_mask, scored.rejected_mask) == (chosen_mask, rejected_mask)
    end = contract.tokenizer.eos_token
    for ids, mask, side in (
        (chosen_ids, chosen_mask, parted.chosen),
        (rejected_ids, rejected_mask, parted.rejected),
    ):
        trained = contract.tokenizer.decode(
            [i for i, marked in zip(ids, mask, strict=True) if marked]
        )
        assert trained == "".join(
            turn["content"].rstrip() + end for turn in side if turn["role"] == "assistant"
        )


@pytest.mark.parametrize("how", PARTED)
def test_trls_batch_scores_the_marked_tokens_alone(template: str, how: str) -> None:
    """TRL's own mask would have all tokens of a completion. A pair without masks stays as TRL collates it."""
    parted, contract = PARTED[how], CONTRACTS[template]
    scored = tokenize_pair(pair(parted), contract)
    scored.chosen_logps, scored.rejected_logps = [-1.0], [-2.0]
    row, collate = trl_row(scored, None), DataCollatorForPreference(contract.tokenizer.pad_token_id)
    ordinary = {**row, "chosen_mask": None, "rejected_mask": None}
    batch, plain_batch = collate_masked(collate, [row, ordinary]), collate([row, ordinary])
    start = len(scored.prompt_ids)
    for i, (ids, mask) in enumerate(
        ((scored.chosen_ids, scored.chosen_mask), (scored.rejected_ids, scored.rejected_mask))
    ):
        marks = batch["completion_mask"][2 * i].tolist()
        assert marks[:start] == [0] * start
        assert marks[start : start + len(ids)] == [int(marked) for marked in mask or []]
        assert not any(marks[start + len(ids) :])
        assert (
            batch["completion_mask"][2 * i + 1].tolist()
            == plain_batch["completion_mask"][2 * i + 1].tolist()
        )
    assert batch["input_ids"].tolist() == plain_batch["input_ids"].tolist()


@pytest.mark.parametrize("how", PARTED)
def test_the_control_trains_the_same_tokens_of_chosen(
    template: str, how: str, tmp_path: Path
) -> None:
    parted, contract = PARTED[how], CONTRACTS[template]
    out = StageDir(tmp_path, lambda metrics, step: None)
    rows = read_rows([example_of_chosen(pair(parted))], contract, settings("recipe=tiny").sft, out)
    [row] = list(rows.train.dataset)
    prompt_ids, ids, mask = expected(template, parted, parted.chosen)
    assert row["input_ids"] == prompt_ids + ids
    labels = [i if marked else IGNORED for i, marked in zip(ids, mask, strict=True)]
    assert row["labels"] == [IGNORED] * len(prompt_ids) + labels
