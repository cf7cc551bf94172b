"""The prompts that models are asked in an evaluation: of a split of the data, or of held-out pairs."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from stages.store.records import Example, Pair, stream

HELD_OUT = "held-out pairs"  # the task of their prompts
# Sets of prompts that models are asked, by the name of their answers: the input that has them.
ASKED = {"answer": "data", "answer_outside": "outside", "answer_held_out": "pairs", "answer_judged": "judged_prompts"}


def prompts_behind(name: str, inputs: Mapping[str, Path]) -> Iterator[Example]:
    """The prompts of a set that an evaluation's `inputs` have answers to."""
    source = ASKED[name]
    return prompts_of({"pairs" if source == "pairs" else "data": inputs[source]})


def prompts_of(inputs: Mapping[str, Path], split: str | None = None) -> Iterator[Example]:
    """The prompts of `data` that are in a split, or in any; of `pairs` those that are held out from training, each
    once, with the first chosen answer as its reference."""
    if "pairs" not in inputs:
        examples = stream(inputs["data"] / "examples.parquet", Example)
        yield from (e for e in examples if split in (None, e.split))
        return
    seen = set[str]()
    for pair in stream(inputs["pairs"] / "pairs.parquet", Pair):
        if pair.split == "validation" and pair.prompt_id not in seen:
            seen.add(pair.prompt_id)
            yield Example(pair.prompt_id, pair.prompt, pair.chosen[0]["content"], HELD_OUT, HELD_OUT, pair.split)
