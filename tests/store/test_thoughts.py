"""Thoughts: ten spellings are read alike, and what is judged is the answer behind them."""

import pytest

from stages.store.records import Check
from stages.store.thoughts import answer_behind, split_thought, thought_fault
from stages.tasks.checks import share_passed

SPELLINGS = [
    "<think>\nA thing.\n</think>\n\ntool",
    "<think></think>tool",
    "<thinking>A thing.</thinking> tool",
    "<thought>A thing.</thought>\ntool",
    "<reasoning>A thing.</reasoning>\ntool",
    "[THINK]A thing.[/THINK]tool",
    "◁think▷A thing.◁/think▷tool",
    "<seed:think>A thing.</seed:think>tool",
    "<|channel>thought\nA thing.<channel|>tool",
    "<|begin_of_thought|>A thing.<|end_of_thought|>\n<|begin_of_solution|>tool<|end_of_solution|>",
    "<|channel|>analysis<|message|>A thing.<|end|><|start|>assistant<|channel|>final<|message|>tool",
    "A thing.\n</think>\n\ntool",
]


@pytest.mark.parametrize("text", SPELLINGS)
def test_the_answer_behind_a_thought_is_judged(text: str) -> None:
    assert answer_behind(text) == "tool"
    assert share_passed([Check("equals", {"text": "tool"})], text) == 1


@pytest.mark.parametrize("text", ["tool", " tool ", "a < b", "I think so", "<p>tool</p>", ""])
def test_what_is_no_thought_stays(text: str) -> None:
    assert answer_behind(text) == text
    assert split_thought(text) is None


def test_a_thought_that_nothing_begins_is_refused_with_the_setting_that_leaves_it_out() -> None:
    answer = "Fruits by letter.\n</think>\n\nTry apple."
    assert "data.file.reasoning=strip" in thought_fault("Ask.", answer, answer)
    assert thought_fault("Ask.<think>\n", answer, answer) == ""
