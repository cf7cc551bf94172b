"""A prompt that does not fit into the model's context beside its answer is asked of nobody, counted, and no zero."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import stages.eval
from stages import answer, reference, reward, sample
from stages.config.blocks.sampling import HF
from stages.config.choices import Split
from stages.config.errors import UserError
from stages.models.contract import load_or_derive_contract
from stages.models.loading import read_context_length
from stages.store.records import Candidate, Example, Pair, PairLogProbs, load, save
from stages.store.sealed_json import file_digest
from stages.store.workspace import StageDir
from tests.helpers import Chain, nodes, refused, settings
from tests.rows import work
from tests.stages.test_eval import evaluation_inputs
from tests.stages.test_sft import block, train

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


def sampled(chain: Chain, policy: Path, out: StageDir, **changes: Any) -> dict[str, Any]:
    return sample.run(
        replace(CFG.sample, **changes), {"policy": policy, "data": chain.folder("data")}, out
    )


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
    metrics = sampled(chain, policy, out, sampler=sampler)
    prompts = load(out / "prompts.parquet", Example)
    candidates = load(out / "candidates.parquet", Candidate)
    assert 0 < len(long) < 0.1 * len(tokens)
    assert {e.id for e in prompts} == {*tokens}, "other sources of a pool may be able to answer it"
    assert {c.prompt_id for c in candidates} == {*tokens} - long
    assert (
        len(candidates)
        == metrics["candidates"]
        == CFG.sample.candidates_per_prompt * (len(tokens) - len(long))
    )
    ((reason, count),) = metrics["prompts_dropped"].items()
    assert count == len(long) and f"sample.max_new_tokens={CFG.sample.max_new_tokens}" in reason
    assert named(out) == long
    [warning] = [w for w in out.warnings if f"{count} of {len(tokens)} prompts" in w]
    assert f"the longest has {max(tokens.values())}" in warning
    whole = {c.candidate_id for c in load(chain.folder("sample") / "candidates.parquet", Candidate)}
    if sampler == "hf":
        assert {c.candidate_id for c in candidates} < whole, "all others are drawn as before"


def test_a_prompt_that_the_template_refuses_has_no_candidate_and_is_counted(
    chain: Chain, tmp_path: Path
) -> None:
    data = shutil.copytree(chain.folder("data"), tmp_path / "data")
    examples = load(data / "examples.parquet", Example)
    refused_prompt = next(e for e in examples if e.split == Split.preference)
    refused_prompt.messages = [{"role": "tool", "content": "42"}, *refused_prompt.messages]
    save(data / "examples.parquet", examples, Example)
    policy = shortened(chain.folder("sft"), tmp_path / "sft", 512)
    file = policy / "model" / "chat_template.jinja"
    refusal = "{% if messages[0]['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    file.write_text(refusal + file.read_text())
    contract = json.loads((policy / "model" / "contract.json").read_text())
    contract["chat_template_sha256"] = file_digest(file)
    (policy / "model" / "contract.json").write_text(json.dumps(contract))
    out = work(tmp_path / "sample")
    metrics = sample.run(CFG.sample, {"policy": policy, "data": data}, out)
    assert named(out) == {refused_prompt.id}
    assert [*metrics["prompts_dropped"].values()] == [1] and "no tools" in str(
        metrics["prompts_dropped"]
    )


def test_too_many_stop_with_the_key_and_the_way_out(chain: Chain, tmp_path: Path) -> None:
    tokens = lengths(chain.folder("sft") / "model", prompts_of(chain, Split.preference))
    limit, _ = limit_beyond(tokens, len(tokens) // 4)
    policy = shortened(chain.folder("sft"), tmp_path / "sft", limit + CFG.sample.max_new_tokens)
    with pytest.raises(
        UserError, match=r"sample\.max_new_tokens=12.*sample\.max_dropped=0\.1 .*dropped\.jsonl"
    ):
        sampled(chain, policy, work(tmp_path / "sample"))
    assert sampled(chain, policy, work(tmp_path / "more"), max_dropped=0.5)["prompts_dropped"]
    with pytest.raises(UserError, match="No prompts remain"):
        sampled(chain, policy, work(tmp_path / "none"), max_new_tokens=limit + 12, max_dropped=1.0)
    demonstrations = HF(**vars(CFG.sample) | {"split": Split.sft, "max_new_tokens": 12})
    assert sample.make_decoding(demonstrations).block == "select", (
        "whose candidates become demonstrations has other keys"
    )


def test_a_prompt_too_long_for_one_model_counts_for_no_model(chain: Chain, tmp_path: Path) -> None:
    """SFT is asked in more tokens than the base is: one prompt fits the base alone."""
    prompts = [e for e in prompts_of(chain, Split.test) if e.checks]
    tokens = lengths(chain.folder("sft") / "model", prompts)
    limit, long = limit_beyond(tokens, 1)
    assert max(lengths(chain.folder("base") / "model", prompts).values()) <= limit
    inputs = evaluation_inputs(chain)
    for role in ("base", "sft", "policy"):
        out = work(tmp_path / f"answer_{role}")
        model = shortened(inputs[role], tmp_path / role, limit + CFG.answer.max_new_tokens)
        metrics = answer.run(CFG.answer, {"model": model, "data": chain.folder("data")}, out)
        assert sum(metrics["prompts_dropped"].values()) == (0 if role == "base" else len(long))
        assert metrics["prompts"] == len(load(out / "answers.parquet", Candidate))
        inputs |= {role: model, f"answer_{role}": out.path}
    out = work(tmp_path / "eval")
    metrics = stages.eval.run(nodes(chain.root)["eval"].config, inputs, out)
    before = json.loads((chain.folder("eval") / "results.json").read_text())
    results = json.loads((out / "results.json").read_text())
    assert metrics["prompts_left_out"] == len(long)
    assert any(f"{len(long)} prompts are too long " in w for w in out.warnings)

    def count(results):
        return sum(results["groups"][name]["prompts"] for name in ("seen tasks", "unseen tasks"))

    groups = {e.id: e.group for e in prompts}
    assert count(before) - count(results) == sum(groups[name] != "rephrased" for name in long)


def test_a_pair_too_long_for_the_reference_is_not_scored(chain: Chain, tmp_path: Path) -> None:
    pairs = load(chain.folder("pairs") / "pairs.parquet", Pair)
    scored = load(chain.folder("reference") / "logprobs.parquet", PairLogProbs)
    tokens = {p.id: len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) for p in scored}
    limit, long = limit_beyond(tokens, 2)
    folder = shortened(chain.folder("sft"), tmp_path / "sft", limit)
    out = work(tmp_path / "reference")
    metrics = reference.run(
        CFG.reference, {"reference": folder, "pairs": chain.folder("pairs")}, out
    )
    assert {p.id for p in load(out / "logprobs.parquet", PairLogProbs)} == {*tokens} - long
    assert metrics["refused"] == len(long) and named(out) == long
    cfg = replace(CFG.reward, max_dropped=1.0)
    inputs = {"policy": folder, "pairs": chain.folder("pairs"), "judged": chain.folder("label")}
    dropped = reward.run(cfg, inputs, work(tmp_path / "reward"))["pairs_dropped"]
    assert dropped == {f"longer than the {limit} tokens that the model reads": len(long)}
    assert len(pairs) == len(tokens)


def test_what_sft_reads_ends_at_the_context_too(chain: Chain, tmp_path: Path) -> None:
    base = shortened(chain.folder("base"), tmp_path / "base", 40)
    inputs = {"base": base, "data": chain.folder("data")}
    cfg = block(max_dropped=1.0)
    _, metrics, out = train(
        replace(cfg, runtime=replace(cfg.runtime, sample_tokens=30)), inputs, tmp_path / "out"
    )
    ((reason, count),) = metrics["rows_dropped"].items()
    assert reason == "longer than the 40 tokens that the model reads" and count > 0
    assert any("sft.runtime.sample_tokens=30" in w and "40 tokens" in w for w in out.warnings)
    assert read_context_length(out.path / "model") == 40


def test_an_answer_that_fills_the_context_is_refused_before_anything_is_built() -> None:
    """Also of the candidates that become demonstrations."""
    overrides = (
        "recipe=tiny",
        "data.tasks.open_sft=8",
        "sft.demonstrations=selected",
        "select.max_new_tokens=2048",
    )
    assert "select.max_new_tokens=2048" in refused(*overrides)
