"""Tests of tokens that reach from a prompt into its answer: both are tokenised apart, and the text stays the same."""

from functools import partial

import pytest
from transformers import PreTrainedTokenizerBase

from stages.models.contract import Contract
from stages.models.rendering import render, token_ids
from tests.models.piece_tokenizers import INST, LEGACY, NEVER, metaspace, pieces

NO_SPACE = INST.replace("' ' ~ m.content", "m.content")
# the first merges make "]▁", "]a" and "]N", within which no prompt can end
CROSSING = ["]▁", "]a", "]N"] * 9 + ["▁[INST]▁Name▁a▁fruit▁apple▁[/INST]▁Try"]
CONVERSATION = [
    {"role": "user", "content": "Try"},
    {"role": "assistant", "content": "Name a fruit"},
    {"role": "user", "content": "Name"},
    {"role": "assistant", "content": "apple"},
]


@pytest.mark.parametrize("template", [INST, NO_SPACE])
@pytest.mark.parametrize("rule", [LEGACY, NEVER, metaspace("first"), metaspace("always")], ids=str)
def test_an_answer_that_shares_a_token_with_its_prompt_is_tokenised_apart(
    rule: dict[str, object], template: str
) -> None:
    tokenizer: PreTrainedTokenizerBase = pieces(rule, template, CROSSING)
    contract = Contract(tokenizer, [tokenizer.eos_token_id])
    stretches = contract.stretches(CONVERSATION)
    text = render(tokenizer, CONVERSATION)
    whole = token_ids(tokenizer, text)
    prompt = contract.prompt(CONVERSATION[:1])
    assert whole[: len(prompt)] != prompt, "a token reaches over the border"
    [stretch] = stretches
    decode = partial(tokenizer.decode, skip_special_tokens=False)
    assert decode(stretch.ids) == decode(whole)
    assert stretch.ids[: len(prompt)] == prompt
    for answer, turn in zip(stretch.answers, CONVERSATION[1::2], strict=True):
        written = decode(stretch.ids[answer.start : answer.end])
        assert written.strip() == f"{turn['content']}</s>"
