"""Benchmarks: prompts have training's token ids, scores are ours, and no question is asked twice.

Tests of the stage run with a small engine of our own, and with lm-evaluation-harness where a Python has it: this one,
or the one that the environment variable PLUMBLINE_BENCHMARK_PYTHON names."""

import json
import os
import random
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stages import benchmark
from stages.commands import compare
from stages.config.blocks.evaluation import Eval
from stages.config.installation import engine_version, install_command
from stages.evaluation.benchmarks import (
    LESS,
    Response,
    SampleScore,
    benchmark_results,
    mean_metrics,
    score_samples,
    sentence,
)
from stages.models.contract import PlainText, load_contract, load_or_derive_contract
from stages.models.loading import load_model
from stages.store.records import Example, load, save
from stages.store.store import Store
from tests.helpers import Chain, build, nodes, settings, slow_but, stand_in
from tests.pipeline.test_resume import kill_when

ROWS = 80
HARNESS = os.environ.get("PLUMBLINE_BENCHMARK_PYTHON") or sys.executable
NEEDS_HARNESS = pytest.mark.skipif(
    engine_version(HARNESS) is None, reason=f"needs {install_command('benchmark')}"
)
ENGINES = ["small", pytest.param("harness", marks=NEEDS_HARNESS)]
HEAD = "task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {name}.jsonl}}}}\ntest_split: test\n"
FORMS = {
    "told": """output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 24}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "claims": """output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
}


