"""The evaluation cannot flatter: intervals know of families, and the verdict of nothing but the primary endpoint."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages.config.choices import Precision
from stages.config.errors import UserError
from stages.eval import run, trained_on
from stages.evaluation.checked import containing, contains_words
from stages.evaluation.likelihood import Distributions
from stages.evaluation.outcomes import (
    Outcome,
    Table,
    average_runs,
    consistency,
    endings_clause,
    matched,
    rate_row,
    verdict,
    with_intervals,
)
from stages.models.contract import load_contract, load_or_derive_contract
from stages.models.loading import load_model
from stages.samplers.completions import make_candidate
from stages.samplers.sampler import Completion, Request
from stages.store.records import Candidate, Example, Pair, load, save
from stages.store.splits import draw_order
from stages.store.store import Store
from tests.helpers import Chain, build, nodes, settings
from tests.rows import work
from tests.stages.coin import tossed, turned


def evaluation_inputs(chain: Chain) -> dict[str, Path]:
    """The folders that the chain's evaluation was made of, by role."""
    return {
        role: Store(chain.root).folder(node)
        for role, node in nodes(chain.root)["eval"].inputs.items()
    }


def evaluated(chain: Chain, policy: Path, answers: Path, folder: Path) -> dict[str, Any]:
    """The results of an evaluation in which `policy` stands where DPO's model does."""
    inputs = evaluation_inputs(chain) | {"policy": policy, "answer_policy": answers}
    run(nodes(chain.root)["eval"].config, inputs, work(folder))
    return json.loads((folder / "results.json").read_text())


def test_seeds_are_averaged_prompt_by_prompt(chain: Chain) -> None:
    outcomes = load(chain.folder("eval") / "outcomes.parquet", Outcome)
    results = json.loads((chain.folder("eval") / "results.json").read_text())
    examples = {e.id: e for e in load(chain.folder("data") / "examples.parquet", Example)}
    alone = average_runs([outcomes], examples)
    for name, table in alone.views().items():
        expected = results["groups"][name]
        assert len(table.prompts) == expected["prompts"]
        assert table.mean(table.passed) == pytest.approx(
            {role: expected[role]["mean"] for role in table.roles}
        )
    turned_over = [
        replace(row, passed=not row.passed, n_tokens=row.n_tokens + 2) for row in outcomes
    ]
    both = average_runs([outcomes, turned_over], examples)
    assert (both.passed == 0.5).all() and (both.tokens == alone.tokens + 1).all()
    first = alone.prompts[0].id
    assert (
        len(average_runs([outcomes, outcomes[len(alone.roles) :]], examples).prompts)
        == len(alone.prompts) - 1
    )
    assert first not in {
        e.id for e in average_runs([outcomes[len(alone.roles) :]], examples).prompts
    }


def test_the_same_checkpoint_twice_gives_exactly_nothing(chain: Chain, tmp_path: Path) -> None:
    results = evaluated(chain, chain.folder("sft"), chain.folder("answer_sft"), tmp_path / "eval")
    divided = [*results["kinds"].values(), *results["tasks"].values()]
    in_any_form = {name: row["containing"] for name, row in results["groups"].items()}
    for table in (results["groups"], in_any_form, *divided, results["matched"]["views"]):
        for row in table.values():
            mean, low, high = row["policy-sft"].values()
            assert mean == 0 and low == -high and 0 < high < 1, (
                "so many alike say how many others may differ"
            )
    assert results["references"]["policy-sft"] == {"mean": 0, "low": 0, "high": 0}
    assert results["kl"]["policy"]["per_token"] == results["matched"]["gain"] == 0
    assert results["verdict"].startswith("DPO made no measurable change: ")


def test_where_all_test_prompts_are_in_the_pairs_it_is_told(chain: Chain, tmp_path: Path) -> None:
    inputs = evaluation_inputs(chain)
    prompt_ids = {
        answer.prompt_id for answer in load(inputs["answer_sft"] / "answers.parquet", Candidate)
    }
    [some, *_] = load(chain.folder("pairs") / "pairs.parquet", Pair)
    (tmp_path / "pairs").mkdir()
    save(
        tmp_path / "pairs" / "pairs.parquet",
        [replace(some, prompt_id=i, split="train") for i in prompt_ids],
        Pair,
    )
    out = work(tmp_path)
    pattern = f"none of the {len(prompt_ids)} prompts .*: {len(prompt_ids)} are also in "
    with pytest.raises(UserError, match=pattern):
        run(nodes(chain.root)["eval"].config, inputs | {"pairs": tmp_path / "pairs"}, out)


