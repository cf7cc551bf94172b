"""Benchmarks: prompts have training's token ids, scores are ours, and no question is asked twice.

Tests of the stage run with a small engine of our own, and with lm-evaluation-harness where a Python has it: this one,
or the one that the environment variable PLUMBLINE_BENCHMARK_PYTHON names."""

import json
import os
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stages.config.blocks.evaluation import Eval
from stages.config.errors import UserError
from stages.config.installation import install_command
from stages.evaluation import claims
from stages.evaluation.intervals import Interval
from stages.evaluation.results import parse_results
from stages.extras.benchmarks import Benchmark, harness_version
from stages.extras.benchmarks.compared import rates
from stages.extras.benchmarks.responses import LESS, Response, SampleScore
from stages.extras.benchmarks.results import (
    SECTION,
    BenchmarkRow,
    measure_section,
    read_rows,
    sentence,
)
from stages.models.contract import load_contract
from stages.models.loading import load_model
from stages.store.records import Example, load, save
from stages.store.typed_json import encode
from stages.store.workspace import StageDir
from tests.evaluation.made_results import results
from tests.helpers import Chain, build, nodes, stand_in
from tests.store.test_bounded_yaml import BEYOND

ROWS = 80
HARNESS = os.environ.get("PLUMBLINE_BENCHMARK_PYTHON") or sys.executable
NEEDS_HARNESS = pytest.mark.skipif(
    harness_version(HARNESS) is None, reason=f"needs {install_command('benchmark')}"
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
    folder = tmp_path / "tasks"
    folder.mkdir()
    draw = random.Random(0)
    rows = [
        {"question": e.messages[-1]["content"], "answer": e.reference}
        for e in load(Chain(built).folder("data") / "examples.parquet", Example)
        if e.split == "sft" and len(e.messages) == 1
    ]
    claims = []
    for a in range(ROWS):
        b = draw.randrange(50)
        wrong = draw.randrange(2)
        question = f"Is it true?  {a} and {b} make {a + b + wrong}.\n"
        claims.append({"question": question, "choices": ["true", "false"], "label": wrong})
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


@pytest.mark.extended
@pytest.mark.parametrize("typed", ENGINES, indirect=True)
def test_ids_are_those_of_the_template_and_scores_of_our_own_scoring(
    typed: list[str], chain: Chain
) -> None:
    arguments = [*typed, "align=none"]
    build(chain.root, "stage=benchmark", *arguments)
    folder = chain.folder("benchmark_policy", *arguments)
    model = chain.folder("sft", *arguments) / "model"
    contract = load_contract(model)
    base = chain.manifest("benchmark_base", *arguments)
    assert base["metrics"]["form"] == "PlainText", "it has no template"
    render = contract.tokenizer.apply_chat_template
    for response in responses(folder).values():
        prompt = render(response.messages, add_generation_prompt=True, return_dict=False)
        assert response.prompt_ids == prompt == contract.prompt(response.messages)
        if response.is_choice:
            turn = {"role": "assistant", "content": response.text}
            whole = render([*response.messages, turn], return_dict=False)
            assert response.completion_ids[-1] == contract.stop_ids[0]
            ids = prompt + response.completion_ids
            assert ids == whole[: len(ids)]
    answers = responses(folder)
    rows = dict[str, list[dict[str, Any]]]()
    tasks_dir = Path(typed[1].partition("=")[2])
    for task in ("told", "claims"):
        rows[task] = [json.loads(line) for line in (tasks_dir / f"{task}.jsonl").open()]
    network = load_model(model)
    for sample in load(folder / "samples.parquet", SampleScore):
        row = rows[sample.task][sample.doc_id]
        if sample.task == "told":
            is_right = answers[sample.questions[0]].text.strip() == row["answer"]
        else:
            log_probs = [log_prob(network, answers[key]) for key in sample.questions]
            stored = [answers[key].logprob for key in sample.questions]
            assert log_probs == pytest.approx(stored, abs=1e-4)
            is_right = log_probs.index(max(log_probs)) == row["label"]
        assert sample.score == is_right


@torch.no_grad()
def log_prob(model: torch.nn.Module, response: Response) -> float:
    """Return the log-prob of a choice by a forward without a batch."""
    ids = torch.tensor([response.prompt_ids + response.completion_ids])
    log_p = model(ids).logits[0].log_softmax(-1)[len(response.prompt_ids) - 1 : -1]
    return float(log_p.gather(-1, torch.tensor(response.completion_ids)[:, None]).sum())


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
        delta = row["policy-sft"]
        assert delta["mean"] == pytest.approx(row["policy"]["mean"] - row["sft"]["mean"])
        assert delta["low"] < delta["mean"] < delta["high"]
    page = (chain.folder("report", *typed) / "report.html").read_text()
    assert 'id="benchmarks"' in page
    warnings = chain.manifest("benchmark_policy", *typed)["warnings"]
    assert [warning.split(":")[0] for warning in warnings] == ["told words"], (
        "no mean, so without an interval"
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
    harness_version.cache_clear()
    assert nodes(root, *typed)["benchmark_sft"].fingerprint != before.fingerprint


def test_only_prompts_that_all_models_answered_are_compared(tmp_path: Path) -> None:
    """Of a metric of which less is better, the gate gets the rest to 1."""
    scores = {"sft": [0, 0, 1, 1], "policy": [1, 0, 1]}
    for role, of_role in scores.items():
        (tmp_path / role).mkdir()
        rows = [
            SampleScore("told", "own", f"share{LESS}", "", i, [], float(score))
            for i, score in enumerate(of_role)
        ]
        save(tmp_path / role / "samples.parquet", rows, SampleScore)
    cfg = Eval(
        models={"sft": "SFT", "policy": "DPO"},
        confidence=0.95,
        instruments={"benchmark": "of 5 shots"},
    )
    inputs = {f"benchmark_{role}": tmp_path / role for role in scores}
    out = StageDir(tmp_path, lambda metrics, step: None)
    section = measure_section(cfg, inputs, out)
    [row], measured = section.figures, section.measures
    assert row.prompts == 3
    assert row["policy-sft"].mean == pytest.approx(1 / 3)
    assert [m.value for m in measured if m.role == "policy"] == [0, 1, 0]
    otherwise = replace(cfg, instruments={"benchmark": "of 0 shots"})
    asked_otherwise = measure_section(otherwise, inputs, out).measures
    assert {m.unit for m in measured}.isdisjoint(m.unit for m in asked_otherwise)


SHARE = Interval(0.5, 0.4, 0.6)


def test_the_section_is_read_back_as_it_was_and_compared_by_rates() -> None:
    rows = [BenchmarkRow("arc", "acc", 9, {"policy": SHARE, "policy-sft": SHARE})]
    stored = results(sections={SECTION: encode(rows)})
    read_again = parse_results(json.loads(json.dumps(encode(stored))))
    assert read_rows(read_again) == rows
    assert rates(read_again, "policy") == {"arc acc (9)": 0.5}
    assert rates(results(), "policy") == {}


def test_of_a_rehearsal_the_section_says_its_note_and_no_effect() -> None:
    rows = [BenchmarkRow("arc", "acc", 90, {"policy-sft": Interval(0.3, 0.2, 0.4)})]
    titles = {"policy-sft": "DPO − SFT"}
    assert "above 0 in 1" in sentence(rows, "policy-sft", titles)
    of_rehearsal = sentence(rows, "policy-sft", titles, claims.REHEARSAL)
    assert of_rehearsal.startswith(claims.REHEARSAL.capitalize())
    assert "above" not in of_rehearsal


@pytest.mark.parametrize(("text", "place"), BEYOND.values(), ids=BEYOND)
def test_a_file_of_tasks_beyond_the_bounds_is_refused_with_its_line(
    text: str, place: str, tmp_path: Path
) -> None:
    (tmp_path / "beyond.yaml").write_text(text)
    block = Benchmark(tasks=["beyond"], tasks_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"^benchmark\.tasks_dir=.*: beyond\.yaml: ") as refusal:
        block.validate(is_target=False)
    assert place in str(refusal.value)
