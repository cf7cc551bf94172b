"""Tests of `sample.pool`: candidates from several sources, each in its own node, judged together."""

import json
from collections import Counter
from pathlib import Path

import pytest

from stages.models.contract import load_contract
from stages.store.records import Candidate, Example, Pair, load
from tests.endpoints.servers import Model, Request, running
from tests.helpers import Chain, build, nodes, refused

pytest.importorskip("openai")


def right(chain: Chain) -> list[Example]:
    """Return the sampled prompts with their reference answers."""
    prompt_ids = {p.id for p in load(chain.folder("sample") / "prompts.parquet", Example)}
    examples = load(chain.folder("data") / "examples.parquet", Example)
    return sorted((e for e in examples if e.id in prompt_ids), key=lambda e: e.id)


def written(file: Path, rows: list[dict]) -> Path:
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def test_a_model_a_checkpoint_an_endpoint_and_a_file_are_one_pool(
    chain: Chain, tmp_path: Path
) -> None:
    prompts = right(chain)
    own = [
        {"messages": p.messages, "completions": [str(p.reference), "my own"]} for p in prompts[:30]
    ]
    candidate_file = written(tmp_path / "mine.jsonl", own)
    checkpoint = chain.folder("sft") / "model"

    def says(request: Request) -> str:
        return f"words {request['seed'] % 5}"

    with running(Model(says)) as server:
        endpoint = f"{{base_url: '{server.url}', model: writer}}"
        line = (
            f"sample.pool=[{{n: 2}}, {{model: {checkpoint}, n: 1, temperature: 0.5}}, {{model: base, n: 1}}, "
            f"{{endpoint: {endpoint}, n: 1}}, {{file: {candidate_file}}}]",
        )
        build(chain.root, "stage=pairs", *line)
        assert len(server.requests) == len(prompts)
    pool = chain.folder("pool", *line)
    candidates = load(pool / "candidates.parquet", Candidate)
    counted = Counter(c.policy for c in candidates)
    assert counted["mine.jsonl"] == 60 and counted["writer"] == len(prompts)
    # The checkpoint is a copy of the SFT model, so it has the policy's tokens. A base model has no tokenizer contract.
    assert {c.policy for c in candidates if c.token_ids is not None} == {"policy", "model"}
    assert all((c.tokenizer is None) == (c.token_ids is None) for c in candidates)
    texts = Counter(c.text for c in candidates if c.policy == "mine.jsonl")
    contract = load_contract(checkpoint)
    # all lengths are with the end of turn, or pairs of several sources compare unlike ones
    for c in candidates:
        assert c.n_tokens == (
            len(c.token_ids)
            if c.token_ids
            else contract.length(c.text) + (c.finish_reason == "stop")
        )
    assert texts["my own"] == 30 and texts == Counter(t for row in own for t in row["completions"])

    pairs = load(chain.folder("pairs", *line) / "pairs.parquet", Pair)
    by_id = {c.candidate_id: c.policy for c in candidates}
    assert all(
        (by_id[p.chosen_id], by_id[p.rejected_id]) == (p.chosen_policy, p.rejected_policy)
        for p in pairs
    )
    assert "mine.jsonl" in {p.chosen_policy for p in pairs}


def test_a_source_is_what_it_holds_and_the_others_stay(chain: Chain, tmp_path: Path) -> None:
    file = written(tmp_path / "mine.jsonl", [{"prompt": "p", "completion": "a"}])

    def fingerprints_of(*members: str) -> dict[str, str]:
        return {
            name: n.fingerprint
            for name, n in nodes(chain.root, f"sample.pool=[{', '.join(members)}]").items()
        }

    before = fingerprints_of("{n: 2}", f"{{file: {file}}}")
    written(file, [{"prompt": "p", "completion": "b"}])
    after = fingerprints_of("{n: 2}", f"{{file: {file}}}")
    assert {name for name in before if before[name] != after[name]} >= {
        "source_2",
        "pool",
        "label",
        "pairs",
        "dpo",
    }
    assert all(before[name] == after[name] for name in ("sft", "source_1", "answer_sft"))
    swapped = fingerprints_of(f"{{file: {file}}}", "{n: 2}")
    assert swapped["source_2"] == after["source_1"], "whatever its place"
    plain = {name: n.fingerprint for name, n in nodes(chain.root).items()}
    assert fingerprints_of() == plain, "an empty pool is none"
    assert fingerprints_of("{n: 4}")["source_1"] == plain["sample"]


def test_rounds_sample_anew_from_their_own_policies(chain: Chain) -> None:
    node_by_name = nodes(
        chain.root, "rounds=2", "sample.pool=[{n: 2}, {model: previous, n: 1}, {model: sft, n: 1}]"
    )
    policy_by_source = {
        name: n.inputs["policy"] for name, n in node_by_name.items() if name.startswith("source")
    }
    assert [policy_by_source[f"source_{i}_1"].stage for i in (1, 2, 3)] == ["sft", "base", "sft"]
    assert [policy_by_source[f"source_{i}"].stage for i in (1, 2, 3)] == ["dpo", "sft", "sft"]
    assert node_by_name["label"].inputs["pool"] is node_by_name["pool"]
    assert node_by_name["dpo"].roots["base"] == node_by_name["base"].fingerprint


@pytest.mark.parametrize(
    ("overrides", "pattern"),
    [
        (("sample.pool=[{model: sft, file: f.jsonl}]",), "sample.pool[0] names model and file"),
        (("sample.pool=[{n: 2}, {n: 2}]",), "sample.pool[1] repeats an earlier source"),
        (("sample.pool=[{file: f.jsonl, n: 2}]",), "sample.pool[0].n is about sampling"),
        (
            ("sample.pool=[{endpoint: {model: writer}}]",),
            "sample.pool[0].endpoint.base_url is not an address",
        ),
        (("sample.pool=[{n: 1}]", "stage=pairs"), "sample.pool draws 1: a"),
        (
            ("sample.pool=[{model: /no/such/folder}]",),
            "sample.pool[0].model=/no/such/folder: there is no such file",
        ),
        (
            ("sample.pool=[{file: none.jsonl}, {n: 2}]",),
            "sample.pool[0].file=none.jsonl: there is no such file",
        ),
    ],
)
def test_what_is_no_source_is_refused_before_anything_is_built(
    overrides: tuple[str, ...], pattern: str
) -> None:
    assert refused("recipe=tiny", *overrides).startswith(pattern)
