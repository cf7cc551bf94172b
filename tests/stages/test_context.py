"""A prompt that does not fit into the model's context beside its answer is asked of nobody, counted, and no zero."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import stages.eval
from stages import answer, sample
from stages.config.choices import Split
from stages.models.contract import load_or_derive_contract
from stages.store.records import Candidate, Example, load
from stages.store.workspace import StageDir
from tests.helpers import Chain, nodes, settings
from tests.rows import work
from tests.stages.test_eval import evaluation_inputs

CFG = settings("recipe=tiny")


def shortened(folder: Path, copy: Path, most: int) -> Path:
    """A copy of a node whose model reads so many tokens."""
    shutil.copytree(folder, copy)
    config = json.loads((copy / "model" / "config.json").read_text())
    (copy / "model" / "config.json").write_text(
        json.dumps(config | {"max_position_embeddings": most})
    )
    return copy


def lengths(model: Path, prompts: Sequence[Example]) -> dict[str, int]:
    """The tokens of every prompt, as the model is asked."""
    contract = load_or_derive_contract(model)
    return {e.id: len(contract.prompt(e.messages)) for e in prompts}


def prompts_of(chain: Chain, split: Split) -> list[Example]:
    return [e for e in load(chain.folder("data") / "examples.parquet", Example) if e.split == split]


def limit_beyond(tokens: dict[str, int], too_long: int) -> tuple[int, set[str]]:
    """The highest number of tokens that `too_long` prompts or more exceed, and these."""
    limit = sorted(tokens.values())[-too_long] - 1
    return limit, {name for name, count in tokens.items() if count > limit}


def named(out: StageDir) -> set[str]:
    return {json.loads(line)["id"] for line in (out / "dropped.jsonl").read_text().splitlines()}


@pytest.mark.parametrize("sampler", ["hf", "generate"])
def test_a_prompt_that_leaves_no_room_for_its_answer_has_no_candidate_and_is_counted(
    sampler: str, chain: Chain, tmp_path: Path
) -> None:
    tokens = lengths(chain.folder("sft") / "model", prompts_of(chain, Split.preference))
    limit, long = limit_beyond(tokens, 2)
    policy = shortened(chain.folder("sft"), tmp_path / "sft", limit + CFG.sample.max_new_tokens)
    out = work(tmp_path / "sample")
    inputs = {"policy": policy, "data": chain.folder("data")}
    metrics = sample.run(replace(CFG.sample, sampler=sampler), inputs, out)
    prompts = load(out / "prompts.parquet", Example)
    candidates = load(out / "candidates.parquet", Candidate)
    assert {e.id for e in prompts} == {*tokens}, "other sources of a pool may be able to answer it"
    assert {c.prompt_id for c in candidates} == {*tokens} - long
    [(reason, count)] = metrics["prompts_dropped"].items()
    assert count == len(long)
    assert "sample.max_new_tokens=" in reason
    assert named(out) == long
    whole = {c.candidate_id for c in load(chain.folder("sample") / "candidates.parquet", Candidate)}
    if sampler == "hf":
        assert {c.candidate_id for c in candidates} < whole, "all others are drawn as before"


def test_a_prompt_too_long_for_one_model_counts_for_no_model(chain: Chain, tmp_path: Path) -> None:
    """SFT is asked in more tokens than the base is: one prompt fits the base alone."""
    prompts = [e for e in prompts_of(chain, Split.test) if e.checks]
    tokens = lengths(chain.folder("sft") / "model", prompts)
    limit, long = limit_beyond(tokens, 1)
    assert max(lengths(chain.folder("base") / "model", prompts).values()) <= limit
    inputs = evaluation_inputs(chain)
    for role, refused in (("base", 0), ("sft", len(long)), ("policy", len(long))):
        out = work(tmp_path / f"answer_{role}")
        model = shortened(inputs[role], tmp_path / role, limit + CFG.answer.max_new_tokens)
        metrics = answer.run(CFG.answer, {"model": model, "data": chain.folder("data")}, out)
        assert sum(metrics["prompts_dropped"].values()) == refused
        inputs |= {role: model, f"answer_{role}": out.path}
    out = work(tmp_path / "eval")
    metrics = stages.eval.run(nodes(chain.root)["eval"].config, inputs, out)
    results = json.loads((out / "results.json").read_text())
    assert metrics["prompts_left_out"] == len(long)
    counts = {name: group["prompts"] for name, group in results["groups"].items()}
    asked = [e for e in prompts if e.group != "rephrased" and e.id not in long]
    assert counts["seen tasks"] + counts["unseen tasks"] == len(asked)
