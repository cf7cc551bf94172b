"""The prompts that models answer in an evaluation: from a split of the data, or from held-out pairs."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from stages.store.records import Example, Pair, stream
from stages.store.single_completions import UnpairedPreference

# the task name that prompts of held-out pairs, or of single completions, get
HELD_OUT = "held-out pairs"
# For each set of answers, the input role that holds the prompts.
PROMPT_SOURCES = {"answer": "data", "answer_outside": "outside"}
PROMPT_SOURCES |= {"answer_held_out": "pairs", "answer_judged": "judged_prompts"}


def prompts_of_set(name: str, inputs: Mapping[str, Path]) -> Iterator[Example]:
    """Read the prompts that belong to one set of answers among an evaluation's `inputs`."""
    source = PROMPT_SOURCES[name]
    if source == "pairs" and source not in inputs:
        source = "unpaired"
    return read_prompts({source if source in ("pairs", "unpaired") else "data": inputs[source]})


def read_prompts(inputs: Mapping[str, Path], split: str | None = None) -> Iterator[Example]:
    """Read the prompts of `data` in one split (None: in all), or of `pairs` or `unpaired` the prompts held out from
    training. A held-out prompt occurs once, and its reference is the first chosen or desirable answer, if any."""
    if "unpaired" in inputs:
        held_out = dict[str, Example]()
        for row in stream(inputs["unpaired"] / "unpaired.parquet", UnpairedPreference):
            if row.split == "validation":
                example = Example(row.prompt_id, row.prompt, None, HELD_OUT, HELD_OUT, row.split)
                example = held_out.setdefault(row.prompt_id, example)
                example.reference = example.reference or (
                    row.completion[0]["content"] if row.label else None
                )
        yield from held_out.values()
        return
    if "pairs" not in inputs:
        yield from (
            e
            for e in stream(inputs["data"] / "examples.parquet", Example)
            if split in (None, e.split)
        )
        return
    seen = set[str]()
    for pair in stream(inputs["pairs"] / "pairs.parquet", Pair):
        if pair.split == "validation" and pair.prompt_id not in seen:
            seen.add(pair.prompt_id)
            yield Example(
                pair.prompt_id,
                pair.prompt,
                pair.chosen[0]["content"],
                HELD_OUT,
                HELD_OUT,
                pair.split,
            )
