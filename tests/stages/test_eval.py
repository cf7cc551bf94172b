"""The evaluation cannot flatter: intervals know of families, and the verdict of nothing but the primary endpoint."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.eval import run
from stages.evaluation.checked import contains_words
from stages.evaluation.claims import endings_clause, verdict
from stages.evaluation.outcomes import (
    Table,
    consistency,
    matched,
    means_and_differences,
    rate_row,
)
from stages.evaluation.results import Consistency, Group
from stages.models.contract import load_contract
from stages.models.loading import load_model
from stages.store.records import Candidate, Example, load
from stages.store.splits import draw_order
from stages.store.store import Store
from tests.evaluation.made_results import group, results
from tests.helpers import Chain, build, nodes, settings
from tests.rows import work
from tests.stages.coin import tossed, turned


def evaluation_inputs(chain: Chain, *overrides: str) -> dict[str, Path]:
    """The folders that the chain's evaluation was made of, by role."""
    return {
        role: Store(chain.root).folder(node)
        for role, node in nodes(chain.root, *overrides)["eval"].inputs.items()
    }


def evaluated(chain: Chain, policy: Path, answers: Path, folder: Path) -> dict[str, Any]:
    """The results of an evaluation in which `policy` stands where DPO's model does."""
    inputs = evaluation_inputs(chain) | {"policy": policy, "answer_policy": answers}
    run(nodes(chain.root)["eval"].config, inputs, work(folder))
    return json.loads((folder / "results.json").read_text())


def test_the_same_checkpoint_twice_gives_exactly_nothing(chain: Chain, tmp_path: Path) -> None:
    results = evaluated(chain, chain.folder("sft"), chain.folder("answer_sft"), tmp_path / "eval")
    divided = [*results["kinds"].values(), *results["tasks"].values()]
    for table in (results["groups"], *divided, results["matched"]["views"]):
        for row in table.values():
            mean, low, high = row["policy-sft"].values()
            assert mean == 0 and low == -high and 0 < high < 1, (
                "so many alike say how many others may differ"
            )
    assert results["references"]["policy-sft"] == {"mean": 0, "low": 0, "high": 0}
    assert results["kl"]["policy"]["per_token"] == results["matched"]["gain"] == 0
    assert results["verdict"].startswith("DPO made no measurable change: ")


# As many pairs, steps and test prompts as show what DPO gains on the tiny model
ENOUGH = (
    "dpo.epochs=2",
    "data.tasks.preference=300",
    "data.tasks.test=500",
    "data.tasks.unseen_phrasings=0",
    "data.tasks.unseen_tasks=0",
    "data.tasks.rephrased=0",
)


@pytest.mark.extended
def test_dpo_helps_on_pairs_and_never_on_those_that_a_coin_has_turned(
    chain: Chain, tmp_path: Path
) -> None:
    """Real training on the same pairs, as they are and with chosen and rejected changing places at random."""
    build(chain.root, "stage=eval", *ENOUGH)
    results = json.loads((chain.folder("eval", *ENOUGH) / "results.json").read_text())
    assert results["verdict"].startswith("DPO helped"), "so many prompts show an effect"

    cfg = settings("recipe=tiny", *ENOUGH)
    cfg.eval = nodes(chain.root, *ENOUGH)["eval"].config
    inputs = evaluation_inputs(chain, *ENOUGH)
    contract = load_contract(chain.folder("sft", *ENOUGH) / "model")
    original = chain.folder("pairs", *ENOUGH), chain.folder("reference", *ENOUGH), contract
    for seed in range(2):
        folder = tmp_path / str(seed)
        results = tossed(cfg, inputs, turned(*original, folder, seed), folder)
        assert results["kl"]["policy"]["per_token"] > 0, "it did train"
        assert "DPO helped" not in results["verdict"]


TITLES = {"base": "Base", "sft": "SFT", "policy": "DPO"}


def table(groups: list[str], passed: Any, stopped: Any, tokens: Any) -> Table:
    prompts = [
        Example(str(i), [], "", "s", f"t{i % 3}", "test", group=g, request=f"r{i // 2}")
        for i, g in enumerate(groups)
    ]
    return Table(
        ["base", "sft", "policy"],
        prompts,
        np.array(passed, float),
        np.array(tokens, float),
        np.array(stopped, float),
    )


def test_a_gain_from_ending_the_answer_is_told_apart() -> None:
    """DPO gains on two of four prompts: one because it now ends, one although both end, much shorter."""
    matched_rates = matched(
        table(
            ["seen"] * 4,
            passed=[[0, 0, 1], [0, 0, 1], [0, 1, 1], [0, 0, 0]],
            stopped=[[0, 0, 1], [0, 1, 1], [0, 1, 1], [0, 1, 1]],
            tokens=[[9, 9, 5], [9, 9, 5], [9, 5, 5], [9, 5, 5]],
        ),
        settings("recipe=tiny").eval,
    )
    assert matched_rates.gain == 0.5
    assert matched_rates.gain_from_stopping == 0.25
    assert matched_rates.views["both answers end by themselves"].prompts == 3
    assert matched_rates.views["answers of like length"]["policy-sft"].mean == 0