def test_dpo_on_pairs_that_a_coin_has_turned_never_helps(chain: Chain, tmp_path: Path) -> None:
    """Real training on pairs whose chosen and rejected change places at random, with three coins."""
    cfg = settings("recipe=tiny")
    cfg.eval = nodes(chain.root)["eval"].config
    inputs = evaluation_inputs(chain)
    for seed in range(3):
        folder = tmp_path / str(seed)
        pairs = turned(chain.folder("pairs"), chain.folder("reference"), folder, seed)
        results = tossed(cfg, inputs, pairs, folder)
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
    assert matched_rates["gain"] == 0.5
    assert matched_rates["gain_from_stopping"] == 0.25
    assert matched_rates["views"]["both answers end by themselves"]["prompts"] == 3
    assert matched_rates["views"]["answers of like length"]["policy-sft"]["mean"] == 0


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
    stopped[:, 1], stopped[:, 2] = (np.arange(200) % 20 < 20 * share for share in (sft, policy))
    answers = table(["seen"] * 200, stopped, stopped, stopped)
    cfg = settings("recipe=tiny").eval
    full = endings_clause(answers, TITLES, cfg)
    assert clause in full and bool(full) is bool(clause)
    assert f"tasks{full}." in verdict(rate_row(answers, cfg), TITLES, full)


@pytest.mark.parametrize(
    ("answer", "reference", "contained"),
    [
        ("The answer is TUESDAY.", "Tuesday", True),
        ("apple, pear and fig", "- apple\n- pear\n- fig", False),
        ("Apple; pear; fig!", "- apple\n- pear\n- fig", True),
        ("Tuesdays", "Tuesday", False),
        ("", "Tuesday", False),
        ("a ?! b", "?!", True),
    ],
)
def test_an_answer_contains_the_reference_whatever_its_form(
    answer: str, reference: str, contained: bool
) -> None:
    assert contains_words(answer, reference) == contained


def test_answers_in_any_form_have_the_intervals_that_answers_in_the_right_form_have(
    chain: Chain,
) -> None:
    """Check that both rates agree if exactly the answers that contain the reference pass."""
    data = load(chain.folder("data") / "examples.parquet", Example)
    prompts = [e for e in data if e.split == "test" and e.reference]
    right = np.random.default_rng(0).integers(2, size=(len(prompts), 3))
    whole = replace(table([""] * len(prompts), right, right, right), prompts=prompts)

    def answer_of(e, is_right):
        return Candidate.from_text(e.id, f"It is {e.reference}!" if is_right else "", "", "", 1)

    answers = {
        role: {e.id: answer_of(e, row[i]) for e, row in zip(prompts, right, strict=True)}
        for i, role in enumerate(whole.roles)
    }
    cfg = settings("recipe=tiny").eval
    rates = containing(whole, answers, cfg)
    assert rates == {"prompts": len(prompts), **with_intervals(whole, whole.passed, cfg)}
    assert rates["policy-sft"]["low"] < rates["policy-sft"]["mean"] < rates["policy-sft"]["high"]
    bare = [*prompts[:-1], replace(prompts[-1], reference=None)]
    assert containing(replace(whole, prompts=bare), answers, cfg)["prompts"] == len(prompts) - 1
    assert containing(whole.where(np.zeros(len(prompts), bool)), answers, cfg) == {}


def test_requests_are_followed_through_their_phrasings() -> None:
    passed = [[1, 1, 0], [1, 0, 0], [0, 1, 1], [0, 1, 1]]
    rates = consistency(table(["rephrased"] * 4, passed, passed, passed))
    assert (rates["requests"], rates["phrasings"]) == (2, 2)
    assert rates["base"] == {"always": 0.5, "sometimes": 0, "never": 0.5, "spread": 0}
    assert rates["sft"] == {"always": 0.5, "sometimes": 0.5, "never": 0, "spread": 0.25}