@pytest.fixture
def tasks(built: Path, tmp_path: Path) -> Path:
    """A folder with a task of generated answers, which the tiny model was trained on, and a task of choices."""
    folder, draw = tmp_path / "tasks", random.Random(0)
    folder.mkdir()
    examples = [
        e
        for e in load(Chain(built).folder("data") / "examples.parquet", Example)
        if e.split == "sft"
    ]
    rows = [
        {"question": e.messages[-1]["content"], "answer": e.reference}
        for e in examples
        if len(e.messages) == 1
    ]
    sums = [(*divmod(number, 50), draw.randrange(2)) for number in draw.sample(range(2500), ROWS)]
    claims = [
        {
            "question": f"Is it true?  {a} and {b} make {a + b + wrong}.\n",
            "choices": ["true", "false"],
            "label": wrong,
        }
        for a, b, wrong in sums
    ]
    for name, of_task in (("told", rows[:ROWS]), ("claims", claims)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, of_task)))
        (folder / f"{name}.yaml").write_text(HEAD.format(name=name) + FORMS[name])
    return folder


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A program that stands for a Python with an engine."""
    return stand_in(Path(__file__).with_name("small_engine.py"), tmp_path / "small_engine")


@pytest.fixture
def typed(request: pytest.FixtureRequest, tasks: Path, small: Path) -> list[str]:
    """The arguments of both tasks, with the engine that the test names."""
    python = HARNESS if request.param == "harness" else small
    return [
        "benchmark.tasks=[told,claims]",
        f"benchmark.tasks_dir={tasks}",
        f"benchmark.runtime.python={python}",
    ]


def responses(folder: Path) -> dict[str, Response]:
    return {each.id: each for each in load(folder / "responses.parquet", Response)}


def samples(folder: Path, task: str) -> list[SampleScore]:
    return [
        sample for sample in load(folder / "samples.parquet", SampleScore) if sample.task == task
    ]


@pytest.mark.extended
@pytest.mark.parametrize("template", slow_but(["auto", "zephyr"], "auto"))
@pytest.mark.parametrize("typed", ENGINES, indirect=True)
def test_prompts_and_choices_have_the_ids_that_the_template_renders(
    typed: list[str], template: str, chain: Chain
) -> None:
    arguments = [*typed, f"template={template}", "align=none", "benchmark.limit=30"]
    build(chain.root, "stage=benchmark", *arguments)
    folder, model = (
        chain.folder("benchmark_policy", *arguments),
        chain.folder("sft", *arguments) / "model",
    )
    contract, by_kind = load_contract(model), {True: 0, False: 0}
    render = contract.tokenizer.apply_chat_template
    for response in responses(folder).values():
        prompt = render(response.messages, add_generation_prompt=True, return_dict=False)
        assert response.prompt_ids == prompt == contract.prompt(response.messages)
        by_kind[response.is_choice] += 1
        if response.is_choice:
            turn = {"role": "assistant", "content": response.text}
            whole = render([*response.messages, turn], return_dict=False)
            assert response.completion_ids[-1] == contract.stop_ids[0]
            assert (
                prompt + response.completion_ids
                == whole[: len(prompt) + len(response.completion_ids)]
            )
    assert by_kind == {True: 60, False: 30}


@pytest.mark.extended
@pytest.mark.parametrize("typed", ENGINES, indirect=True)
def test_scores_are_those_of_our_own_scoring(typed: list[str], chain: Chain) -> None:
    arguments = [*typed, "align=none"]
    build(chain.root, "stage=benchmark", *arguments)
    folder, model = (
        chain.folder("benchmark_policy", *arguments),
        chain.folder("sft", *arguments) / "model",
    )
    answers, rows = responses(folder), {}
    tasks_dir = Path(typed[1].partition("=")[2])
    for task in ("told", "claims"):
        rows[task] = [json.loads(line) for line in (tasks_dir / f"{task}.jsonl").open()]
    generated, claims = samples(folder, "told"), samples(folder, "claims")
    assert len(generated) == len(claims) == ROWS
    scores = {
        s.doc_id: float(answers[s.questions[0]].text.strip() == rows["told"][s.doc_id]["answer"])
        for s in generated
    }
    assert {s.doc_id: s.score for s in generated} == scores
    assert 0 < sum(scores.values()) < ROWS
    network, right = load_model(model), 0.0
    for sample in claims:
        log_probs = [log_prob(network, answers[key]) for key in sample.questions]
        assert log_probs == pytest.approx(
            [answers[key].logprob for key in sample.questions], abs=1e-4
        )
        score = float(log_probs.index(max(log_probs)) == rows["claims"][sample.doc_id]["label"])
        assert sample.score == score
        right += score
    assert 0 < right < ROWS


@torch.no_grad()
def log_prob(model: torch.nn.Module, response: Response) -> float:
    """Return the log-prob of a choice by a forward without a batch."""
    ids = torch.tensor([response.prompt_ids + response.completion_ids])
    log_p = model(ids).logits[0].log_softmax(-1)[len(response.prompt_ids) - 1 : -1]
    return float(log_p.gather(-1, torch.tensor(response.completion_ids)[:, None]).sum())


@pytest.mark.extended
@pytest.mark.parametrize("typed", ENGINES, indirect=True)
def test_a_killed_run_goes_on_and_a_second_one_asks_nothing(
    typed: list[str], chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_at_a_time = ["benchmark.runtime.shard_size=1", "benchmark.runtime.batch_size=1"]
    arguments = [*typed, "align=none", "benchmark.limit=15", *one_at_a_time]
    shards = chain.root / "benchmark"

    def reached():
        return len([*shards.glob("*.partial/scratch/shards/*.parquet")]) >= 20

    kill_when(reached, chain.root, "benchmark", False, *arguments, cadence=())
    [first] = shards.glob("*.partial")
    done = len([*first.glob("scratch/shards/*.parquet")])
    question_ids: list[str] = []
    respond = benchmark.Respondent.respond

    def counted(self: benchmark.Respondent, waiting: list[Response]) -> object:
        question_ids.extend(question.id for question in waiting)
        return respond(self, waiting)

    monkeypatch.setattr(benchmark.Respondent, "respond", counted)
    build(chain.root, "stage=benchmark", *arguments)
    total = sum(
        len(responses(chain.folder(f"benchmark_{role}", *arguments))) for role in ("base", "policy")
    )
    assert 0 < done == total - len(question_ids)
    build(chain.root, "stage=benchmark", *arguments)
    assert done == total - len(question_ids)


@pytest.mark.parametrize("typed", ["small"], indirect=True)
def test_report_has_rates_and_paired_differences_in_a_section(
    typed: list[str], chain: Chain
) -> None:
    typed.append("benchmark.limit=50")
    build(chain.root, "stage=report", *typed)
    folder = chain.folder("eval", *typed)
    rows = json.loads((folder / "results.json").read_text())["benchmarks"]
    assert [(row["task"], row["metric"], row["prompts"]) for row in rows] == [
        ("told", "exact_match", 50),
        ("claims", "acc", 50),
    ]
    for row in rows:
        assert row["policy-sft"]["mean"] == pytest.approx(
            row["policy"]["mean"] - row["sft"]["mean"]
        )
        assert row["policy-sft"]["low"] < row["policy-sft"]["mean"] < row["policy-sft"]["high"]
    page = (chain.folder("report", *typed) / "report.html").read_text()
    assert 'id="benchmarks"' in page
    compare.run(settings("recipe=tiny"), Store(chain.root)).show()
    page = (chain.root / compare.PAGE).read_text()
    for row in rows:
        cells = re.findall(rf'data-label="{row["task"]} {row["metric"]} \(50\)">([\d.]+)%', page)
        assert sorted(cells) == sorted(
            f"{100 * row[role]['mean']:.1f}" for role in ("sft", "policy")
        )
    warnings = chain.manifest("benchmark_policy", *typed)["warnings"]
    assert [warning.split(":")[0] for warning in warnings] == ["told words"], (
        "no mean, so without an interval"
    )


@pytest.mark.extended
@pytest.mark.parametrize("typed", ["small"], indirect=True)
def test_a_base_without_a_template_is_asked_in_plain_text(typed: list[str], chain: Chain) -> None:
    arguments = [*typed, "benchmark.limit=5"]
    build(chain.root, "stage=benchmark", *arguments)
    model = chain.folder("base", *arguments) / "model"
    contract = load_or_derive_contract(model)
    plain = PlainText(contract.tokenizer, contract.stop_ids)
    form = chain.manifest("benchmark_base", *arguments)["metrics"]["form"]
    assert form == "PlainText"
    for response in responses(chain.folder("benchmark_base", *arguments)).values():
        text = response.messages[0]["content"]
        if response.is_choice:
            whole = contract.tokenizer(text + response.text).input_ids
            assert response.prompt_ids + response.completion_ids == whole
        else:
            assert (
                response.prompt_ids
                == plain.prompt(response.messages)
                == contract.tokenizer(text).input_ids
            )


@pytest.mark.parametrize("typed", ["small"], indirect=True)
def test_task_files_and_engine_are_part_of_the_fingerprint(
    typed: list[str], tasks: Path, small: Path
) -> None:
    root, moved = tasks.parent / "outputs", tasks.parent / "moved"
    before = nodes(root, *typed)["benchmark_sft"]
    assert before.settings["engine"] == "0.0.1"
    tasks.rename(moved)
    typed[1] = f"benchmark.tasks_dir={moved}"
    assert nodes(root, *typed)["benchmark_sft"].fingerprint == before.fingerprint
    (moved / "utils.py").write_text("CODE = 1\n")
    assert nodes(root, *typed)["benchmark_sft"].fingerprint != before.fingerprint
    (moved / "utils.py").unlink()
    small.write_text("#!/bin/sh\necho 0.0.2\n")
    engine_version.cache_clear()
    assert nodes(root, *typed)["benchmark_sft"].fingerprint != before.fingerprint


def test_only_prompts_that_all_models_answered_are_compared(tmp_path: Path) -> None:
    scores = {"sft": [0, 0, 1, 1], "policy": [1, 0, 1]}
    for role, of_role in scores.items():
        (tmp_path / role).mkdir()
        rows = [
            SampleScore("told", "own", "acc", "", i, [], float(score))
            for i, score in enumerate(of_role)
        ]
        save(tmp_path / role / "samples.parquet", rows, SampleScore)
    cfg = Eval(
        models={"sft": "SFT", "policy": "DPO"},
        confidence=0.95,
        instruments={"benchmark": "of 5 shots"},
    )
    [row], measured = benchmark_results(
        cfg, {f"benchmark_{role}": tmp_path / role for role in scores}
    )
    assert row["prompts"] == 3
    assert row["policy-sft"]["mean"] == pytest.approx(1 / 3)
    assert benchmark_results(cfg, {}) == ([], [])
    assert {(m.measure, m.group) for m in measured} == {("own acc", "told")}, (
        "a benchmark of many tasks is one measure"
    )
    otherwise = replace(cfg, instruments={"benchmark": "of 0 shots"})
    _, asked_otherwise = benchmark_results(
        otherwise, {f"benchmark_{role}": tmp_path / role for role in scores}
    )
    assert {m.unit for m in measured}.isdisjoint(m.unit for m in asked_otherwise)
    assert " 0 of 1 " in sentence([row], "policy-sft", {"policy-sft": "DPO − SFT"})


def test_where_less_is_better_more_is_worse_for_the_gate(tmp_path: Path) -> None:
    task: dict[str, Any] = {"task": "toxic", "benchmark": "toxic", "less_is_better": ["share"]}
    task["samples"] = [
        {
            "doc_hash": "",
            "doc_id": 0,
            "questions": [],
            "scores": {"share, first": 0.25, "acc": 0.75},
        }
    ]
    (tmp_path / "policy").mkdir()
    scores = score_samples(task, {"share, first": True, "acc": True}, {})
    save(tmp_path / "policy" / "samples.parquet", scores, SampleScore)
    cfg = Eval(models={"policy": "DPO"}, confidence=0.95, instruments={"benchmark": ""})
    rows, measured = benchmark_results(cfg, {"benchmark_policy": tmp_path / "policy"})
    assert [(row["metric"], row["policy"]["mean"]) for row in rows] == [
        ("share, first" + LESS, 0.25),
        ("acc", 0.75),
    ]
    assert [m.value for m in measured] == [0.75, 0.75]


def test_a_metric_is_a_mean_only_if_the_figure_is_that_of_its_scores() -> None:
    scores = [
        {"acc": 1.0, "perplexity": 12.0, "f1": 0.5, "parts": None},
        {"acc": 0.0, "perplexity": 3.0, "f1": 0.0},
    ]
    figures = {"acc": 0.5, "perplexity": 7.5, "f1": 0.4}
    is_mean = mean_metrics(
        {"task": "t", "samples": [{"scores": each} for each in scores], "figures": figures}
    )
    assert is_mean == {"acc": True, "perplexity": False, "f1": False, "parts": False}
