"""The evaluation cannot flatter: intervals know of families, and the verdict of nothing but the primary endpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stages import contract
from stages.evaluate import verdict
from stages.models import load_model
from stages.records import Candidate, Example, load
from stages.statistics import interval, resampled_rates
from tests.helpers import Chain


def test_the_same_answers_twice_differ_by_exactly_nothing() -> None:
    rng = np.random.default_rng(0)
    column = rng.integers(0, 2, 200)
    draws = resampled_rates(np.stack([column, column], 1), [str(i % 7) for i in range(200)], 500, rng)
    assert np.array_equal(draws[:, 0], draws[:, 1])


def test_the_mean_of_the_draws_is_the_rate() -> None:
    rng = np.random.default_rng(0)
    outcomes = (rng.random((600, 2)) < [0.3, 0.6]).astype(float)
    draws = resampled_rates(outcomes, [str(i % 12) for i in range(600)], 4000, rng)
    assert draws.mean(0) == pytest.approx(outcomes.mean(0), abs=0.005)


def test_family_effects_widen_the_interval() -> None:
    """Without an effect on average but with one of 10 points per family, a verdict is rare although prompts abound."""
    rng = np.random.default_rng(1)
    families = [str(i % 14) for i in range(14 * 60)]
    false, trials = 0, 120
    for _ in range(trials):
        effect = rng.normal(0, 0.1, 14)
        rate = np.full(14, 0.5)
        a = rng.random(len(families)) < np.array([rate[int(f)] for f in families])
        b = rng.random(len(families)) < np.array([rate[int(f)] + effect[int(f)] for f in families])
        draws = resampled_rates(np.stack([a, b], 1).astype(float), families, 400, rng)
        found = interval(b.mean() - a.mean(), draws[:, 1] - draws[:, 0], 0.95)
        false += found.low > 0 or found.high < 0
    # A true rate of 7.5% (14 families; a bootstrap's intervals are a little short) exceeds 16 of 120 with p < 0.01.
    assert false <= 16


@pytest.mark.parametrize(
    ("low", "high", "word"), [(0.01, 0.1, "helped"), (-0.1, -0.01, "hurt"), (-0.02, 0.1, "made no measurable change")]
)
def test_the_verdict_follows_the_interval(low: float, high: float, word: str) -> None:
    primary = {"dpo-sft": {"mean": (low + high) / 2, "low": low, "high": high}, "prompts": 900, "tasks": 20}
    assert verdict(primary).startswith(f"DPO {word}: ")
    assert "Fewer" not in verdict(primary)
    assert "Fewer than 800 prompts" in verdict({**primary, "prompts": 100})


def test_results_hold_what_the_contract_promises(chain: Chain) -> None:
    metrics = chain.manifest("eval")["metrics"]
    assert set(metrics["pass_rate"]) == set(metrics["unseen_tasks"]) == {"base", "sft", "dpo"}
    for name in ("sft-base", "dpo-sft"):
        assert set(metrics["delta"][name]) == {"mean", "low", "high"}
    assert metrics["verdict"].startswith("DPO ")
    results = json.loads((chain.folder("eval") / "results.json").read_text())
    assert list(results["groups"]) == ["seen tasks", "unseen phrasings", "unseen tasks"]
    assert results["groups"]["unseen tasks"]["note"] == "too few tasks to say"
    assert results["groups"]["seen tasks"]["prompts"] == 32
    rates = {task: row["sft"]["mean"] for task, row in results["tasks"].items()}
    assert set(rates) == {"sentiment", "classify_noun", "odd_one_out"}


def test_kl_is_that_of_the_two_models_on_the_policys_answers(chain: Chain) -> None:
    metrics = chain.manifest("eval")["metrics"]["kl"]
    examples = {e.id: e for e in load(chain.folder("data") / "examples.parquet", Example)}
    answers = {a.prompt_id: a for a in load(chain.folder("answer_dpo") / "answers.parquet", Candidate)}
    terms = contract.load(chain.folder("sft") / "model")
    policy, reference = load_model(chain.folder("dpo") / "model"), load_model(chain.folder("sft") / "model")
    total = tokens = 0.0
    for prompt_id in sorted(answers)[: metrics["answers"]]:
        prompt, answer = terms.prompt(examples[prompt_id].messages), answers[prompt_id].token_ids
        with torch.no_grad():
            p, q = (m(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1] for m in (policy, reference))
        total += float(
            torch.nn.functional.kl_div(q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="sum")
        )
        tokens += len(answer)
    assert metrics["per_token"] == pytest.approx(total / tokens, rel=1e-4)
    assert metrics["per_token"] > 0


def test_the_base_is_asked_in_a_form_that_suits_it(built: Path) -> None:
    folder = next(p for p in (built / "answer").iterdir() if "Continuation" in (p / "manifest.json").read_text())
    answers = load(folder / "answers.parquet", Candidate)
    assert not any("<|im_" in a.text for a in answers)