@pytest.mark.parametrize(
    "line", ["rounds=2", "arms=[kto]", "rounds=2 control_pairs=random control=true"]
)
def test_the_evaluation_knows_all_labels_that_a_model_was_trained_on(
    line: str, chain: Chain
) -> None:
    evaluation = nodes(chain.root, *line.split())["eval"]
    models = [evaluation.inputs[role] for role in evaluation.config.models]
    trained = {
        n.fingerprint for model in models for n in model.lineage if n.stage in ("pairs", "unpaired")
    }
    read = [n.fingerprint for n in evaluation.inputs.values() if n.stage in ("pairs", "unpaired")]
    assert len(read) > 1 and sorted(read) == sorted(trained)
    exporting = nodes(chain.root, *line.split(), "stage=export", "export.format=dataset")
    assert exporting["eval"].fingerprint == evaluation.fingerprint, (
        "the same run, whose labels are exported"
    )


def test_prompts_of_an_earlier_rounds_pairs_are_known(chain: Chain, tmp_path: Path) -> None:
    inputs = evaluation_inputs(chain)
    pair = load(inputs["pairs"] / "pairs.parquet", Pair)[0]
    save(tmp_path / "pairs.parquet", [replace(pair, prompt_id="of round 1")], Pair)
    assert trained_on(inputs | {"pairs_1": tmp_path}) == trained_on(inputs) | {"of round 1"}


@pytest.mark.extended
def test_a_labelled_set_of_ones_own_is_answered_and_trains_nothing(
    chain: Chain, tmp_path: Path
) -> None:
    """`outside` adds answers and a row; SFT and DPO stay the ones that are there, and known prompts do not count."""
    trained_example = next(
        e for e in load(chain.folder("data") / "examples.parquet", Example) if e.split == "sft"
    )
    rows = [
        {
            "prompt": trained_example.messages[-1]["content"],
            "completion": trained_example.reference,
        },
        {
            "prompt": "A review of a new film, positive or negative: wonderful",
            "completion": "positive",
        },
        {
            "prompt": "Three eggs and four more, how many?",
            "completion": "3 + 4 = 7, so there are 7.",
        },
    ]
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    before = chain.count()
    build(chain.root, f"outside=[{{path: {path}, check: label}}]")
    assert chain.count() - before == {"source": 1, "data": 1, "answer": 3, "eval": 1, "report": 1}
    manifest = json.loads((chain.root / "latest/eval/manifest.json").read_text())
    results = json.loads((chain.root / "latest/eval/results.json").read_text())
    assert results["groups"]["outside: mine.jsonl"]["prompts"] == 2
    assert results["endpoint"] == "outside: mine.jsonl"
    assert "2 held-out prompts of mine.jsonl" in results["verdict"]
    page = (chain.root / "latest/report/report.html").read_text()
    assert "mine.jsonl" in page
    assert "1 test prompts" in manifest["warnings"][-1]
    assert (chain.root / "latest/data").resolve() == chain.folder("data").resolve()


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(0.01, 0.1, "helped"), (-0.1, -0.01, "hurt"), (-0.02, 0.1, "made no measurable change")],
)
def test_the_verdict_follows_the_interval(low: float, high: float, word: str) -> None:
    titles = {"sft": "SFT", "policy": "DPO"}
    primary = {
        "policy-sft": {"mean": (low + high) / 2, "low": low, "high": high},
        "prompts": 900,
        "tasks": 20,
        "set": "",
    }
    assert verdict(primary, titles).startswith(f"DPO {word}: ")
    assert "Fewer" not in verdict(primary, titles)
    assert "Fewer than 800 prompts" in verdict({**primary, "prompts": 100}, titles)
    noted = verdict({**primary, "note": "too few tasks to say"}, titles)
    assert noted.startswith("Too few tasks") and "helped: " in noted


def test_results_hold_what_the_contract_promises(chain: Chain) -> None:
    metrics = chain.manifest("eval")["metrics"]
    assert set(metrics["pass_rate"]) == set(metrics["unseen_tasks"]) == {"base", "sft", "policy"}
    for name in ("sft-base", "policy-sft", "policy-base"):
        assert set(metrics["delta"][name]) == {"mean", "low", "high"}
    assert metrics["verdict"].startswith("DPO ")
    results = json.loads((chain.folder("eval") / "results.json").read_text())
    assert list(results["groups"]) == [
        "seen tasks",
        "trained phrasings",
        "unseen phrasings",
        "unseen tasks",
    ]
    assert results["groups"]["unseen tasks"]["note"] == "too few tasks to say"
    assert results["groups"]["seen tasks"]["prompts"] == 32
    tasks = {side: {*rows} for side, rows in results["tasks"].items()}
    assert tasks == {"seen": {"sentiment", "classify_noun"}, "unseen": {"odd_one_out"}}


