"""A judged comparison: two models' answers side by side, labelled by whoever labels, and what follows from it."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stages.store.records import Candidate, Example, Judgement, load, stream
from tests.endpoints.servers import Model, running
from tests.helpers import Chain, build
from tests.labelers.judging import greater, is_probe, judging, shown_texts

TOY = "stages/tasks/toy_preferences.jsonl"
NO_TESTS = [
    f"data.tasks.{group}=0" for group in ("test", "unseen_phrasings", "unseen_tasks", "rephrased")
]


def longer(texts: dict[str, str]) -> str:
    return greater(len(texts["A"]), len(texts["B"]))


def judge_at(url: str) -> list[str]:
    return ["eval/judged=judge", f"eval.judged.endpoints=[{{base_url: '{url}', model: m}}]"]


def results(chain: Chain, *overrides: str) -> dict[str, Any]:
    """Build the evaluation under these overrides, and return its results."""
    build(chain.root, "stage=eval", *overrides)
    file = chain.root / "latest/eval/results.json"
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def own_prompts(tmp_path: Path, chain: Chain, count: int) -> str:
    """A file of requests without answers and checks: prompts that the tiny models can do something with."""
    data = stream(chain.folder("data") / "examples.parquet", Example)
    texts = [e.messages[-1]["content"] for e in data if e.split == "preference"]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts[:count]))
    return f"eval.judged.source=[{{path: {file}}}]"


def test_the_same_checkpoint_twice_is_even_and_nobody_is_asked(
    chain: Chain, tmp_path: Path
) -> None:
    model = chain.folder("sft") / "model"
    with running(Model(judging(longer))) as server:
        typed = ["align=none", "sft=none", f"model.path={model}", f"eval.judged.against=[{model}]"]
        evaluation = results(
            chain, *typed, *judge_at(server.url), *NO_TESTS, own_prompts(tmp_path, chain, 30)
        )
        assert server.requests == []
    row = evaluation["judged"]["other"]
    assert (row["win_rate"]["mean"], row["effect"]) == (0.5, "no measurable difference")
    assert row["alike"] == row["ties"] == row["prompts"] == 30
    assert evaluation["gives_verdict"] == ["judged"]


@pytest.mark.extended
def test_ones_own_prompts_are_all_asked_and_equal_answers_are_ties(
    chain: Chain, tmp_path: Path
) -> None:
    prompts = own_prompts(tmp_path, chain, 40)
    with running(Model(judging(longer))) as server:
        typed = [*judge_at(server.url), prompts]
        evaluation = results(chain, *typed)
        shown = [shown_texts(r) for r in server.requests if not is_probe(r)]
    assert all(texts["A"] != texts["B"] for texts in shown)  # nobody is asked about two copies
    row = evaluation["judged"]["sft"]
    candidates = load(chain.folder("versus_sft", *typed) / "candidates.parquet", Candidate)
    pairs = list(zip(candidates[::2], candidates[1::2], strict=True))
    assert len(pairs) == row["prompts"] == 40
    assert len({c.candidate_id for c in candidates}) == 80  # equal texts are two candidates
    assert row["alike"] == sum(a.stripped_text == b.stripped_text for a, b in pairs) > 20
    judged = chain.folder("judged_sft", *typed) / "judgements.parquet"
    better = Counter(vars(j).get(str(j.preference)) for j in load(judged, Judgement))
    wins = sum(better[policy.candidate_id] for policy, _ in pairs)
    assert row["win_rate"]["mean"] == pytest.approx((wins + better[None] / 2) / 40)
    [warning] = [w for w in chain.manifest("eval", *typed)["warnings"] if "eval.judged.source" in w]
    assert warning.startswith("40 prompts"), "they are those of the preference split"
    assert evaluation["gives_verdict"] == ["checks", "judged"]
    assert row["nulls"]["one constant answer"]["mean"] < 1


@pytest.mark.extended
def test_preferences_without_tasks_are_judged_on_the_prompts_of_held_out_pairs(
    chain: Chain,
) -> None:
    typed = [
        "label=dataset",
        f"label.path={TOY}",
        "pairs=all",
        *NO_TESTS,
        f"reward.source.path={TOY}",
    ]
    typed += ["eval/judged=reward_model", "eval.judged.against=[sft,reference]", "sft.epochs=0.5"]
    evaluation = results(chain, *typed)
    assert evaluation["judged"].keys() == {"sft", "reference"} and evaluation["primary"] is None
    assert evaluation["gives_verdict"] == ["learnt", "judged"]
    assert evaluation["shown_on"] == "the prompts of held-out pairs"
