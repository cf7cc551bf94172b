"""The prompts that models answer in an evaluation: from a split of the data, or from held-out pairs."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from stages.store.records import Example, Pair, stream

HELD_OUT = "held-out pairs"  # the task name that prompts of held-out pairs get
# For each set of answers, the input role that holds the prompts.
PROMPT_SOURCES = {"answer": "data", "answer_outside": "outside"}
PROMPT_SOURCES |= {"answer_held_out": "pairs", "answer_judged": "judged_prompts"}


def prompts_of_set(name: str, inputs: Mapping[str, Path]) -> Iterator[Example]:
    """Read the prompts that belong to one set of answers among an evaluation's `inputs`."""
    source = PROMPT_SOURCES[name]
    return read_prompts({"pairs" if source == "pairs" else "data": inputs[source]})


def read_prompts(inputs: Mapping[str, Path], split: str | None = None) -> Iterator[Example]:
    """Read the prompts of `data` in one split (None: in all), or of `pairs` the prompts held out from training. A
    held-out prompt occurs once, and its reference is the first chosen answer."""
    if "pairs" not in inputs:
        examples = stream(inputs["data"] / "examples.parquet", Example)
        yield from (e for e in examples if split in (None, e.split))
        return
    seen = set[str]()
    for pair in stream(inputs["pairs"] / "pairs.parquet", Pair):
        if pair.split == "validation" and pair.prompt_id not in seen:
            seen.add(pair.prompt_id)
            yield Example(pair.prompt_id, pair.prompt, pair.chosen[0]["content"], HELD_OUT, HELD_OUT, pair.split)