@pytest.mark.parametrize(
    ("sft", "policy", "clause"),
    [
        (1.0, 0.75, "ends fewer of its answers by itself: 100.0% → 75.0%"),
        (1.0, 1.0, ""),
        (0.2, 0.2, "only 20.0%"),
    ],
)
def test_the_verdict_says_what_became_of_endings(sft: float, policy: float, clause: str) -> None:
    stopped = np.ones((200, 3))
    stopped[:, 1] = np.arange(200) % 20 < 20 * sft
    stopped[:, 2] = np.arange(200) % 20 < 20 * policy
    answers = table(["seen"] * 200, stopped, stopped, stopped)
    cfg = settings("recipe=tiny").eval
    ended = means_and_differences(answers.estimate(answers.stopped), answers.roles, cfg.confidence)
    full = endings_clause(ended, TITLES, "sft")
    assert clause in full and bool(full) is bool(clause)
    rates = Group(**vars(rate_row(answers, cfg)), containing=None)
    assert f"tasks{full}." in verdict(results({"seen tasks": rates}, endings=full))


def test_an_answer_contains_the_reference_whatever_its_form() -> None:
    assert contains_words("Apple; pear; fig!", "- apple\n- pear\n- fig")
    assert not contains_words("apple, pear and fig", "- apple\n- pear\n- fig")
    assert not contains_words("Tuesdays", "Tuesday")


def test_requests_are_followed_through_their_phrasings() -> None:
    passed = [[1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 1, 1]]
    rates = consistency(table(["rephrased"] * 4, passed, passed, passed))
    assert rates
    assert (rates.requests, rates.phrasings) == (2, 2)
    assert rates["base"] == Consistency(spread=0, always=0.5, sometimes=0, never=0.5)
    assert rates["sft"] == Consistency(spread=0.25, always=0.5, sometimes=0.5, never=0)


def test_the_evaluation_knows_all_labels_that_a_model_was_trained_on(chain: Chain) -> None:
    evaluation = nodes(chain.root, "rounds=2", "control_pairs=random", "control=true")["eval"]
    models = [evaluation.inputs[role] for role in evaluation.config.models]
    trained = {n.fingerprint for model in models for n in model.lineage if n.stage == "pairs"}
    read = [n.fingerprint for n in evaluation.inputs.values() if n.stage == "pairs"]
    assert len(read) > 1
    assert sorted(read) == sorted(trained)


@pytest.mark.extended
def test_a_labelled_set_of_ones_own_is_answered_and_trains_nothing(
    chain: Chain, tmp_path: Path
) -> None:
    """`outside` adds answers; SFT and DPO stay, and known prompts do not count."""
    data = load(chain.folder("data") / "examples.parquet", Example)
    known = next(e for e in data if e.split == "sft").messages[-1]["content"]
    prompts = [known, "A review, positive or negative: wonderful", "Three eggs and four more?"]
    path = tmp_path / "mine.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": p, "completion": "positive"}) + "\n" for p in prompts)
    )
    before = chain.count()
    build(chain.root, f"outside=[{{path: {path}, check: label}}]")
    assert chain.count() - before == {"source": 1, "data": 1, "answer": 3, "eval": 1, "report": 1}
    results = json.loads((chain.root / "latest/eval/results.json").read_text())
    assert results["groups"]["outside: mine.jsonl"]["prompts"] == 2
    assert results["endpoint"] == "outside: mine.jsonl"


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(0.01, 0.1, "helped"), (-0.1, -0.01, "hurt"), (-0.02, 0.1, "made no measurable change")],
)
def test_the_verdict_follows_the_interval(low: float, high: float, word: str) -> None:
    primary = group({"policy-sft": ((low + high) / 2, low, high)}, prompts=900, tasks=20)
    said = verdict(results({"seen tasks": primary}))
    assert said.startswith(f"DPO {word}: ")
    assert "Fewer" not in said
    assert "Fewer than 800 prompts" in verdict(results({"seen": replace(primary, prompts=100)}))
    noted = verdict(results({"seen": replace(primary, note="too few tasks to say")}))
    assert noted.startswith("Too few tasks") and "helped: " in noted


def test_kl_is_that_of_the_two_models_on_the_policys_answers(chain: Chain) -> None:
    metrics = chain.manifest("eval")["metrics"]["kl"]["policy"]
    examples = {e.id: e for e in load(chain.folder("data") / "examples.parquet", Example)}
    answers = {
        a.prompt_id: a for a in load(chain.folder("answer_policy") / "answers.parquet", Candidate)
    }
    contract = load_contract(chain.folder("sft") / "model")
    policy = load_model(chain.folder("dpo") / "model")
    reference = load_model(chain.folder("sft") / "model")
    total = 0.0
    tokens = 0
    answered_ids = sorted((i for i in answers if examples[i].group != "rephrased"), key=draw_order)
    for prompt_id in answered_ids[: metrics["answers"]]:
        prompt = contract.prompt(examples[prompt_id].messages)
        row = torch.tensor([prompt + answers[prompt_id].token_ids])
        with torch.no_grad():
            p = policy(row).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            q = reference(row).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        total += float((p.exp() * (p - q)).sum())
        tokens += len(p)
    assert metrics["per_token"] == pytest.approx(total / tokens, rel=1e-4)
    assert metrics["per_token"] > 0
