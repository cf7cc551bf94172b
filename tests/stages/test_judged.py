"""A judged comparison: two models' answers side by side, labelled by whoever labels, and what follows from it."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages.config.exit_codes import GateCode
from stages.evaluation.measures import FILE, Measure
from stages.evaluation.noninferiority import by_measure, compare
from stages.models.contract import load_or_derive_contract
from stages.pipeline.graph import requested_nodes
from stages.store.records import Candidate, Example, Judgement, load, stream
from stages.versus import side
from tests.endpoints.servers import Model, running
from tests.helpers import Chain, build, build_node, nodes, refused, settings
from tests.labelers.asking import somebody
from tests.labelers.judging import is_probe, judging, shown_texts

TOY = "stages/tasks/toy_preferences.jsonl"
NO_TESTS = [
    f"data.tasks.{group}=0" for group in ("test", "unseen_phrasings", "unseen_tasks", "rephrased")
]
PEOPLE = ["eval/judged=human", "eval.judged.runtime.port=0"]


def longer(texts: dict[str, str]) -> str:
    a, b = len(texts["A"]), len(texts["B"])
    return "A" if a > b else "B" if b > a else "tie"


def judge_at(url: str, *more: str) -> list[str]:
    return [
        "eval/judged=judge",
        f"eval.judged.endpoints=[{{base_url: '{url}', model: m}}]",
        *more,
    ]


def results(root: Path, *overrides: str) -> dict[str, Any]:
    """Build the evaluation under these overrides, and return row results."""
    build(root, "stage=eval", *overrides)
    return of_store(root, *overrides)


def of_store(root: Path, *overrides: str) -> dict[str, Any]:
    evaluation: dict[str, Any] = json.loads(
        (folder(root, "eval", *overrides) / "results.json").read_text()
    )
    return evaluation


def folder(root: Path, name: str, *overrides: str) -> Path:
    node = nodes(root, *overrides)[name]
    return root / node.stage / node.fingerprint


def own_prompts(tmp_path: Path, chain: Chain, count: int) -> str:
    """A file of requests without answers and checks: prompts that the tiny models can do something with."""
    data = stream(chain.folder("data") / "examples.parquet", Example)
    texts = [e.messages[-1]["content"] for e in data if e.split == "preference"]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts[:count]))
    return f"eval.judged.source=[{{path: {file}}}]"


def test_what_people_said_of_another_answer_is_not_known_of_this_one(chain: Chain) -> None:
    contract = load_or_derive_contract(chain.folder("sft") / "model")
    answer = load(chain.folder("answer_sft") / "answers.parquet", Candidate)[0]
    texts = ("one", "two", "one")
    ids = [side(replace(answer, text=text), "policy", contract).candidate_id for text in texts]
    assert ids[0] == ids[2] != ids[1]
    foreign = replace(answer, tokenizer="of another model", finish_reason="stop")
    assert side(foreign, "sft", contract).n_tokens == len(answer.token_ids or ()), (
        "equal texts have equal lengths"
    )


def test_the_same_checkpoint_twice_is_even_and_nobody_is_asked(
    chain: Chain, tmp_path: Path
) -> None:
    model = chain.folder("sft") / "model"
    with running(Model(judging(longer))) as server:
        typed = ["align=none", "sft=none", f"model.path={model}", f"eval.judged.against=[{model}]"]
        evaluation = results(
            chain.root, *typed, *judge_at(server.url), *NO_TESTS, own_prompts(tmp_path, chain, 30)
        )
        assert server.requests == []
    [(key, row)] = evaluation["judged"].items()
    assert (key, row["win_rate"]["mean"], row["effect"]) == (
        "other",
        0.5,
        "no measurable difference",
    )
    assert row["alike"] == row["ties"] == row["prompts"] == 30
    assert (
        evaluation["gives_verdict"] == ["judged"]
        and "no measurable difference" in evaluation["verdict"]
    )


@pytest.mark.extended
def test_ones_own_prompts_are_all_asked_and_equal_answers_are_ties(
    chain: Chain, tmp_path: Path
) -> None:
    prompts = own_prompts(tmp_path, chain, 40)
    with running(Model(judging(longer))) as server:
        evaluation = results(chain.root, *judge_at(server.url), prompts)
        sides = Counter(
            frozenset(shown_texts(r)[name] for name in "AB")
            for r in server.requests
            if not is_probe(r)
        )
        row = evaluation["judged"]["sft"]
        typed = [*judge_at(server.url), prompts]
    versus, label = (folder(chain.root, f"{name}_sft", *typed) for name in ("versus", "judged"))
    candidates = load(versus / "candidates.parquet", Candidate)
    pairs = list(zip(candidates[::2], candidates[1::2], strict=True))
    assert len(pairs) == row["prompts"] == 40
    assert all(
        (a.policy, b.policy, a.prompt_id) == ("policy", "sft", b.prompt_id) for a, b in pairs
    )
    assert len({c.candidate_id for c in candidates}) == 80  # equal texts are two candidates
    alike = sum(a.stripped_text == b.stripped_text for a, b in pairs)
    assert row["alike"] == alike > 20
    assert all(len(texts) == 2 for texts in sides)  # nobody is asked about two copies
    judgements = {j.prompt_id: j for j in load(label / "judgements.parquet", Judgement)}
    better = Counter(vars(j).get(str(j.preference)) for j in judgements.values())
    wins, ties = sum(better[a.candidate_id] for a, _ in pairs), better[None]
    assert row["win_rate"]["mean"] == pytest.approx((wins + ties / 2) / 40)
    [warning] = [w for w in chain.manifest("eval", *typed)["warnings"] if "eval.judged.source" in w]
    assert warning.startswith("40 prompts"), "they are those of the preference split"
    assert evaluation["gives_verdict"] == ["checks", "judged"]
    assert evaluation["verdict"].startswith("DPO ") and "The judge " in evaluation["verdict"]
    assert row["nulls"]["one constant answer"]["mean"] < 1


def test_of_one_request_in_several_phrasings_none_is_compared(chain: Chain) -> None:
    build_node(chain.root, "versus_sft", *PEOPLE)
    compared = load(folder(chain.root, "versus_sft", *PEOPLE) / "prompts.parquet", Example)
    groups = {e.group for e in stream(chain.folder("data") / "examples.parquet", Example)}
    assert "rephrased" in groups - {e.group for e in compared}


@pytest.mark.slow
def test_the_gate_compares_no_win_rates_of_two_judges(chain: Chain, tmp_path: Path) -> None:
    prompts, runs = own_prompts(tmp_path, chain, 10), []
    with running(Model(judging(longer))) as server:
        for temperature in (0, 1):
            typed = [
                *judge_at(server.url),
                prompts,
                *NO_TESTS,
                f"eval.judged.temperature={temperature}",
            ]
            build(chain.root, "stage=eval", *typed)
            runs.append(by_measure(load(folder(chain.root, "eval", *typed) / FILE, Measure)))
            judge, of_another_run = (
                nodes(chain.root, *typed, seed)["eval"].config for seed in ("seed=0", "seed=1")
            )
            assert judge.instruments == of_another_run.instruments
    [wins] = [name for name in runs[0] if name.startswith("wins")]
    lines = compare(runs[:1], runs[1:], margin=0.05, confidence=0.95)
    assert {line.measure for line in lines if line.code is GateCode.other_prompts} == {wins}


@pytest.mark.extended
def test_a_report_does_not_wait_for_people_and_reads_what_they_said(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = [*PEOPLE, own_prompts(tmp_path, chain, 40)]
    build(chain.root, "stage=eval", *typed)
    waiting = next(load_results(chain.root, waiting=True))
    row = waiting["judged"]["sft"]
    assert row["waiting"] == row["prompts"] - row["alike"] > 0
    assert "People have not said yet" in waiting["verdict"]
    with somebody(monkeypatch, lambda question: "a"):
        build(chain.root, "stage=versus", *typed)
    build(chain.root, "stage=eval", *typed)
    row = of_store(chain.root, *typed)["judged"]["sft"]
    assert "waiting" not in row and row["judged"] == row["prompts"] and not row["missing"]


def load_results(root: Path, waiting: bool) -> Any:
    every = (json.loads(path.read_text()) for path in root.glob("eval/*/results.json"))
    return (
        evaluation
        for evaluation in every
        if any("waiting" in row for row in evaluation["judged"].values()) == waiting
    )


@pytest.mark.extended
def test_labels_of_a_comparison_are_no_labels_of_preferences(chain: Chain) -> None:
    typed = ["eval/judged=reward_model", f"reward.source.path={TOY}"]
    graph = nodes(chain.root, *typed)
    evaluation = {
        stage: {
            n.fingerprint
            for n in requested_nodes(settings("recipe=tiny", *typed, f"stage={stage}"), graph)
        }
        for stage in ("label", "versus")
    }
    assert (
        graph["judged_sft"].stage == "label"
        and graph["judged_sft"].fingerprint not in evaluation["label"]
    )
    assert {
        graph[name].fingerprint for name in ("versus_sft", "judged_sft", "judged_constant")
    } <= evaluation["versus"]
    plain = nodes(chain.root)
    assert all(
        graph[name].fingerprint == plain[name].fingerprint
        for name in ("sft", "label", "pairs", "dpo")
    )
    # that is of the nodes of row labels
    assert "reward_model" not in graph["eval"].settings["judged"]


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
    evaluation = results(chain.root, *typed)
    pairs = folder(chain.root, "pairs", *typed)
    prompts_asked = load(
        folder(chain.root, "versus_reference", *typed) / "prompts.parquet", Example
    )
    assert evaluation["judged"].keys() == {"sft", "reference"} and evaluation["primary"] is None
    nothing = [
        "label=dataset",
        f"label.path={TOY}",
        *NO_TESTS,
        *PEOPLE,
        "pairs.validation_fraction=0",
    ]
    assert "eval.judged has no prompts" in refused("recipe=tiny", *nothing)
    assert evaluation["gives_verdict"] == ["learnt", "judged"]
    assert {e.reference for e in prompts_asked} <= {
        row["chosen"][0]["content"] for row in rows(pairs / "pairs.parquet")
    }
    assert evaluation["shown_on"] == "the prompts of held-out pairs"
    build(chain.root, "stage=plan")  # whose estimates read every node that is there


def rows(file: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    evaluation: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    return evaluation


def test_sft_alone_is_compared_with_the_base(chain: Chain) -> None:
    evaluation = results(chain.root, "align=none")
    assert list(evaluation["models"].items()) == [("base", "Base"), ("policy", "SFT")]
    assert (
        evaluation["main_difference"] == "policy-base"
        and evaluation["kl"] == {}
        and evaluation["learnt"] == {}
    )
    assert evaluation["verdict"].startswith("SFT helped: ")
    assert refused("recipe=tiny", f"outputs={chain.root}", "align=none", "stage=pairs").endswith(
        "Set align=dpo."
    )