def test_kl_is_that_of_the_two_models_on_the_policys_answers(chain: Chain) -> None:
    metrics = chain.manifest("eval")["metrics"]["kl"]["policy"]
    examples = {e.id: e for e in load(chain.folder("data") / "examples.parquet", Example)}
    answers = {
        a.prompt_id: a for a in load(chain.folder("answer_policy") / "answers.parquet", Candidate)
    }
    contract = load_contract(chain.folder("sft") / "model")
    policy, reference = (
        load_model(chain.folder("dpo") / "model"),
        load_model(chain.folder("sft") / "model"),
    )
    total = tokens = 0.0
    answered_ids = sorted((i for i in answers if examples[i].group != "rephrased"), key=draw_order)
    for prompt_id in answered_ids[: metrics["answers"]]:
        prompt, answer = contract.prompt(examples[prompt_id].messages), answers[prompt_id].token_ids
        with torch.no_grad():
            p, q = (
                m(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
                for m in (policy, reference)
            )
        total += float(
            torch.nn.functional.kl_div(
                q.log_softmax(-1), p.log_softmax(-1), log_target=True, reduction="sum"
            )
        )
        tokens += len(answer)
    assert metrics["per_token"] == pytest.approx(total / tokens, rel=1e-4)
    assert metrics["per_token"] > 0


def test_the_base_is_asked_in_a_form_that_suits_it(built: Path) -> None:
    folder = next(
        p
        for p in (built / "answer").iterdir()
        if "Continuation" in (p / "manifest.json").read_text()
    )
    answers = load(folder / "answers.parquet", Candidate)
    assert not any("<|im_" in a.text for a in answers)


def test_an_answer_that_its_form_ends_is_finished_whatever_the_base_writes_on(built: Path) -> None:
    contract = load_or_derive_contract(next((built / "base").glob("*/model")))
    request = Request("p", [], [], [0.0, 0.0], 0)
    for text, reason in (("Paris.\n\nQuestion: Who?", "stop"), ("Paris. It is", "length")):
        completion = Completion(contract.tokenizer(text).input_ids, "length")
        candidate = make_candidate(request, 0, completion, contract, "base", "hf")
        assert (candidate.text, candidate.finish_reason) == (text.split("\n\n")[0], reason)


@torch.no_grad()
def test_a_completion_among_others_has_the_distributions_it_has_alone(chain: Chain) -> None:
    """One row is longer than a chunk of distributions, and one has no completion."""
    folder, cfg = (
        chain.folder("sft") / "model",
        replace(settings("recipe=tiny").eval, precision=Precision.fp32),
    )
    rows = [([*range(5, 8 + i % 7)], [*range(9, 9 + i * 5 % 11)]) for i in range(19)]
    rows[2] = (rows[2][0], [*range(9, 80)] * 5)
    scored, model = (
        Distributions(cfg, "sft", folder, {"some": rows[:4], "others": rows[4:]}),
        load_model(folder),
    )
    assert not [name for name, _ in scored.model.named_parameters() if "layers" in name], (
        "only the head is kept"
    )
    for i, (prompt, completion) in enumerate(rows):
        alone = (
            model(torch.tensor([prompt + completion]))
            .logits[0, len(prompt) - 1 : -1]
            .log_softmax(-1)
        )
        chunks = [*scored.log_probs(*(("some", i) if i < 4 else ("others", i - 4)))]
        log_p = torch.cat([alone[:0], *chunks])
        assert log_p.shape == (len(completion), model.config.vocab_size)
        assert torch.allclose(log_p, alone, atol=1e-5, rtol=0)
        if i < 4 and completion:
            expected = float(alone.gather(-1, torch.tensor(completion)[:, None]).mean())
            assert scored.mean_log_probs("some")[i] == pytest.approx(expected, abs=1e-5)
